"""A world in which a study can be run whole: stand-in weights and miniatures under their names."""

import importlib
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import xarray as xr
from huggingface_hub import constants
from safetensors.torch import save

import featstore
from featstore.models.convert import convert_entry
from featstore.results import records

from . import miniatures, standins

PIPELINES = Path(__file__).parents[2] / "pipelines"
NARROW = {768: 24, 2304: 72, 3072: 96, 12: 2}  # of a transformer: width, and heads
SIZES = {"train": 4, "val": 2, "test": 2}  # images of each category


def thin(name, shape):
    """Shape that a tensor of the original has in its stand-in."""
    if name.startswith(("conv1", "bn1", "layer")):
        return tuple(n // 16 if n >= 64 else n for n in shape)
    return tuple(NARROW.get(n, n) for n in shape)


def write_original(layouts, name, home, seed):
    """The file of a catalogue entry as its authors wrote it, its network and its rest cut small."""
    entry = featstore.models.catalogue()[name]
    kind = "beit" if name.startswith("beit") else "vitb16" if "vitb16" in name else "resnet50"
    shapes = {one: thin(one, shape) for one, shape in layouts.ENCODERS[kind]().items()}
    if kind == "vitb16":
        gone = tuple(f"blocks.{number}." for number in range(standins.DEPTH, 12))
        shapes = {one: shape for one, shape in shapes.items() if not one.startswith(gone)}
    body = layouts.noise(shapes, seed)

    class Draw(layouts.Draw):
        def __call__(self, shapes, prefix=""):
            small = {one: tuple(min(n, 8) for n in shape) for one, shape in shapes.items()}
            return super().__call__(small, prefix)

    layouts.LAYOUTS[name](body, Draw()).save(home / "weights" / entry.file)
    if entry.converts:
        convert_entry(entry)


def write_hub(name, hub, seed):
    """The file of an entry in the hub's cache, where timm looks for it."""
    arch = featstore.models.catalogue()[name].arch
    known = timm.get_pretrained_cfg(arch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = timm.create_model(arch, num_classes=known.num_classes)
    data = save(module.state_dict())
    folder = hub / f"models--{known.hf_hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(data)


class World:
    """A folder with weights and datasets, in which scripts are run.

    Attributes
    ----------
    home : FEATSTORE_HOME ; data : where datasets lie ; out : of the run
    """

    def __init__(self, root, layouts):
        self.root, self.layouts = root, layouts
        self.home, self.hub, self.data = root / "home", root / "hub", root / "datasets"
        self.out = root / "out"

    def enter(self, patch):
        """Let featstore see this world and no other."""
        patch.setenv("FEATSTORE_HOME", str(self.home))
        patch.setenv("FEATSTORE_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_CACHE", str(self.hub))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        standins.install(patch.setattr, patch.setitem)

    def fill(self, models, datasets, categories=2, **sizes):
        """Make weights and datasets by their names, these with so many images of each category."""
        for seed, name in enumerate(models):
            if featstore.models.catalogue()[name].weights == "hub":
                write_hub(name, self.hub, seed)
            else:
                write_original(self.layouts, name, self.home, seed)
        for name in dict.fromkeys(one.partition("@")[0] for one in datasets):
            miniatures.write(name, self.data, SIZES | sizes, categories)

    def arguments(self, script, *more):
        fixed = ["--out", self.out, "--data-root", self.data, "--num-workers", "0"]
        return [str(one) for one in (PIPELINES / script, *fixed, "--device", "cpu", *more)]

    def run(self, patch, script, *more):
        """Exit status of a script, run in this process."""
        arguments = self.arguments(script, "--scheduler", "sync", *more)
        patch.setattr(sys, "argv", arguments)
        patch.syspath_prepend(PIPELINES)
        patch.setattr(logging.root, "handlers", [*logging.root.handlers])  # to which it adds
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        raise AssertionError("a script ends with its exit status")

    def start(self, script, *more):
        """A script in a process of its own, with the same stand-ins."""
        hook = Path(standins.__file__)
        environment = os.environ | {
            "FEATSTORE_HOME": str(self.home), "FEATSTORE_OFFLINE": "1",
            "HF_HUB_CACHE": str(self.hub), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, hook, *self.arguments(script, "--scheduler", "sync", *more)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip


@pytest.fixture
def world(tmp_path, layouts, monkeypatch):
    """An empty world."""
    new = World(tmp_path, layouts)
    new.enter(monkeypatch)
    return new


@pytest.fixture
def run(world, monkeypatch, capfd):
    """run(script, ...): a script's exit status, and the lines of its stdout and stderr."""

    def call(script, *more):
        status = world.run(monkeypatch, script, *more)
        written = capfd.readouterr()
        return status, written.out.splitlines(), written.err.splitlines()

    return call


def told(lines, stage):
    """What a stage said at its end, the last time."""
    return [line.split("  ", 1)[1].strip() for line in lines if line.startswith(stage)][-1]


def shortened(name):
    """A protocol of the same kind that takes a moment on a few images."""
    if name in featstore.finetuning.PROTOCOLS:
        protocol = featstore.finetuning.get(name)
        if protocol.lrs:
            return f"{name}+lrs=0.01+decays=0+steps=1"
        few = "fraction=0.2" if protocol.fraction < 1 else "shots=2"
        return f"{name}+{few}+epochs=1"
    protocol = featstore.probes.get(name)
    if hasattr(protocol, "epochs"):
        return f"{name}+epochs=2"
    if len(getattr(protocol, "log10_c", ())) > 12 and not getattr(protocol, "published", False):
        return f"{name}+log10_c={'0,-1' if 'literal' in name else '-1,0'}"
    return f"{name}+k=20" if getattr(protocol, "k", 0) > 50 and protocol.kind == "knn" else name


def scores(out, bn_mode="eval"):
    """Scores of what was run, (model, dataset, protocol), as anybody opens them."""
    with xr.open_zarr(out / "results.zarr") as results:
        return results["score"].sel(bn_mode=bn_mode).load()


def found(results):
    """All that was measured, without what differs between runs."""
    return {
        tuple(one[k] for k in ("model", "dataset", "bn_mode", "protocol", "seed")): (
            one["metrics"], one["outcomes_sha256"]
        )
        for one in records(results)
    }  # fmt: skip


def tree(*roots):
    """When each file below some folders was last written, and its size."""
    files = (path for root in roots for path in root.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


@pytest.fixture(scope="session")
def conclusions(study):
    """The module `conclusions` of the scripts."""
    return importlib.import_module("conclusions")


@pytest.fixture(scope="session")
def study():
    """The module `study` of the scripts; `study.of(SCRIPT)` is the study of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PIPELINES)
        module = importlib.import_module("study")
        module.of = lambda script: runpy.run_path(str(PIPELINES / script))["STUDY"]
        yield module
