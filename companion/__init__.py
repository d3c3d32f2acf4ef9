"""The models, data and metrics of the book *Generative Models, Measured*.

Everything that a chapter builds in a few visible lines lives here in its full form, typed, tested and ready
to import. `companion.data.load` gives images, `companion.metrics` measures, `load_checkpoint` gives trained
networks; each chapter of the book names the module that goes with it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion.checkpoints.weights import load_checkpoint
    from companion.devices import default_device

__version__ = "0.1.0"

__all__ = ["__version__", "default_device", "load_checkpoint"]

# Where each name lives: torch is imported with the first that needs it, and not to print a version.
_HOMES = {
    "default_device": "companion.devices",
    "load_checkpoint": "companion.checkpoints.weights",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
