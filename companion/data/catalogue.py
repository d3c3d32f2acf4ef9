"""The image datasets by name."""

from os import PathLike

import torch

from companion.data import digits, scenes
from companion.data.downloads import SOURCES, read_split
from companion.data.images import ImageDataset
from companion.data.sources import DATASETS, embedded
from companion.errors import unknown_name

SPLITS = ("train", "test")


def load(
    name: str,
    split: str = "train",
    *,
    root: str | PathLike[str] | None = None,
    download: bool = True,
) -> ImageDataset:
    """Loads a dataset by name.

    | name | images | train / test | where from |
    |---|---|---|---|
    | `digits` | grey 28×28, 10 classes | 4,000 / 1,000 | embedded, no download |
    | `scenes` | colour 32×32 with captions | 50,000 / 5,000 | made of `digits` (`companion.data.scenes`) |
    | `mnist` | grey 28×28, 10 classes | 60,000 / 10,000 | 11 MB, downloaded once |
    | `fashion_mnist` | grey 28×28, 10 classes | 60,000 / 10,000 | 30 MB, downloaded once |
    | `cifar10` | colour 32×32, 10 classes | 50,000 / 10,000 | 170 MB, downloaded once |

    All `digits` are also training images of `mnist`; whoever trains on `mnist` and measures on `digits` "test"
    leaves the held-out ones out (`companion.data.is_held_out`). `scenes` have a third split, "composition": 5,000
    scenes with pairs of colour and digit that no training scene has.

    Args:
        name: which dataset.
        split: "train" or "test"; for `scenes` also "composition".
        root: the folder with downloaded datasets; `$COMPANION_DATA` if not given, and the user's cache folder if
            that is not set. `digits` needs none.
        download: whether missing or corrupt files may be fetched from the internet.

    Raises:
        ValueError: there is no dataset or split of that name; the message suggests the nearest.
        DownloadError: files are missing and cannot be downloaded; the message says which to put where.
        CorruptFileError: a file in the cache is not what was published, and `download` is false.
    """
    if name not in DATASETS:
        raise unknown_name(
            "dataset", name, DATASETS, "Your own images: companion.data.folder(path)."
        )
    splits = scenes.SPLITS if name == "scenes" else SPLITS
    if split not in splits:
        raise unknown_name("split", split, splits)
    if name == "scenes":
        return scenes.scenes(split)
    if embedded(name):
        return digits.load_digits(split)
    source, (images, labels) = SOURCES[name], read_split(name, split, root, download)
    return ImageDataset(
        images=torch.from_numpy(images.copy()),
        labels=torch.from_numpy(labels),
        classes=source.classes,
        name=name,
        split=split,
        kind=source.kind,
    )
