"""The image datasets by name."""

from os import PathLike

from companion.data import digits
from companion.data.images import ImageDataset
from companion.errors import unknown_name

DATASETS = ("digits",)
SPLITS = ("train", "test")


def load(
    name: str,
    split: str = "train",
    *,
    root: str | PathLike[str] | None = None,
    download: bool = True,
) -> ImageDataset:
    """Loads a dataset by name.

    Raises:
        ValueError: there is no dataset or split of that name; the message suggests the nearest.
    """
    if name not in DATASETS:
        raise unknown_name(
            "dataset", name, DATASETS, "Your own images: companion.data.folder(path)."
        )
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return digits.load_digits(split)
