"""A seeded mutator of files, and the check that every format of `companion.data` is held to.

Whatever bytes come, reading ends with the right data or with an error that the function documents, in bounded
memory. `tests/data/test_fuzz.py` tries 500 inputs a format, `tests/bench/test_fuzz_data.py` 10,000.
"""

import gzip
import hashlib
import io
import json
import random
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from companion.data import folder
from companion.data.downloads import Content, Resource, fetch, parse_idx
from companion.errors import CorruptFileError, DataError

MOST_MEMORY = 40_000_000  # bytes that Python may hold while it reads files of some hundred bytes
# What a number may become that says how long something is.
LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 31)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Changes a file in one to four places."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        how = rng.randrange(8)
        if how == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif how == 1 and content:
            content[at % len(content)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2:
            del content[at:]
        elif how == 3:
            del content[at : at + rng.randint(1, 16)]
        elif how == 4:
            content[at:at] = rng.randbytes(rng.randint(1, 16))
        elif how == 5:
            content[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(LENGTHS))
        elif how == 6:
            start = rng.randrange(len(content) + 1)
            content[at:at] = content[start : start + rng.randint(1, 64)]
        else:
            content[at:at] = bytes([rng.randrange(256)]) * rng.randint(1, 300)
    return bytes(content)


@dataclass(frozen=True)
class Format:
    """A kind of file: sound ones, and how one is read.

    Attributes:
        seeds: sound files.
        read: reads one of them, or something like it, in an empty folder. It raises nothing but `allowed`, and
            itself asserts that what it has read is not wrong.
        allowed: the errors that are documented.
        pack: what is done to a file after it was changed, such as packing it.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[bytes, Path], None]
    allowed: tuple[type[Exception], ...]
    pack: Callable[[bytes], bytes] = bytes


def attack(kind: Format, count: int, seed: int, folder_: Path) -> dict[str, int]:
    """Reads changed files and returns how many were read and how many refused; anything else is an error."""
    rng = random.Random(seed)
    outcomes = {"read": 0, "refused": 0}
    for number in range(count):
        content = kind.pack(mutated(rng.choice(kind.seeds), rng))
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # skipped images, zips with odd names
                kind.read(content, folder_)
            outcomes["read"] += 1
        except kind.allowed:
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}: {content!r}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MOST_MEMORY, f"input {number} of seed {seed}: {peak:,} bytes for {content!r}"
    return outcomes


# --- Images -----------------------------------------------------------------------------------------------

_RNG = np.random.default_rng(0)
_PIXELS = _RNG.integers(0, 256, (5, 4, 3)).astype(np.uint8)


def _saved(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(_PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _deep_png() -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write."""
    values = _RNG.integers(0, 65536, (5, 4, 3)).astype(">u2")
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    head = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c))
        for name, c in ((b"IHDR", head), (b"IDAT", lines), (b"IEND", b""))
    )


IMAGES = {
    "a.png": _saved("PNG"),
    "b.png": _deep_png(),
    "c.png": _saved("PNG", Image.fromarray(_PIXELS).convert("P")),
    "d.gif": _saved("GIF"),
    "e.jpg": _saved("JPEG", exif=_exif()),
    "f.bmp": _saved("BMP"),
    "g.ppm": _saved("PPM"),
    "h.tif": _saved("TIFF", compression="tiff_lzw"),
    "i.tif": _saved("TIFF"),
    "j.webp": _saved("WEBP", lossless=True),
}


def _sound(ds: object, count: int) -> None:
    assert ds.images.shape[2:] == (3, 3)
    assert len(ds) + len(ds.skipped) >= 1
    assert len(ds.files) == len(ds.labels) == len(ds.images) <= count
    assert all("\\" not in f and not f.startswith(("/", "../", "./")) for f in ds.files)


def _read_image(content: bytes, place: Path) -> None:
    (place / "changed.png").write_bytes(content)
    _sound(folder(place, size=3), 1)


# --- Zips and captions ------------------------------------------------------------------------------------


