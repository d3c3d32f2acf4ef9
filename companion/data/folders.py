"""Your own images: a folder or a zip of them.

Three layouts are understood:

- one sub-folder a class: `cats/1.png`, `cats/old/2.jpg`, `dogs/1.png` gives the classes "cats" and "dogs";
- flat with captions: images beside a file `captions.jsonl` with one line
  `{"file": "1.png", "caption": "a red three"}` an image;
- flat without captions: one class, named after the folder.

Hidden files and files that are no images by their ending are passed over. A zip is read in memory and never
unpacked to disk; a wrapping folder around everything in it is taken off.
"""

import io
import json
import stat
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image, ImageOps
from torch import Tensor

from companion.data.downloads import DataError
from companion.data.images import ImageDataset
from companion.errors import unknown_name

ENDINGS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
CAPTIONS = "captions.jsonl"
# Larger than any photograph for a model of this book; a small file that claims more is an attack or an accident.
MAX_PIXELS = 100_000_000
MAX_BYTES = 500_000_000
# How many names an error message lists.
LISTED = 10


class UnreadableImageError(DataError):
    """Images in a folder or zip cannot be read."""


@dataclass(frozen=True, eq=False, repr=False)
class FolderImages(ImageDataset):
    """Images of a folder or zip.

    Attributes:
        files: where each image comes from, relative to the folder.
        captions: the text of each image, or empty if there are none.
        skipped: files that could not be used, each with the reason; empty unless `on_error="skip"`.
    """

    files: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def _take(self, positions: Int64[Tensor, " m"]) -> "FolderImages":
        chosen = positions.tolist()
        return replace(
            super()._take(positions),
            files=tuple(self.files[i] for i in chosen),
            captions=tuple(self.captions[i] for i in chosen) if self.captions else (),
        )


def folder(
    path: str | PathLike[str],
    on_error: Literal["raise", "skip"] = "raise",
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> FolderImages:
    """Loads the images of a folder or a zip (layouts: see the module), sorted by class and then by name.

    Photographs are turned upright by their EXIF orientation, transparent pixels are laid on white, and of an
    animation the first frame is used.

    Args:
        path: a folder, or a file that is a zip.
        on_error: what to do about images that cannot be read: "raise" one error that names them all, or "skip"
            them with a warning and keep their names in `skipped`.
        size: rows and columns of the result, or one number for both. The largest part in the middle of each
            image that has this shape is cut out and resized with Pillow's bicubic filter, whose support grows
            when it shrinks, so that nothing is aliased. Without it all images must have one size.
        channels: 1 for grey (luma, ITU-R 601), 3 for RGB; 1 if all images are grey, else 3, if not given.

    Raises:
        FileNotFoundError: there is no such folder or file.
        UnreadableImageError: images cannot be read; all are named.
        DataError: the file is no zip, or a zip has a path that leads out of it, or there are no images.
        ValueError: images of several sizes without `size`, captions that fit no image, or a bad argument.
    """
    if on_error not in ("raise", "skip"):
        raise unknown_name("on_error", on_error, ("raise", "skip"))
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}.")
    shape = _shape(size)
    path = Path(path).expanduser()
    with _open(path) as place:
        names = sorted(name for name in place.names() if _is_image(name))
        if not names:
            endings = " ".join(sorted(ENDINGS))
            raise DataError(
                f"{path} holds no images; looked for files ending in {endings}, at any depth."
            )
        captions = _captions(place)
        pictures, faults = _read_all(place, names)

    if captions is not None:
        faults |= {n: "it has no caption" for n in names if n not in captions and n not in faults}
        faults |= {
            n: f"{CAPTIONS} names it, but it is not there" for n in captions if n not in names
        }
    faulty = [f"{name} ({reason})" for name, reason in sorted(faults.items())]
    used = [name for name in names if name not in faults]
    if faulty:
        message = f"{len(faulty)} of the images in {path} cannot be used: {_listing(faulty)}"
        if on_error == "raise" or not used:
            rest = (
                f'on_error="skip" uses the other {len(used)}.' if used else "There are no others."
            )
            raise UnreadableImageError(f"{message}. Replace or remove them; {rest}")
        warnings.warn(f"{message}. The other {len(used)} are used.", stacklevel=2)

    classes, labels = _classes(used, captions, default=path.stem)
    order = sorted(range(len(used)), key=lambda i: (labels[i], used[i]))
    wanted = channels or (1 if all(_is_grey(pictures[name]) for name in used) else 3)
    arrays = [_array(pictures[used[i]], wanted, shape) for i in order]
    _check_one_size(path, [used[i] for i in order], arrays)
    return FolderImages(
        images=torch.from_numpy(np.stack(arrays)),
        labels=torch.tensor([labels[i] for i in order], dtype=torch.int64),
        classes=classes,
        name=path.stem,
        split="all",
        files=tuple(used[i] for i in order),
        captions=tuple(captions[used[i]] for i in order) if captions is not None else (),
        skipped=tuple(faulty),
    )


