import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

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
def load_original(new_home):
    """Model of a catalogue name, from an original file at the place of one that was fetched."""
    files = []

    def load(name, checkpoint):
        entry = catalogue()[name]
        path = new_home / "weights" / entry.file
        files.append(checkpoint.save(path))
        if entry.converts:
            files.append(convert_entry(entry).path)
        return load_model(name)

    yield load
    for file in files:
        file.unlink(missing_ok=True)  # those with random weights take up to 400 MB
