"""Kernels on one GPU beside their floors: neighbours, the path of 45 C, extraction.

    python pipelines/benchmarks/gpu.py --json data/benchmarks/gpu.json [--small]

It needs torch, cupy and numpy beside featstore's own kernels, and no installed featstore: run it
from a clone, with its folder in PYTHONPATH. A floor is the larger of operations over the rate of a
large matrix product and bytes over the rate of a large copy, both measured here. Without a GPU it
says so and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import torch
from backbones import VisionTransformer, resnet50
from common import Row, run
from torch import Tensor, nn

from featstore import kernels

C = np.logspace(-5, 6, 45)
METRIC = "inner"


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows; tiny ones if small."""
    small = arguments.small
    n, d, c, q, k = (20_000, 256, 50, 500, 20) if small else (1_281_167, 2048, 1000, 50_000, 200)
    gpu = torch.cuda.get_device_name()
    flops, copied = product_rate(1024 if small else 8192), copy_rate(2**24 if small else 2**32)
    print(f"{gpu}: products {flops / 1e12:.0f} TFLOP/s, copies {copied / 1e12:.2f} TB/s")
    x, y = made_up(n, d, c)
    queries, _ = made_up(q, d, c, seed=1)
    note = f"{gpu}, {flops / 1e12:.0f} TFLOP/s, {copied / 1e12:.2f} TB/s"
    return [
        *neighbours(x, queries, k, flops, copied, note),
        path(x, y, c, flops, copied, note),
        *extraction(32 if small else 256, 4 if small else 40, note),
    ]


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of runs after one that warms up, each from an idle GPU to an idle GPU."""
    found = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def product_rate(size: int) -> float:
    """Operations a second of a bfloat16 product of random square matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: [a @ b for _ in range(10)]) * 10


