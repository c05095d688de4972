from dataclasses import replace

import pytest
import torch

from featstore.models import catalogue, load_model
from featstore.models.convert import convert_entry


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