# --- Where the files are ----------------------------------------------------------------------------------


class _Place(ABC):
    """A folder or a zip: names with forward slashes, and their bytes."""

    @abstractmethod
    def names(self) -> list[str]:
        """The files, hidden ones left out."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file; raises OSError if it cannot be read or is too large."""


class _FolderPlace(_Place):
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        found = (p.relative_to(self.root) for p in self.root.rglob("*") if p.is_file())
        return [p.as_posix() for p in found if not _is_hidden(p.parts)]

    def read(self, name: str) -> bytes:
        path = self.root / name
        _check_bytes(path.stat().st_size)
        return path.read_bytes()


class _ZipPlace(_Place):
    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.archive = archive
        self.members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            if member.is_dir():
                continue
            _check_inside(member, path)
            if not _is_hidden(PurePosixPath(member.filename).parts):
                self.members[member.filename] = member
        self._take_off_wrapping_folder()

    def _take_off_wrapping_folder(self) -> None:
        """Drops a first part that all paths share, unless it is the only folder and so names a class."""
        while True:
            parts = {name: PurePosixPath(name).parts for name in self.members}
            first = {p[0] for p in parts.values()}
            deeper = any(len(p) > 2 for p in parts.values()) or any(
                p[1:] == (CAPTIONS,) for p in parts.values()
            )
            if len(first) != 1 or not deeper or any(len(p) < 2 for p in parts.values()):
                return
            self.members = {
                "/".join(parts[name][1:]): member for name, member in self.members.items()
            }

    def names(self) -> list[str]:
        return list(self.members)

    def read(self, name: str) -> bytes:
        member = self.members[name]
        _check_bytes(member.file_size)
        try:
            return self.archive.read(member)
        except (
            zipfile.BadZipFile,
            RuntimeError,
            NotImplementedError,
            EOFError,
            ValueError,
        ) as error:
            # RuntimeError: it is encrypted; NotImplementedError: an unknown compression.
            raise OSError(str(error)) from error
        except Exception as error:  # zlib.error, lzma.LZMAError and what other decompressors raise
            raise OSError(f"it cannot be decompressed: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[_Place]:
    if path.is_dir():
        yield _FolderPlace(path)
        return
    if not path.exists():
        raise FileNotFoundError(f"there is no folder or zip {path}.")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is neither a folder nor a readable zip ({error}).") from error
    with archive:
        yield _ZipPlace(archive, path)


def _check_inside(member: zipfile.ZipInfo, path: Path) -> None:
    """Refuses a member that would lie outside the folder that the zip stands for, and links."""
    name = member.filename
    # `filename` is cut at a null byte and has this system's separators turned round; the original tells more.
    original = member.orig_filename
    leads_out = (
        ".." in PurePosixPath(name.replace("\\", "/")).parts
        or name.startswith(("/", "\\"))
        or "\\" in original
        or "\0" in original
        or original[1:2] == ":"
    )
    if leads_out or stat.S_ISLNK(member.external_attr >> 16):
        kind = "path that leads out of it" if leads_out else "symbolic link"
        raise DataError(
            f"the zip {path} has a {kind}: {original!r}. Nothing was read; do not unpack it with other tools, "
            "and get a clean copy."
        )


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in ENDINGS


# --- From files to arrays ---------------------------------------------------------------------------------


def _read_all(place: _Place, names: Sequence[str]) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Returns the decoded images, and for each that cannot be read the reason."""
    pictures, faults = {}, {}
    for name in names:
        try:
            pictures[name] = _decode(place.read(name))
        except Exception as error:  # decoders raise whatever they like on damaged bytes
            faults[name] = str(error) or type(error).__name__
    return pictures, faults


def _decode(data: bytes) -> Image.Image:
    """Decodes an image to mode L or RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; the size is checked here
        try:
            image = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError as error:
            raise OSError("not an image in a known format") from error
        if image.width * image.height > MAX_PIXELS:
            raise OSError(f"it has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
        image.load()
        if image.mode.startswith(("I", "F")):
            raise OSError(f"its pixels are {image.mode}, and only 8 bits a channel are understood")
        grey = image.mode in ("1", "L", "LA", "La")
        if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
            image = ImageOps.exif_transpose(image).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        else:
            image = ImageOps.exif_transpose(image)
        return image.convert("L" if grey else "RGB")


def _is_grey(image: Image.Image) -> bool:
    return image.mode == "L"


def _array(image: Image.Image, channels: int, shape: tuple[int, int] | None) -> np.ndarray:
    """Returns bytes "c h w"."""
    image = image.convert("L" if channels == 1 else "RGB")
    if shape is not None and (image.height, image.width) != shape:
        image = ImageOps.fit(image, (shape[1], shape[0]), method=Image.Resampling.BICUBIC)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _shape(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows < 1 or columns < 1:
        raise ValueError(f"size must be positive rows and columns, got {size}.")
    return rows, columns


def _check_one_size(path: Path, names: Sequence[str], arrays: Sequence[np.ndarray]) -> None:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, array in zip(names, arrays, strict=True):
        by_size.setdefault(array.shape[1:], []).append(name)
    if len(by_size) > 1:
        sizes = [
            f"{rows}×{columns} ({len(examples)}, such as {examples[0]})"
            for (rows, columns), examples in sorted(by_size.items(), key=lambda item: -len(item[1]))
        ]
        raise ValueError(
            f"the images in {path} have {len(by_size)} sizes (rows × columns): {_listing(sizes)}. "
            "Pass size=… to crop and resize them to one, for instance size=32."
        )


def _classes(
    names: Sequence[str], captions: dict[str, str] | None, default: str
) -> tuple[tuple[str, ...], list[int]]:
    """Returns the classes and the label of each file: the first folder of its path, unless captioned."""
    if captions is not None or all("/" not in name for name in names):
        return (default,), [0] * len(names)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"some images lie in class folders and others beside them: {_listing(loose)}. "
            f"Move them into a class, or describe all images in {CAPTIONS}."
        )
    of_each = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(of_each)))
    return classes, [classes.index(name) for name in of_each]


def _captions(place: _Place) -> dict[str, str] | None:
    """Returns the caption of each file, or nothing if there is no file of captions."""
    if CAPTIONS not in place.names():
        return None
    captions: dict[str, str] = {}
    for number, line in enumerate(place.read(CAPTIONS).decode("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{CAPTIONS}, line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}.") from error
        named = isinstance(entry, dict) and isinstance(entry.get("file"), str)
        if not named or not isinstance(entry.get("caption"), str):
            raise ValueError(
                f'{where} must be {{"file": "…", "caption": "…"}}, got {line[:100]!r}.'
            )
        if entry["file"] in captions:
            raise ValueError(f"{where} describes {entry['file']!r} a second time.")
        captions[entry["file"]] = entry["caption"]
    return captions


def _listing(items: Sequence[str]) -> str:
    shown = ", ".join(items[:LISTED])
    return shown if len(items) <= LISTED else f"{shown} and {len(items) - LISTED} more"
