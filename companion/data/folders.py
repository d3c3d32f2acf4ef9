"""Your own images: a folder or a zip of them.

Three layouts are understood:

- one sub-folder a class: `cats/1.png`, `cats/old/2.jpg`, `dogs/1.png` gives the classes "cats" and "dogs";
- flat with captions: images beside a file `captions.jsonl` with one line
  `{"file": "1.png", "caption": "a red three"}` an image, in UTF-8;
- flat without captions: one class, named after the folder.

Hidden files and files that are no images by their ending are passed over. `companion.data.places` says how a folder
or a zip is read, `companion.data.decoding` how an image becomes pixels.
"""

import json
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from companion.data.decoding import MAX_PIXELS, decode
from companion.data.images import CaptionedImages
from companion.data.places import CAPTIONS, ENDINGS, Place, opened, shown
from companion.errors import DataError, unknown_name

# Bytes of all images together. Whoever comes here has forgotten to give a size.
MAX_TOTAL = 32_000_000_000
# How many names an error message lists.
LISTED = 10


class UnreadableImageError(DataError):
    """Images in a folder or zip cannot be read."""


@dataclass(frozen=True, eq=False, repr=False)
class FolderImages(CaptionedImages):
    """Images of a folder or zip, with captions if there are any.

    Attributes:
        files: where each image comes from, relative to the folder.
        skipped: files that could not be used, each with the reason; empty unless `on_error="skip"`.
    """

    files: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def _take(self, positions: Int64[Tensor, " m"]) -> "FolderImages":
        return replace(
            super()._take(positions), files=tuple(self.files[i] for i in positions.tolist())
        )


def folder(
    path: str | PathLike[str],
    on_error: Literal["raise", "skip"] = "raise",
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> FolderImages:
    """Loads the images of a folder or a zip (layouts: see the module), sorted by class and then by name.

    Each image is cut and resized as it is read, so the memory is that of the result and of one image more.

    Args:
        path: a folder, or a file that is a zip.
        on_error: what to do about images that cannot be read: "raise" one error that names them all, or "skip"
            them with a warning and keep their names in `skipped`.
        size: rows and columns of the result, or one number for both. The largest part in the middle of each
            image that has this shape is cut out and resized with Pillow's bicubic filter, whose support grows
            when it shrinks, so that nothing is aliased. Without it all images must have one size.
        channels: 1 for grey (luma, ITU-R 601), 3 for RGB; if not given, 1 if all images are stored as grey or
            with a palette of greys, else 3.

    Raises:
        FileNotFoundError: there is no such folder or file.
        UnreadableImageError: images cannot be read, or a folder cannot; all are named.
        DataError: the file is no zip, or a zip has what nothing good has, such as a path that leads out of it
            (`companion.data.places.opened`), or there are no images, or too many bytes of them.
        ValueError: images of several sizes without `size`, captions that are no UTF-8, no JSON or fit no image,
            or a bad argument.
    """
    if on_error not in ("raise", "skip"):
        raise unknown_name("on_error", on_error, ("raise", "skip"))
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}.")
    shape = _shape(size)
    path = Path(path).expanduser()
    with opened(path) as place:
        images = _Images(path, channels, shape)
        names = sorted(name for name in place.names() if name.rsplit("/", 1)[-1] != CAPTIONS)
        if not names and not place.faults:
            endings = " ".join(sorted(ENDINGS))
            raise DataError(
                f"{path} holds no images; looked for files ending in {endings}, at any depth."
            )
        captions = _captions(place, path)
        faults = place.faults | _without_partner(names, captions)
        for name in names:
            if name in faults:
                continue
            try:
                pixels = decode(place.read(name), channels, shape)
            except Exception as error:  # decoders raise whatever they like on damaged bytes
                faults[name] = str(error) or type(error).__name__
            else:
                images.add(name, pixels)

    skipped = _skipped(path, names, faults, on_error)
    used = [name for name in names if name not in faults]
    images.check_one_size(used)
    classes, labels = _classes(used, captions, default=_name(path))
    order = sorted(range(len(used)), key=lambda i: (labels[i], used[i]))
    files = tuple(used[i] for i in order)
    return FolderImages(
        images=torch.from_numpy(images.stacked(files)),
        labels=torch.tensor([labels[i] for i in order], dtype=torch.int64),
        classes=classes,
        name=_name(path),
        split="all",
        files=files,
        captions=tuple(captions[name] for name in files) if captions is not None else (),
        skipped=skipped,
    )