def _zip(files: dict[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression=compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


_TWO = {"cats/a.png": IMAGES["a.png"], "dogs/b.bmp": IMAGES["f.bmp"]}
_CAPTIONED = {
    "a.png": IMAGES["a.png"],
    "captions.jsonl": '{"file": "a.png", "caption": "grün"}'.encode(),
}


def _read_zip(content: bytes, place: Path) -> None:
    (place / "changed.zip").write_bytes(content)
    for on_error in ("raise", "skip"):
        try:
            ds = folder(place / "changed.zip", size=3, on_error=on_error)
        except (DataError, ValueError):
            if on_error == "skip":
                raise
        else:
            _sound(ds, 20)


_LINES = [
    {"file": "a.png", "caption": 'a "red" \u2028 three \\ ü 😀'},
    {"file": "b.png", "caption": ""},
]


def _read_captions(content: bytes, place: Path) -> None:
    for name in ("a.png", "b.png"):
        (place / name).write_bytes(IMAGES["a.png"])
    (place / "captions.jsonl").write_bytes(content)
    ds = folder(place, size=3)
    found = dict(zip(ds.files, ds.captions, strict=True))
    lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    assert found == {line["file"]: line["caption"] for line in lines}
    assert len(lines) == len(found)
    "".join(ds.captions).encode()


# --- Downloaded files -------------------------------------------------------------------------------------


def _idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


_DIGITS = _idx(_RNG.integers(0, 256, (3, 4, 4)))
_MEMBERS = {f"data_batch_{n}.bin": _RNG.bytes(600) for n in (1, 2)}


def _read_idx(content: bytes, place: Path) -> None:
    array = parse_idx(content)
    assert _idx(array) == content


def _verified_as(name: str, contents: dict[str, bytes]) -> Callable[[bytes, Path], None]:
    """Reads a file in the cache: what is accepted must be what was published, bit for bit."""
    wanted = tuple(
        Content(n, len(c), f"sha256:{hashlib.sha256(c).hexdigest()}") for n, c in contents.items()
    )

    def read(content: bytes, place: Path) -> None:
        (place / name).write_bytes(content)
        assert (
            fetch([Resource(name, ("http://x.invalid/",), wanted)], place, download=False)
            == contents
        )

    return read


def _tar(kind: str, form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind, format=form) as archive:
        for name, content in {"batches.meta.txt": b"cat\n", **_MEMBERS}.items():
            member = tarfile.TarInfo(f"cifar-{'long' * 30 * (form != tarfile.USTAR_FORMAT)}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue().rstrip(b"\0") + bytes(1024) if kind == "w" else buffer.getvalue()


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1, mtime=0)


_FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

FORMATS = {
    "images": Format(tuple(IMAGES.values()), _read_image, (DataError,)),
    "zip": Format(
        tuple(
            _zip(files, compression)
            for files in (_TWO, _CAPTIONED)
            for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        ),
        _read_zip,
        (DataError, ValueError),
    ),
    "captions.jsonl": Format(
        tuple(
            "\n".join(json.dumps(line, ensure_ascii=ascii_) for line in _LINES).encode()
            for ascii_ in (True, False)
        ),
        _read_captions,
        (DataError, ValueError),
    ),
    "IDX": Format((_DIGITS, _idx(np.arange(9))), _read_idx, (CorruptFileError,)),
    "gz": Format((_packed(_DIGITS),), _verified_as("d.gz", {"d": _DIGITS}), (CorruptFileError,)),
    "tar.gz": Format(
        tuple(_tar("w:gz", form) for form in _FORMS),
        _verified_as("c.tar.gz", _MEMBERS),
        (CorruptFileError,),
    ),
    # The changes lie inside the packing, where its checksum does not see them.
    "tar in gz": Format(
        tuple(_tar("w", form) for form in _FORMS),
        _verified_as("c.tar.gz", _MEMBERS),
        (CorruptFileError,),
        pack=_packed,
    ),
}
