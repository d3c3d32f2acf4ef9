"""Where images lie: a folder or a zip, seen in the same way.

Both give names with forward slashes and the bytes behind them. A folder around everything is taken off, if no image
lies directly in it: `export/cats/1.png` and `export/dogs/1.png` are `cats/1.png` and `dogs/1.png`.

**Folders.** Links to files and folders are followed, except a link to a folder that it lies in.

**Zips.** Nothing is unpacked to disk. `./cats/1.png` and `cats\\1.png` (as some programs on Windows pack) are
`cats/1.png`. Members are stored or deflated, as usual. What is read is bounded: no member may be larger than it says,
none larger than `MAX_BYTES`, and all together not more than `MAX_RATIO` times the zip, which no images are.
"""

import os
import re
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from companion.errors import DataError

T = TypeVar("T")

CAPTIONS = "captions.jsonl"
ENDINGS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
MAX_BYTES = 500_000_000
# Images are compressed already; a zip that unpacks to a hundred times its size is made to fill the memory or
# the time. A small one may.
MAX_RATIO = 100
MAX_RATIO_FROM = 1_000_000_000  # bytes
# Folders that lead to one another by links can be endless without a loop.
MAX_FOLDERS = 100_000
# What every program packs with. Python's reader of zips does not bound what a few bytes of the others unpack to.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK = 1 << 16  # bytes read at a time
# A name may have 65,535 bytes in a zip; messages show its ends.
SHOWN = 160


class Place(ABC):
    """A folder or a zip.

    Attributes:
        faults: what should have been a file or folder with images and is not, each with the reason.
    """

    faults: dict[str, str]

    @abstractmethod
    def names(self) -> list[str]:
        """The images and the file of captions, hidden ones left out."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file; raises OSError if it cannot be read or is too large."""


@contextmanager
def opened(path: Path) -> Iterator[Place]:
    """Opens a folder or a zip.

    Raises:
        FileNotFoundError: there is neither.
        DataError: the file is no zip, or the zip has members that nothing good has: a path that leads out of it, a
            symbolic link, no name, or the name of another.
    """
    if path.is_dir():
        yield _FolderPlace(path)
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or zip {path}.")
    try:
        if not path.is_file():
            raise OSError("it is no file")
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged tables of contents make it raise what it likes
        raise DataError(f"{path} is neither a folder nor a readable zip ({error}).") from error
    with archive:
        yield _ZipPlace(archive, path)


def shown(name: str) -> str:
    """A name as messages show it."""
    text = name.encode("utf-8", "backslashreplace").decode()
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]}…{text[-half:]}"


