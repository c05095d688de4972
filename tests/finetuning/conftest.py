"""A toy dataset in memory, and trainings on it without a record."""

import copy
import socket
from functools import cache

import numpy as np
import pytest
import torch

from featstore import finetuning
from featstore.datasets import ArrayImages, Dataset, ImageSplit, Transform
from featstore.extraction.asked import load_asked
from featstore.finetuning import get, train
from featstore.finetuning.measure import Work
from featstore.finetuning.net import Machine
from featstore.finetuning.train import Checkpoints, Curves, fit

INFO = {"shift": "", "cluster": "", "metric": "top1", "source": "toy"}


@pytest.fixture(autouse=True)
def _one_thread():
    """Bits are compared, and the number of threads changes sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy_split(name, per_class=8, classes=3, *, seed=0, labels=None):
    """Noise of 32 x 32 pixels, brighter in one channel by class."""
    rng = np.random.default_rng([seed, len(name)])
    kinds = np.arange(per_class * classes) % classes
    pixels = rng.integers(0, 120, (len(kinds), 32, 32, 3), dtype=np.uint8)
    pixels[np.arange(len(kinds)), :, :, kinds % 3] += 100
    read = ArrayImages(pixels)
    ids = tuple(f"{name}/{i}" for i in range(len(kinds)))
    labels = kinds.astype(np.int64) if labels is None else labels(kinds)
    categories = tuple("abcdefghij"[:classes])
    return ImageSplit("toy", name, ids, labels, categories, read, read.content)


def toy(splits=("train", "test"), metric="top1", **options):
    made = {name: toy_split(name, **options) for name in splits}
    return Dataset("toy", splits, made.__getitem__, INFO | {"metric": metric})


@pytest.fixture
def use(monkeypatch):
    """Let a dataset of this test be had by the name `toy`."""

    def put(dataset):
        real = finetuning.load_dataset
        monkeypatch.setattr(
            finetuning,
            "load_dataset",
            lambda name, **options: dataset if name == "toy" else real(name, **options),
        )
        monkeypatch.setattr(finetuning.datasets_, "expand", list)

    return put


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)


@cache
def asked(model):
    return next(iter(load_asked([model], "pretrained", 0, "", [])))


def work_of(protocol, model="tiny-resnet-random", dataset=None, seed=0, **machine):
    dataset = dataset or toy()
    one = asked(model)
    return Work(
        one, "", dataset, {name: dataset.split(name) for name in dataset.splits},
        Transform.own(one.model.data_config), get(protocol), seed,
        Machine(torch.device("cpu"), **machine),
    )  # fmt: skip


def trained(work, folder, tell=lambda done, total, record: None):
    """The network before and after, and the curves."""
    candidate = work.protocol.candidates()[0]
    rows = np.arange(len(work.splits["train"]))
    net = work.net()
    before = copy.deepcopy(net)
    curves = Curves()
    fit(
        net, work.samples([("train", rows)], candidate.crop), work.protocol, candidate, curves,
        smoothing=work.protocol.label_smoothing if "vit" in work.asked.model.arch else 0.0,
        machine=work.machine, checkpoints=Checkpoints(folder, "00"), tell=tell,
    )  # fmt: skip
    return before, net, curves


@pytest.fixture
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
