"""Data: real images, real text, and toys whose density is known.

>>> from companion import data
>>> digits = data.load("digits")                 # 4,000 real digits, no download
>>> batch = digits[:64].floats()                 # float32 "64 1 28 28" in [-1, 1]
>>> photos = data.photographs()                  # {"astronaut": uint8 "3 512 512", …}
>>> ring = data.toy.RingOfGaussians()            # .sample(n, generator), .log_prob(x)
>>> documents = data.standard_library_text()     # documentation of Python's standard library
>>> mine = data.folder("holiday.zip", size=32)   # your own images

Nothing is imported before it is asked for: the names of the datasets alone do not cost what PyTorch does.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from companion.data import toy
    from companion.data.batch import Batch
    from companion.data.catalogue import SPLITS, load
    from companion.data.digits import is_held_out
    from companion.data.folders import FolderImages, UnreadableImageError, folder
    from companion.data.images import ImageDataset, to_float, to_uint8
    from companion.data.photos import photographs
    from companion.data.sources import DATASETS
    from companion.data.text import Document, standard_library_text
    from companion.errors import CorruptFileError, DataError, DownloadError

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "CorruptFileError",
    "DataError",
    "Document",
    "DownloadError",
    "FolderImages",
    "ImageDataset",
    "UnreadableImageError",
    "folder",
    "is_held_out",
    "load",
    "photographs",
    "standard_library_text",
    "to_float",
    "to_uint8",
    "toy",
]

# Where each name lives.
_HOMES = {
    "DATASETS": "companion.data.sources",
    "SPLITS": "companion.data.catalogue",
    "Batch": "companion.data.batch",
    "CorruptFileError": "companion.errors",
    "DataError": "companion.errors",
    "Document": "companion.data.text",
    "DownloadError": "companion.errors",
    "FolderImages": "companion.data.folders",
    "ImageDataset": "companion.data.images",
    "UnreadableImageError": "companion.data.folders",
    "folder": "companion.data.folders",
    "is_held_out": "companion.data.digits",
    "load": "companion.data.catalogue",
    "photographs": "companion.data.photos",
    "standard_library_text": "companion.data.text",
    "to_float": "companion.data.images",
    "to_uint8": "companion.data.images",
}


def __getattr__(name: str) -> object:
    if name == "toy":
        return importlib.import_module("companion.data.toy")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
