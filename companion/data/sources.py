"""The image datasets that there are, and which of them are on disk; nothing here needs torch."""

from typing import Literal

from companion.data.downloads import SOURCES, cache_folder

# `digits` come with a package that is installed anyway, and `scenes` are made of them; the others are downloaded.
DATASETS = ("digits", "scenes", *SOURCES)


def kind_of(name: str) -> Literal["digits", "images"]:
    """Returns the kind of a dataset's images (`ImageDataset.kind`), which say it themselves once they are loaded."""
    if name in SOURCES:
        return SOURCES[name].kind
    return "digits" if name == "digits" else "images"


def embedded(name: str) -> bool:
    """Says whether a dataset comes with the package, so that nothing has to be downloaded."""
    return name not in SOURCES


def downloaded(name: str) -> bool:
    """Says whether all files of a dataset are in the data folder (not whether they are intact)."""
    folder = cache_folder() / name
    files = {r.file for split in SOURCES[name].splits.values() for r in split}
    return all((folder / f).is_file() or (folder / f.removesuffix(".gz")).is_file() for f in files)
