// Enough of CUDA to run the kernels of gpu.cu on the host, thread by thread.
//
// Each thread of a block is a coroutine, which stops at every barrier and every exchange within its
// warp until the others have come as far. Backwards, later threads run first: what lacks a barrier
// then comes out differently.

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define HOST
#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim;
double shared[6144];  // 48 KiB, what every GPU gives a block without being asked

static inline float widen(unsigned short bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return h;
}

static inline unsigned short narrow(float f) {
    const _Float16 h = f;
    unsigned short bits;
    memcpy(&bits, &h, 2);
    return bits;
}

static inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

static inline int atomicAdd(int* at, int more) {
    const int before = *at;
    *at += more;
    return before;
}

static const int most = 256, stack_size = 64 * 1024;
static ucontext_t beginnings[most];
static jmp_buf scheduler, threads[most];
static char stacks[most][stack_size];
static bool begun[most], running[most];
static unsigned current;
static void (*body)(...);
static long long arguments[12];

static void stop() {
    if (!_setjmp(threads[current])) _longjmp(scheduler, 1);
}

static inline void __syncthreads() { stop(); }

template <class T>
static T __shfl_xor_sync(unsigned, T value, int lanes) {
    static T exchanged[most];
    exchanged[current] = value;
    stop();
    const T other = exchanged[current ^ lanes];
    stop();
    return other;
}

static void thread() {
    for (;;) {
        const long long* a = arguments;  // pointers and long long alone, which are passed alike
        reinterpret_cast<void (*)(long long, long long, long long, long long, long long, long long,
                                  long long, long long, long long, long long, long long,
                                  long long)>(body)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7],
                                                    a[8], a[9], a[10], a[11]);
        running[current] = false;
        stop();  // and begin again for the next block
    }
}

static void go_on() {
    if (_setjmp(scheduler)) return;
    if (begun[current]) _longjmp(threads[current], 1);
    begun[current] = true;
    ucontext_t& beginning = beginnings[current];
    getcontext(&beginning);
    beginning.uc_stack.ss_sp = stacks[current];
    beginning.uc_stack.ss_size = stack_size;
    makecontext(&beginning, thread, 0);
    setcontext(&beginning);
}

static void run_block(unsigned block, bool backwards) {
    for (unsigned t = 0; t < block; ++t) running[t] = true;
    for (bool any = true; any;) {
        any = false;
        for (unsigned step = 0; step < block; ++step) {
            current = backwards ? block - 1 - step : step;
            if (!running[current]) continue;
            threadIdx = {current, 0, 0};
            go_on();
            any |= running[current];
        }
    }
}

extern "C" void launch(void (*kernel)(...), const long long* args, unsigned grid_x, unsigned grid_y,
                       unsigned block, bool backwards) {
    body = kernel;
    memcpy(arguments, args, sizeof arguments);
    blockDim = {block, 1, 1};
    for (unsigned i = 0; i < grid_x * grid_y; ++i) {
        blockIdx = {i % grid_x, i / grid_x, 0};
        memset(shared, 0xff, sizeof shared);
        run_block(block, backwards);
    }
}
