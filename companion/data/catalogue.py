"""The image datasets by name."""

from dataclasses import replace
from os import PathLike

import torch

from companion.data import digits, scenes
from companion.data.downloads import SOURCES, read_split
from companion.data.images import ImageDataset
from companion.data.sources import DATASETS, MADE_OF, SPLITS, splits_of
from companion.errors import unknown_name

__all__ = ["SPLITS", "load"]

# Scenes that `load` makes: of the 4,000 embedded digits, of the 59,000 of MNIST to train on, and to measure on.
SCENES = 50_000
MNIST_SCENES = 100_000
TEST_SCENES = 2_000


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
    | `scenes` | colour 32×32 with captions, 10 classes | 50,000 / 2,000 | made of `digits` in seconds, no download |
    | `mnist` | grey 28×28, 10 classes | 60,000 / 10,000 | 11 MB, downloaded once |
    | `fashion_mnist` | grey 28×28, 10 classes | 60,000 / 10,000 | 30 MB, downloaded once |
    | `cifar10` | colour 32×32, 10 classes | 50,000 / 10,000 | 170 MB, downloaded once |

    | `mnist_scenes` | as `scenes` | 100,000 / 2,000 | made of `mnist`, 11 MB |

    `companion.data.scenes` describes the scenes and makes as many as you like; here they are those of seed 0. They
    have a third split, "composition": 2,000 scenes with pairs of a colour and a digit that no training scene has.
    Those to measure on are the same for both.

    All `digits` are also training images of `mnist`; whoever trains on `mnist` and measures on `digits` "test"
    leaves the held-out ones out (`companion.data.is_held_out`).

    Args:
        name: which dataset.
        split: "train" or "test"; of scenes also "composition".
        root: the folder with downloaded datasets; `$COMPANION_DATA` if not given, and the user's cache folder if
            that is not set. `digits` and `scenes` need none.
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
    if split not in splits_of(name):
        raise unknown_name("split", split, splits_of(name))
    if name == "digits":
        return digits.load_digits(split)
    if name == "scenes":
        return scenes.scenes(split, SCENES if split == "train" else TEST_SCENES)
    if name in MADE_OF:
        return _scenes_of(name, split, root, download)
    source, (images, labels) = SOURCES[name], read_split(name, split, root, download)
    return ImageDataset(
        images=torch.from_numpy(images.copy()),
        labels=torch.from_numpy(labels),
        classes=source.classes,
        name=name,
        split=split,
        kind=source.kind,
    )


def _scenes_of(
    name: str, split: str, root: str | PathLike[str] | None, download: bool
) -> ImageDataset:
    """Returns scenes of downloaded digits; those to measure on are of the held-out digits, as all are."""
    if split != "train":
        return replace(load("scenes", split), name=name)
    source = load(MADE_OF[name], "train", root=root, download=download)
    usable = source[~digits.is_held_out(source.images)]
    return replace(scenes.scenes("train", MNIST_SCENES, digits=usable), name=name)
