"""Data: real images, real text, and toys whose density is known.

>>> from companion import data
>>> digits = data.load("digits")                 # 4,000 real digits, no download
>>> batch = digits[:64].floats()                 # float32 "64 1 28 28" in [-1, 1]
>>> photos = data.photographs()                  # {"astronaut": uint8 "3 512 512", …}
>>> ring = data.toy.RingOfGaussians()            # .sample(n, generator), .log_prob(x)
>>> documents = data.standard_library_text()     # documentation of Python's standard library
>>> scenes = data.load("scenes")                 # coloured digits, "a red three left of a blue seven"
>>> mine = data.folder("holiday.zip", size=32)   # your own images

Nothing is imported before it is asked for: the names of the datasets alone do not cost what PyTorch does.
"""

from typing import TYPE_CHECKING

from companion.faces import make_lazy

if TYPE_CHECKING:
    from companion.data import scenes, toy
    from companion.data.batch import Batch
    from companion.data.catalogue import SPLITS, load
    from companion.data.digits import is_held_out
    from companion.data.folders import FolderImages, UnreadableImageError, folder
    from companion.data.images import CaptionedImages, ImageDataset, to_float, to_uint8
    from companion.data.photographs import photographs
    from companion.data.sources import DATASETS
    from companion.data.text import Document, standard_library_text
    from companion.errors import CorruptFileError, DataError, DownloadError

__all__ = [
    "DATASETS",
    "SPLITS",
    "Batch",
    "CaptionedImages",
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
    "scenes",
    "standard_library_text",
    "to_float",
    "to_uint8",
    "toy",
]

make_lazy(__name__)
