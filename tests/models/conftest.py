import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from featstore.models import catalogue, load_model
from featstore.models.convert import convert_entry

FOLDER = Path(__file__).with_name("layouts")


@pytest.fixture(scope="session")
def layouts():
    """The package `layouts` beside this file; tests are no package, so it is found by its path."""
    if "layouts" not in sys.modules:
        spec = spec_from_file_location(
            "layouts", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        sys.modules["layouts"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["layouts"])
    return sys.modules["layouts"]


@pytest.fixture
def new_home(tmp_path, monkeypatch):
    """The folder of downloads, empty, and no network."""
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def load_original(new_home, monkeypatch):
    """Model of a catalogue name, from an original file at the place of one that was fetched."""
    files = []
    # Drawing initial weights takes most of the time of a load. They are all replaced by the file's;
    # one that is not would hold whatever lay in memory.
    for draw in ("uniform_", "normal_", "erfinv_"):
        monkeypatch.setattr(torch.Tensor, draw, lambda tensor, *_, **__: tensor)

    def load(name, checkpoint):
        entry = replace(catalogue()[name], sha256="")  # which no made-up file has
        monkeypatch.setitem(catalogue(), name, entry)
        path = new_home / "weights" / entry.file
        files.append(checkpoint.save(path))
        if entry.converts:
            files.append(convert_entry(entry).path)
        return load_model(name)

    yield load
    for file in files:
        file.unlink(missing_ok=True)  # once converted, up to 450 MB
