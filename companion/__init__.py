"""The models, data and metrics of the book *Generative Models, Measured*.

Everything that a chapter builds in a few visible lines lives here in its full form, typed, tested and ready
to import. `companion.data.load` gives images, `companion.metrics` measures, `load_checkpoint` gives trained
networks; each chapter of the book names the module that goes with it.
"""

from companion.checkpoints import load_checkpoint
from companion.devices import default_device

__version__ = "0.1.0"

__all__ = ["__version__", "default_device", "load_checkpoint"]
