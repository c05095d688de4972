"""Miniatures of all layouts, made by the tests of their readers, and a server on the loopback."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from featstore.datasets import catalogue, load


def module(path):
    """A test file as a module: tests are no package, so it is found by its path."""
    name = f"shared_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def lay(monkeypatch):
    """lay(name, root): the miniature of a dataset; the catalogue then expects one of its size."""
    sizes = {"inaturalist_genus": 3, "inaturalist_species": 4}
    small = {
        name: replace(entry, categories=sizes.get(name, 0), n_images={})
        for name, entry in catalogue().items()
    }
    monkeypatch.setattr(load, "catalogue", lambda: small)

    def tests(name):
        return module(Path(__file__).with_name(f"test_{name}.py"))

    def make(name, root):
        root.mkdir(parents=True, exist_ok=True)
        family, _, domain = name.partition("_")
        if family == "domainnet":
            tests("domainnet").write(root, domains=[domain])
        elif family == "inaturalist":
            tests("inaturalist").write(root)
        elif name in ("pascal", "voc2007"):
            getattr(tests("voc"), name)(root)
        elif family == "caltech101":
            tests("caltech").write_101(root, listing=None if domain else "caltech101")
        elif name == "caltech256":
            tests("caltech").write_256(root)
        elif name == "cub":
            tests("cub").write(root)
        elif name == "imagenet":
            tests("imagenet").write(root, tests("imagenet").with_archive)
        elif name == "eurosat":
            tests("torchvision_sets").eurosat(root)
        elif name in tests("cdfsl").MAKERS:
            tests("cdfsl").MAKERS[name](root)
        else:
            tests("torchvision_sets").MINIATURES[name](root, monkeypatch)

    return make


@pytest.fixture
def site(monkeypatch):
    """A server of files, as the tests of `fetch` have it, and a network that may be used."""
    for name in ("FEATSTORE_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with module(Path(__file__).parents[1] / "test_fetch.py").serving() as found:
        yield found
