"""`companion fetch`."""

from collections.abc import Sequence
from dataclasses import dataclass

from companion.cli import DONE
from companion.cli.flags import options, subjects, wants_help
from companion.data.downloads import cache_folder
from companion.data.sources import DATASETS, MADE_OF, embedded
from companion.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """There are none."""


ABOUT = """Downloads a data set, verifies it and keeps it for later, in the folder that COMPANION_DATA names or in the
user's cache folder.

example: companion fetch mnist

data sets: """ + ", ".join(DATASETS)


def run(arguments: Sequence[str]) -> int:
    """Runs `companion fetch`."""
    prog = "companion fetch DATASET"
    if wants_help(arguments):
        options(FetchOptions(), ["--help"], prog, ABOUT)
    (name,), rest = subjects(arguments, prog)
    options(FetchOptions(), rest, prog, ABOUT)
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)

    from companion.data import load

    train, test = load(name, "train"), load(name, "test")
    where = (
        "the package itself; nothing to download"
        if embedded(name)
        else cache_folder() / MADE_OF.get(name, name)
    )
    print(f"{name}: {len(train):,} training and {len(test):,} test images, from {where}")
    return DONE
