// Raw kernels of cuda_neighbours.py and cuda_softmax.py.
//
// No header is included, so that NVRTC compiles this file wherever it runs. Arrays are row-major;
// `stride` is the length of a row in memory, a multiple of 8, and what lies beyond its width is 0.
// Sums are made in one fixed order, that of the lanes of a warp, so that a value depends on its own
// rows alone.

typedef unsigned short half_bits;  // an IEEE half; NVRTC knows its type only by a header

#ifndef HOST  // the tests also compile this file for the host, and bring these two along
__device__ __forceinline__ float widen(half_bits h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ half_bits narrow(float f) {
    half_bits h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#endif

__device__ __forceinline__ double number(half_bits h) { return widen(h); }
__device__ __forceinline__ double number(float f) { return f; }
__device__ __forceinline__ double number(double f) { return f; }

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

template <class T>
__device__ __forceinline__ T warp_max(T v) {
    for (int step = 16; step; step /= 2) {
        T other = __shfl_xor_sync(0xffffffffu, v, step);
        v = other > v ? other : v;
    }
    return v;
}

template <class T>
struct alignas(16) Pack {  // what one load brings
    static const int size = 16 / sizeof(T);
    T v[size];
};

// ---- Rows as the screen sees them: a half each, times a power of two of the row's own.
//
// norm and residual are the lengths of a row and of what its halves lack; scale is what they are to
// be multiplied by. The bounds on the exponent keep products of two scales within float.
// One warp a row; 256 threads a block.
template <class T>
__device__ void measure(const T* rows, long long n, long long width, long long stride,
                        half_bits* halves, double* norm, double* residual, float* scale) {
    const long long row = blockIdx.x * 8LL + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= n) return;
    const T* x = rows + row * stride;
    half_bits* h = halves + row * stride;
    const bool is_half = sizeof(T) == 2;

    double square = 0, largest = 0;
    for (long long i = lane; i < width; i += 32) {
        const double v = number(x[i]);
        square += v * v;
        largest = fmax(largest, fabs(v));
    }
    square = warp_sum(square);
    largest = warp_max(largest);

    double up = 1, down = 1, lost = 0;
    if (!is_half) {
        int exponent;
        frexp(largest, &exponent);
        exponent = 14 - exponent;
        exponent = exponent < -60 ? -60 : exponent > 60 ? 60 : exponent;
        up = ldexp(1.0, exponent);
        down = ldexp(1.0, -exponent);
        for (long long i = lane; i < stride; i += 32) {
            const double v = i < width ? number(x[i]) : 0.0;
            h[i] = narrow(static_cast<float>(v * up));
            const double gap = v - number(h[i]) * down;
            lost += gap * gap;
        }
        lost = warp_sum(lost);
    }
    if (lane == 0) {
        norm[row] = sqrt(square);
        residual[row] = sqrt(lost);
        scale[row] = static_cast<float>(down);
    }
}

// ---- Columns of (b, t) scores that reach their query's threshold, in no order.
//
// count goes on beyond the capacity, so that what was not written is known. A NaN is kept.
// 256 threads a block, 4 columns a thread, 16 queries a block.
extern "C" __global__ void survivors(const float* scores, long long b, long long t, long long pitch,
                                     const float* row_scale, const float* threshold,
                                     const float* column_scale, const float* column_bias,
                                     long long capacity, int* columns, int* count) {
    const long long column = (blockIdx.x * 256LL + threadIdx.x) * 4;
    if (column >= t) return;
    float factor[4], bias[4];
    for (int j = 0; j < 4; ++j) {
        factor[j] = column + j < t ? column_scale[column + j] : 0;
        bias[j] = column + j < t ? column_bias[column + j] : 0;
    }
    const long long first = blockIdx.y * 16LL;
    const long long last = first + 16 < b ? first + 16 : b;
#pragma unroll 4
    for (long long row = first; row < last; ++row) {
        const Pack<float> s = *reinterpret_cast<const Pack<float>*>(scores + row * pitch + column);
        const float own = row_scale[row], bar = threshold[row];
        for (int j = 0; j < 4; ++j) {
            if (column + j < t && !(s.v[j] * (own * factor[j]) + bias[j] < bar)) {
                const int slot = atomicAdd(count + row, 1);
                if (slot < capacity) columns[row * capacity + slot] = static_cast<int>(column) + j;
            }
        }
    }
}

// ---- Similarity of each query to its candidates in float64: 0 inner product, 1 cosine,
// 2 minus the distance. One block a query, one warp a pair.
template <class T>
__device__ void exact(const T* queries, const T* rows, long long stride, const double* query_norm,
                      const double* row_norm, long long metric, long long capacity,
                      const int* columns, const int* count, double* values) {
    const long long query = blockIdx.x;
    const int lane = threadIdx.x % 32;
    const long long n = count[query] < capacity ? count[query] : capacity;
    const int size = Pack<T>::size;
    const T* q = queries + query * stride;
    for (long long i = threadIdx.x / 32; i < n; i += blockDim.x / 32) {
        const int column = columns[query * capacity + i];
        const T* x = rows + column * stride;
        double sum = 0;
        for (long long at = lane * size; at < stride; at += 32 * size) {
            const Pack<T> a = *reinterpret_cast<const Pack<T>*>(q + at);
            const Pack<T> b = *reinterpret_cast<const Pack<T>*>(x + at);
            for (int j = 0; j < size; ++j) {
                const double u = number(a.v[j]), v = number(b.v[j]);
                sum += metric == 2 ? (u - v) * (u - v) : u * v;
            }
        }
        sum = warp_sum(sum);
        if (metric == 1) {
            const double lengths = query_norm[query] * row_norm[column];
            sum = lengths > 0 ? sum / lengths : 0.0;
        }
        if (lane == 0) values[query * capacity + i] = metric == 2 ? -sqrt(sum) : sum + 0.0;
    }
}

// ---- The k best of a query's list and its candidates, the lower row first among equals.
//
// A bitonic sort in shared memory of the next power of two of both. `first` is the position of
// column 0 in the bank. The count is set back to 0; one beyond the capacity is noted.
// One block a query; shared memory for 12 bytes an element.
__device__ __forceinline__ bool better(double a, int a_row, double b, int b_row) {
    return a > b || (a == b && a_row < b_row);
}

extern "C" __global__ void keep(long long k, long long capacity, const double* values,
                                const int* columns, int* count, long long first,
                                double* list_value, int* list_row, int* overflow) {
    extern __shared__ double shared[];
    const long long query = blockIdx.x;
    const int found = count[query];
    if (found == 0) return;
    const int n = found < capacity ? found : static_cast<int>(capacity);
    const int filled = static_cast<int>(k) + n;
    int size = 2;
    while (size < filled) size *= 2;
    double* value = shared;
    int* row = reinterpret_cast<int*>(shared + size);

    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        if (i < k) {
            value[i] = list_value[query * k + i];
            row[i] = list_row[query * k + i];
        } else if (i < filled) {
            value[i] = values[query * capacity + i - k];
            row[i] = static_cast<int>(first) + columns[query * capacity + i - k];
        } else {
            value[i] = -__longlong_as_double(0x7ff0000000000000LL);
            row[i] = 0x7fffffff;
        }
    }
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const int a = 2 * i - (i & (step - 1)), b = a + step;
                const bool wrong = (a & run) ? better(value[a], row[a], value[b], row[b])
                                             : better(value[b], row[b], value[a], row[a]);
                if (wrong) {
                    const double v = value[a];
                    value[a] = value[b];
                    value[b] = v;
                    const int r = row[a];
                    row[a] = row[b];
                    row[b] = r;
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        list_value[query * k + i] = value[i];
        list_row[query * k + i] = row[i];
    }
    if (threadIdx.x == 0) {
        if (found > capacity) overflow[query] = 1;
        count[query] = 0;
    }
}

