"""Models that a user's own Python code makes: `py:MODULE:FACTORY`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from featstore.errors import BadCheckpointError, UnknownNameError


def make(name: str) -> nn.Module:
    """The module that `py:MODULE:FACTORY` returns, called without arguments, with its weights.

    MODULE is looked for in the current folder first, as `python -m` does. The user's code is run.

    Raises
    ------
    UnknownNameError
        No such module, or nothing of that name in it that can be called.
    BadCheckpointError
        The factory failed, or returned no `nn.Module`.
    """
    module_name, mark, factory_name = name.removeprefix("py:").rpartition(":")
    if not mark or not module_name or not factory_name:
        raise UnknownNameError(f"{name} names no factory. Write py:MODULE:FACTORY")
    try:
        with _current_folder_first():
            source = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownNameError(
            f"{name}: {module_name} cannot be imported ({error}). Start in its folder or install it"
        ) from error
    factory = getattr(source, factory_name, None)
    if not callable(factory):
        raise UnknownNameError(
            f"{name}: {module_name} has no function {factory_name}. It must return an nn.Module"
        )
    try:
        module = factory()
    except (Exception, SystemExit) as error:  # whatever the user's code raises, told in one line
        raise BadCheckpointError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise BadCheckpointError(f"{name} returned {type(module).__name__}, not an nn.Module")
    return module


@contextmanager
def _current_folder_first() -> Iterator[None]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