class _FolderPlace(Place):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults = {}
        found = {name: name for name in self._walk() if _matters(name.split("/"))}
        self.files = _without_wrapping_folder(found)

    def _walk(self) -> Iterator[str]:
        """The files at any depth, links followed."""
        waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        visited = 0
        while waiting:
            folder, around = waiting.pop()
            visited += 1
            if visited > MAX_FOLDERS:
                raise DataError(
                    f"{self.root} has more than {MAX_FOLDERS:,} folders, links followed, the last "
                    f"{shown(folder)}. Do links lead to one another?"
                )
            try:
                here = os.stat(self.root / folder)
                entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
            except OSError as error:
                self.faults[f"{folder}/"] = f"it cannot be listed: {error.strerror or error}"
                continue
            identity = (here.st_dev, here.st_ino)
            if identity in around:
                self.faults[f"{folder}/"] = "it is a link to a folder that it lies in"
                continue
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if _is_hidden([entry.name]):
                    continue
                kind = _kind(entry)
                if kind == "folder":
                    waiting.append((name, around | {identity}))
                elif kind == "file" and _is_text(name):
                    yield name
                elif _matters([entry.name]):
                    self.faults[shown(name)] = "its name is no UTF-8" if kind == "file" else kind

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str) -> bytes:
        with open(self.root / self.files[name], "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_bytes(size)
            return file.read(size)


def _kind(entry: os.DirEntry) -> str:
    """What a name in a folder stands for, links followed: "folder", "file", or the reason why it is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:  # links in a circle
        return f"it cannot be opened: {error.strerror or error}"
    return "it is a link to nothing" if entry.is_symlink() else "it is no file"


class _ZipPlace(Place):
    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive = archive
        self.faults = {}
        self.left = max(MAX_RATIO_FROM, MAX_RATIO * path.stat().st_size)
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = _name_inside(member, path)
            if name is None or not _matters(name.split("/")):
                continue
            if name in members:
                raise DataError(
                    f"the zip {path} has two members for {shown(name)}: "
                    f"{shown(members[name].orig_filename)!r} and {shown(member.orig_filename)!r}. "
                    "Rename one of them."
                )
            members[name] = member
        self.members = _without_wrapping_folder(members)

    def names(self) -> list[str]:
        return list(self.members)

    def read(self, name: str) -> bytes:
        member = self.members[name]
        _check_bytes(member.file_size)
        if member.file_size > self.left:
            raise OSError(f"the zip unpacks to more than {MAX_RATIO} times its size")
        if member.flag_bits & 1:
            raise OSError("it is encrypted")
        if member.compress_type not in COMPRESSIONS:
            kind = getattr(zipfile, "compressor_names", {}).get(
                member.compress_type, member.compress_type
            )
            raise OSError(f"its compression ({kind}) is not read; store or deflate it")
        try:
            data = self._read(member)
        except Exception as error:  # zlib.error, struct.error and what else damaged bytes lead to
            raise OSError(f"it cannot be unpacked: {error or type(error).__name__}") from error
        self.left -= len(data)
        return data

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        """Unpacks in small pieces: in one, a small member would grow without bound before it is cut."""
        pieces, size = [], 0
        with self.archive.open(member) as stream:
            while piece := stream.read(CHUNK):
                pieces.append(piece)
                size += len(piece)
        if size != member.file_size:
            raise OSError(f"{size:,} of {member.file_size:,} bytes are there")
        return b"".join(pieces)


def _name_inside(member: zipfile.ZipInfo, path: Path) -> str | None:
    """The name of a member with plain forward slashes, or None for a folder; refuses what nothing good has."""
    # `filename` is cut at a null byte and has this system's separators turned round; the original tells more.
    original = member.orig_filename
    name = original.replace("\\", "/")
    if name.endswith("/"):
        return None
    parts = name.split("/")
    kind = ""
    if ".." in parts or name.startswith("/") or "\0" in name or re.match(r"[A-Za-z]:", name):
        kind = "path that leads out of it"
    elif stat.S_ISLNK(member.external_attr >> 16):
        kind = "symbolic link"
    elif not _is_text(name):
        kind = "name that is no text"
    elif parts[-1] in ("", "."):
        kind = "member without a name"
    if kind:
        raise DataError(
            f"the zip {path} has a {kind}: {shown(original)!r}. Nothing was read; do not unpack it with other "
            "tools, and get a clean copy."
        )
    return "/".join(part for part in parts if part not in ("", "."))


def _without_wrapping_folder(files: dict[str, T]) -> dict[str, T]:
    """Takes off the folders that lie around everything, unless an image lies directly in one: that is a class."""
    parts = {name: name.split("/") for name in files}
    depth = 0
    while _is_around_everything(parts.values(), depth):
        depth += 1
    return {"/".join(parts[name][depth:]): file for name, file in files.items()}


def _is_around_everything(paths: Iterable[list[str]], depth: int) -> bool:
    """Whether all paths share their folder at this depth, and it holds folders or captions, no bare images."""
    folder, direct, captions = None, False, False
    for path in paths:
        if len(path) < depth + 2 or path[depth] != (folder := folder or path[depth]):
            return False
        if len(path) == depth + 2:
            captions |= path[-1] == CAPTIONS
            direct = True
    return folder is not None and (captions or not direct)


def _matters(parts: list[str]) -> bool:
    """Whether a path is that of an image or of captions, and nothing in it is hidden."""
    ending = os.path.splitext(parts[-1])[1].lower()
    return (ending in ENDINGS or parts[-1] == CAPTIONS) and not _is_hidden(parts)


def _is_hidden(parts: list[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