// ---- Cross-entropy of each row, and its gradient by the logits as two halves.
//
// A logit is the sum of column j and of column half + j / 2048, where half = stride / 2; so is a
// residual, times 2^14. Columns from c to half come out as 0. The loss is the log1p of the others'
// odds where the row's own category leads, so that no digit is lost where it leads by far.
// One warp a row; 256 threads a block.
extern "C" __global__ void residuals(const float* logits, const int* labels, long long n,
                                     long long c, long long stride, half_bits* out, float* loss) {
    const long long row = blockIdx.x * 8LL + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= n) return;
    const long long half = stride / 2;
    const float* high = logits + row * stride;
    const float* low = high + half;
    const int own = labels[row];

    float top = high[own] + low[own] * (1.0f / 2048);
    for (long long j = lane; j < c; j += 32) top = fmaxf(top, high[j] + low[j] * (1.0f / 2048));
    top = warp_max(top);
    float others = 0;
    for (long long j = lane; j < c; j += 32) {
        if (j != own) others += expf(high[j] + low[j] * (1.0f / 2048) - top);
    }
    others = warp_sum(others);
    const float lead = high[own] + low[own] * (1.0f / 2048) - top;
    const float odds = expf(lead), total = odds + others;

    half_bits* out_high = out + row * stride;
    half_bits* out_low = out_high + half;
    for (long long j = lane; j < half; j += 32) {
        float share = 0;
        if (j == own) {
            share = -others / total;
        } else if (j < c) {
            share = expf(high[j] + low[j] * (1.0f / 2048) - top) / total;
        }
        share *= 16384.0f;
        out_high[j] = narrow(share);
        out_low[j] = narrow((share - widen(out_high[j])) * 2048.0f);
    }
    if (lane == 0) loss[row] = odds > others ? log1pf(others / odds) : logf(total) - lead;
}

// ---- Sums of p (1 - p) over 64 rows at a time, from residuals, of which one of p and p - 1 is made.
//
// A residual's high half is enough: nothing but the direction of a step depends on these.
// One thread a column, 256 a block; out is (n / 64, c).
extern "C" __global__ void uncertainties(const half_bits* residuals, long long n, long long c,
                                         long long stride, float* out) {
    const long long column = blockIdx.x * 256LL + threadIdx.x;
    if (column >= c) return;
    const long long first = blockIdx.y * 64LL;
    const long long last = first + 64 < n ? first + 64 : n;
    float sum = 0;
    for (long long row = first; row < last; ++row) {
        const float p = fabsf(widen(residuals[row * stride + column])) * (1.0f / 16384);
        sum += p * (1 - p);
    }
    out[blockIdx.y * c + column] = sum;
}

#define FOR_EACH_TYPE(name, T)                                                                     \
    extern "C" __global__ void measure_##name(                                                     \
        const T* rows, long long n, long long width, long long stride, half_bits* halves,          \
        double* norm, double* residual, float* scale) {                                            \
        measure(rows, n, width, stride, halves, norm, residual, scale);                            \
    }                                                                                              \
    extern "C" __global__ void exact_##name(                                                       \
        const T* queries, const T* rows, long long stride, const double* query_norm,               \
        const double* row_norm, long long metric, long long capacity, const int* columns,          \
        const int* count, double* values) {                                                        \
        exact(queries, rows, stride, query_norm, row_norm, metric, capacity, columns, count,       \
              values);                                                                             \
    }

FOR_EACH_TYPE(float16, half_bits)
FOR_EACH_TYPE(float32, float)
FOR_EACH_TYPE(float64, double)