class _Images:
    """The decoded images, kept as long as they can still become one array."""

    def __init__(self, path: Path, channels: int | None, shape: tuple[int, int] | None) -> None:
        self.path = path
        self.channels = channels
        self.shape = shape
        self.arrays: dict[str, UInt8[np.ndarray, "c h w"]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.total = 0

    def add(self, name: str, pixels: UInt8[np.ndarray, "c h w"]) -> None:
        self.sizes[name] = pixels.shape[1:]
        self.shape = self.shape or pixels.shape[1:]
        if self.shape != pixels.shape[1:] or len(self.arrays) < len(self.sizes) - 1:
            self.arrays.clear()  # only the sizes are wanted from now on, for the error
            return
        self.arrays[name] = pixels
        self.total += pixels.nbytes
        if self.total > MAX_TOTAL:
            raise DataError(
                f"the images in {self.path} take more than {MAX_TOTAL:,} bytes, and this is only "
                f"{len(self.arrays):,} of them. Pass a (smaller) size=…, for instance size=32."
            )

    def check_one_size(self, names: Sequence[str]) -> None:
        by_size: dict[tuple[int, int], list[str]] = {}
        for name in names:
            by_size.setdefault(self.sizes[name], []).append(name)
        if len(by_size) > 1:
            sizes = [
                f"{rows}×{columns} ({len(examples)}, such as {shown(examples[0])})"
                for (rows, columns), examples in sorted(
                    by_size.items(), key=lambda item: -len(item[1])
                )
            ]
            raise ValueError(
                f"the images in {self.path} have {len(by_size)} sizes (rows × columns): {_listing(sizes)}. "
                "Pass size=… to crop and resize them to one, for instance size=32."
            )

    def stacked(self, names: Sequence[str]) -> UInt8[np.ndarray, "n c h w"]:
        """Moves the images into one array."""
        most = max(len(self.arrays[name]) for name in names)
        result = np.empty(
            (len(names), self.channels or most, *self.sizes[names[0]]), dtype=np.uint8
        )
        for row, name in zip(result, names, strict=True):
            row[:] = self.arrays.pop(name)  # a grey one is copied to all three channels
        return result


def _without_partner(names: Sequence[str], captions: dict[str, str] | None) -> dict[str, str]:
    """Images without a caption and captions without an image, with the reason."""
    if captions is None:
        return {}
    known = set(names)
    return {n: "it has no caption" for n in names if n not in captions} | {
        n: f"{CAPTIONS} names it, but it is not there" for n in captions if n not in known
    }


def _skipped(
    path: Path, names: Sequence[str], faults: dict[str, str], on_error: Literal["raise", "skip"]
) -> tuple[str, ...]:
    """Raises if there are faults, or warns and returns all of them."""
    faulty = [f"{shown(name)} ({reason})" for name, reason in sorted(faults.items())]
    if not faulty:
        return ()
    used = sum(name not in faults for name in names)
    message = f"{len(faulty)} of the images in {path} cannot be used: {_listing(faulty)}"
    if on_error == "raise" or not used:
        rest = f'on_error="skip" uses the other {used}.' if used else "There are no others."
        raise UnreadableImageError(f"{message}. Replace or remove them; {rest}")
    warnings.warn(f"{message}. The other {used} are used.", stacklevel=3)
    return tuple(faulty)


def _name(path: Path) -> str:
    """The name of a folder, or of a zip without its ending."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name[: -len(".zip")] if name.lower().endswith(".zip") and path.is_file() else name


def _shape(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    try:
        rows, columns = map(operator.index, size if isinstance(size, (tuple, list)) else [size] * 2)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size must be rows and columns in whole pixels, got {size!r}.") from error
    if rows < 1 or columns < 1:
        raise ValueError(f"size must be positive rows and columns, got {size}.")
    if rows * columns > MAX_PIXELS:
        raise ValueError(f"size must have at most {MAX_PIXELS:,} pixels, got {size}.")
    return rows, columns


def _classes(
    names: Sequence[str], captions: dict[str, str] | None, default: str
) -> tuple[tuple[str, ...], list[int]]:
    """Returns the classes and the label of each file: the first folder of its path, unless captioned."""
    if captions is not None or all("/" not in name for name in names):
        return (default,), [0] * len(names)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"some images lie in class folders and others beside them: {_listing([*map(shown, loose)])}. "
            f"Move them into a class, or describe all images in {CAPTIONS}."
        )
    of_each = [name.split("/", 1)[0] for name in names]
    classes = tuple(sorted(set(of_each)))
    number = {name: k for k, name in enumerate(classes)}
    return classes, [number[name] for name in of_each]


def _captions(place: Place, path: Path) -> dict[str, str] | None:
    """Returns the caption of each file, or nothing if there is no file of captions."""
    if CAPTIONS not in place.names():
        return None
    try:
        data = place.read(CAPTIONS)
    except OSError as error:
        raise DataError(f"{CAPTIONS} in {path} cannot be read ({error}).") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{CAPTIONS} in {path} must be text in UTF-8, and is not from byte {error.start} on. "
            "Store it as UTF-8."
        ) from error
    captions: dict[str, str] = {}
    # Not splitlines(): JSON may have other line breaks, such as U+2028, inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        file, caption = _caption(line, f"{CAPTIONS}, line {number}")
        if file in captions:
            raise ValueError(f"{CAPTIONS}, line {number} describes {file!r} a second time.")
        captions[file] = caption
    return captions


def _caption(line: str, where: str) -> tuple[str, str]:
    """Returns the file and the caption of one line."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise ValueError(f"{where} is not JSON: {error}.") from error
    named = isinstance(entry, dict) and isinstance(entry.get("file"), str)
    if not named or not isinstance(entry.get("caption"), str):
        raise ValueError(f'{where} must be {{"file": "…", "caption": "…"}}, got {line[:100]!r}.')
    try:
        f"{entry['file']}{entry['caption']}".encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has half a character: {line[:100]!r}.") from error
    return entry["file"], entry["caption"]


def _listing(items: Sequence[str]) -> str:
    shown_ = ", ".join(items[:LISTED])
    return shown_ if len(items) <= LISTED else f"{shown_} and {len(items) - LISTED} more"