def copy_rate(size: int) -> float:
    """Bytes a second of a copy within the GPU, read and written."""
    source = torch.empty(size, device="cuda", dtype=torch.uint8).random_()
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def made_up(n: int, d: int, c: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) float16 of overlapping categories, as a store keeps them, and labels (n,)."""
    torch.manual_seed(1)
    centres = torch.randn(c, d, device="cuda") * 0.1
    torch.manual_seed(2 + seed)
    labels = torch.randint(c, (n,), device="cuda")
    rows = np.empty((n, d), np.float16)
    for start in range(0, n, 2**16):
        some = centres[labels[start : start + 2**16]]
        rows[start : start + len(some)] = (some + torch.randn_like(some)).half().cpu().numpy()
    return rows, labels.cpu().numpy()


def neighbours(
    x: np.ndarray, queries: np.ndarray, k: int, flops: float, copied: float, note: str
) -> list[Row]:
    """Exact kNN of rows on the GPU and of rows on the host, beside the floor and cuVS."""
    cupy = import_module("cupy")
    (n, d), q = x.shape, len(queries)
    floor = max(2 * n * q * d / flops, (n + q) * d * 2 / copied)
    nearest = kernels.cuda_neighbours.nearest_cuda
    bank, asked = cupy.asarray(x), cupy.asarray(queries)
    found = nearest(bank, asked, k=k, metric=METRIC)
    right = agreement(x, queries, found[1].get(), k)
    checked = f"{note}; {right} of 32 lists equal those of float64"
    there = seconds(lambda: nearest(bank, asked, k=k, metric=METRIC))
    staged = seconds(lambda: nearest(x, queries, k=k, metric=METRIC))
    name = f"kNN, {n} x {d}, {q} queries, k = {k}"
    rows = [
        Row(f"{name}, on the GPU", there, "floor", floor, 2.0, 5, checked),
        Row(f"{name}, from the host", staged, "floor", floor, 2.0, 5, note),
    ]
    here, wanted = torch.as_tensor(bank, device="cuda"), torch.as_tensor(asked, device="cuda")
    plain = seconds(lambda: torch_nearest(here, wanted, k))
    same = agreement(x, queries, torch_nearest(here, wanted, k).cpu().numpy(), k)
    told = f"{note}; {same} of 32 of torch's lists equal those of float64"
    rows.append(Row(f"{name}, on the GPU", there, "torch, product and topk", plain, 1.0, 5, told))
    if find_spec("cuvs") is None:
        print("cuVS is not installed, so that kNN is not measured beside it")
        return rows
    brute = import_module("cuvs.neighbors.brute_force")
    index = brute.build(bank, metric="inner_product")
    other = seconds(lambda: brute.search(index, asked, k))
    return [*rows, Row(f"{name}, on the GPU", there, "cuVS brute force", other, 1.0, 5, note)]


def torch_nearest(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """Rows (q, k) of the best products in float16, tile by tile, as one writes it in torch."""
    found = []
    for some in queries.split(8192):
        best = torch.full((len(some), k), -torch.inf, device="cuda", dtype=torch.float16)
        rows = torch.zeros((len(some), k), device="cuda", dtype=torch.int64)
        for start in range(0, len(bank), 2**16):
            value, row = torch.topk(some @ bank[start : start + 2**16].T, k)
            best, order = torch.topk(torch.cat((best, value), dim=1), k)
            rows = torch.cat((rows, row + start), dim=1).gather(1, order)
        found.append(rows)
    return torch.cat(found)


def agreement(x: np.ndarray, queries: np.ndarray, found: np.ndarray, k: int) -> int:
    """How many of 32 queries have the rows (q, k) that products of float64 give them."""
    some = np.arange(0, len(queries), max(1, len(queries) // 32))[:32]
    asked = torch.from_numpy(queries[some]).cuda().double()
    scores = [
        (asked @ torch.from_numpy(x[start : start + 2**16]).cuda().double().T).cpu()
        for start in range(0, len(x), 2**16)
    ]
    best = torch.topk(torch.cat(scores, dim=1), k).indices.numpy()
    return sum(set(a) == set(b) for a, b in zip(best, found[some], strict=True))


def path(x: np.ndarray, y: np.ndarray, c: int, flops: float, copied: float, note: str) -> Row:
    """All 45 C, from evaluations on the GPU; the floor is that of as many evaluations."""
    torch.cuda.empty_cache()  # for cupy to take
    n, d = x.shape
    logistic, cupy = kernels.logistic, import_module("cupy")
    begun = time.perf_counter()
    evaluate = kernels.cuda_softmax.CudaSoftmax(x, y, n_categories=c)
    sample = x[:: max(1, n // (8 * d))].astype(np.float32)
    fits = logistic.fit_logistic_path(
        evaluate,
        quick=evaluate,  # in about the digits of float32, as certificates then say
        n_features=d,
        n_categories=c,
        penalties=[1 / value for value in C],
        tolerance=1e-4,
        estimated=True,
        floor=0.01 * n,
        basis=replace(logistic.Basis.of(sample), sums=sums_of(x, y, c)),
        xp=cupy,
    )
    spent = time.perf_counter() - begun
    passes = sum(certificate.evaluations for _, certificate in fits)
    # Two halves a number: two products for the logits, two for the gradient.
    floor = passes * max(8 * n * d * c / flops, 2 * n * d * 2 / copied)
    converged = sum(certificate.converged for _, certificate in fits)
    told = f"{note}; {passes} evaluations, {converged} of {len(C)} converged, goal 300 s"
    return Row(f"45 C, {n} x {d} x {c}", spent, "floor of its evaluations", floor, None, 1, told)


def sums_of(x: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    """Sum of the rows (n, d) of each category, and their number: (d+1, c) float64."""
    sums = torch.zeros(c, x.shape[1] + 1, device="cuda", dtype=torch.float64)
    for start in range(0, len(x), 2**16):
        rows = torch.from_numpy(x[start : start + 2**16]).cuda().double()
        labels = torch.from_numpy(y[start : start + 2**16]).cuda()
        sums.index_add_(0, labels, torch.cat((rows, torch.ones_like(rows[:, :1])), dim=1))
    return sums.T.contiguous().cpu().numpy()


def extraction(batch: int, batches: int, note: str) -> list[Row]:
    """Images from page-locked memory to embeddings there, beside the bare compiled model."""
    images = torch.randint(256, (2, batch, 3, 224, 224), dtype=torch.uint8).pin_memory()
    rows = []
    for name, module in (("resnet50", resnet50()), ("vit_base", VisionTransformer())):
        module = module.cuda().eval().to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            bare = seconds(partial(alone, torch.compile(module), images, batches), 3)
            model = torch.compile(nn.Sequential(Normalised(), module))
            ours = seconds(partial(embed, model, images, batches), 3)
        what = f"{name}, bf16, {batches} batches of {batch}: {batch * batches / ours:.0f} images/s"
        rows.append(Row(what, ours, "bare compiled model", bare, 1.1, 3, note))
    return rows


class Normalised(nn.Module):
    """Images (n, 3, h, w) uint8 as a model takes them."""

    def forward(self, images: Tensor) -> Tensor:
        """Of mean 0 and deviation 1, about."""
        pixels = images.to(memory_format=torch.channels_last).to(torch.bfloat16)
        return (pixels - 116) / 57


def alone(model: Callable[[Tensor], Tensor], images: Tensor, batches: int) -> None:
    """The model on one batch that is on the GPU, again and again."""
    pixels = Normalised()(images[0].cuda())
    for _ in range(batches):
        model(pixels)


def embed(model: Callable[[Tensor], Tensor], images: Tensor, batches: int) -> Tensor:
    """Embeddings on the host, (batches, n, d) float16, copied while the model computes."""
    copying, here = torch.cuda.Stream(), torch.cuda.current_stream()
    found = torch.empty(0)
    for i in range(batches):
        with torch.cuda.stream(copying):
            there = images[i % len(images)].to("cuda", non_blocking=True)
        here.wait_stream(copying)
        there.record_stream(here)
        rows = model(there)
        if i == 0:
            found = torch.empty((batches, *rows.shape), dtype=torch.float16, pin_memory=True)
        found[i].copy_(rows.half(), non_blocking=True)
    torch.cuda.synchronize()
    return found


if __name__ == "__main__":
    if not torch.cuda.is_available() or find_spec("cupy") is None:
        print("no CUDA GPU with cupy here: nothing was measured")
        sys.exit(0)
    run(measure, __doc__)
