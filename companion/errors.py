"""Errors that name the thing, the value and the remedy."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str], remedy: str = "") -> ValueError:
    """Builds the error for a name that does not exist, with the nearest one that does.

    Args:
        kind: what the name stands for, such as "dataset" or "checkpoint".
        name: the name as the user gave it.
        known: the names that exist.
        remedy: a sentence that says what else the user can do, or nothing.

    Returns:
        A `ValueError`, to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(names) if names else "none"
    tail = f" {remedy}" if remedy else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known: {listing}.{tail}")


class DataError(OSError):
    """Data is missing, unreachable or not what it should be."""


class CorruptFileError(DataError):
    """A file does not hold the content that was published."""


class DownloadError(DataError):
    """Files are neither in the cache nor to be had from any mirror."""
