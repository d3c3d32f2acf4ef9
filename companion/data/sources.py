"""The image datasets that there are, and which of them are on disk; nothing here needs torch."""

from typing import Literal

from companion.data.downloads import SOURCES, cache_folder

# These are made of what comes with a package that is installed anyway; the others are downloaded.
EMBEDDED = ("digits", "scenes")
# Scenes of digits that are downloaded.
MADE_OF = {"mnist_scenes": "mnist"}
DATASETS = (*EMBEDDED, *SOURCES, *MADE_OF)

# The digits in words, which are the classes of scenes.
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SPLITS = ("train", "test")
# Scenes have a third: pairs of a colour and a digit that no training scene has (`companion.data.scenes`).
SCENE_SPLITS = (*SPLITS, "composition")


def is_scenes(name: str) -> bool:
    """Says whether a dataset is one of captioned scenes."""
    return name == "scenes" or name in MADE_OF


def splits_of(name: str) -> tuple[str, ...]:
    """Returns the splits of a dataset."""
    return SCENE_SPLITS if is_scenes(name) else SPLITS


def kind_of(name: str) -> Literal["digits", "images"]:
    """Returns the kind of a dataset's images (`ImageDataset.kind`), which say it themselves once they are loaded."""
    if is_scenes(name):
        return "images"
    return SOURCES[name].kind if name in SOURCES else "digits"


def classes_of(name: str) -> tuple[str, ...]:
    """Returns the names of a dataset's classes."""
    if is_scenes(name):
        return DIGITS
    return SOURCES[name].classes if name in SOURCES else tuple("0123456789")


def embedded(name: str) -> bool:
    """Says whether a dataset comes with the package, so that nothing has to be downloaded."""
    return name in EMBEDDED


def downloaded(name: str) -> bool:
    """Says whether all files of a dataset are in the data folder (not whether they are intact)."""
    source = MADE_OF.get(name, name)
    folder = cache_folder() / source
    files = {r.file for split in SOURCES[source].splits.values() for r in split}
    return all((folder / f).is_file() or (folder / f.removesuffix(".gz")).is_file() for f in files)
