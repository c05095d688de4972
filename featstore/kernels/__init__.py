"""Pure array functions; of featstore they import `backend` and `cuda` alone.

Each module is loaded when it is first used: `featstore.kernels.ridge.solve_ridge`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

__all__ = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
)


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module 'featstore.kernels' has no attribute {name!r}")
    return import_module(f"featstore.kernels.{name}")
