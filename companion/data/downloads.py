"""Full datasets from the internet, verified byte by byte: MNIST, Fashion-MNIST and CIFAR-10.

Each file is looked for in the cache, then fetched from the first mirror that works. The cache is the folder
that the caller names, or `$COMPANION_DATA`, or the user's cache folder, with one sub-folder a dataset.

- **What is verified is the content.** A .gz that was unpacked and packed again has other bytes but the same
  content, and is accepted. The hashes below are of the *decompressed* files, except `archive_hash`, which is of
  the file as published and is accepted instead.
- **A download is atomic.** Bytes go to a hidden `.NAME.part` beside the target, are verified there, and only
  then take the final name. A connection that breaks leaves the `.part`, and the next attempt goes on where it
  stopped if the server can (HTTP Range). Bytes that fail the verification are deleted.
- **A file that is already in the cache** is verified every time it is read. You may put files there by hand, or
  links to them; nothing is ever written through a link.
- **Everything is bounded**: what a server sends (`companion.data.retrieval`), and what a file unpacks to.

Nothing is ever unpickled, and archives are read member by member, never unpacked to disk.
"""

import gzip
import hashlib
import io
import math
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np

from companion.data.retrieval import GivenUpError, Part, transfer
from companion.errors import CorruptFileError, DataError, DownloadError
from companion.files import locked

ATTEMPTS = 5  # per mirror, as long as each brings the download forward
# An array of numpy has at most so many dimensions (32 in older versions).
MAX_DIMENSIONS = 32


@dataclass(frozen=True)
class Content:
    """One decompressed file.

    Attributes:
        name: its name, in an archive the last part of the path.
        size: in bytes.
        hash: "sha256:…" or "md5:…" of the decompressed bytes.
    """

    name: str
    size: int
    hash: str


@dataclass(frozen=True)
class Resource:
    """One file to fetch.

    Attributes:
        file: its name in the cache: a .gz of one content, or a .tar.gz of several.
        urls: where it is published; the first that works is used.
        contents: what must be in it.
        archive_hash: "sha256:…" of the file as published, accepted instead of the contents' hashes.
    """

    file: str
    urls: tuple[str, ...]
    contents: tuple[Content, ...]
    archive_hash: str = ""

    @property
    def limit(self) -> int:
        """How many bytes the file can have, packed or not: the contents, what packing may add, small extras."""
        return sum(content.size for content in self.contents) * 101 // 100 + (1 << 20)


@dataclass(frozen=True)
class Source:
    """A dataset to fetch: the resources of each split, its classes, how bytes become images, and their kind."""

    splits: dict[str, tuple[Resource, ...]]
    classes: tuple[str, ...]
    parse: Callable[[Sequence[bytes]], tuple[np.ndarray, np.ndarray]]
    contents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kind: Literal["digits", "images"] = "images"


# --- What is published ------------------------------------------------------------------------------------


def _idx_resources(
    mirrors: Sequence[str], hashes: dict[str, tuple[int, str, str]]
) -> tuple[Resource, ...]:
    return tuple(
        Resource(
            file=f"{name}.gz",
            urls=tuple(f"{mirror}{name}.gz" for mirror in mirrors),
            contents=(Content(name, size, content_hash),),
            archive_hash=archive_hash,
        )
        for name, (size, content_hash, archive_hash) in hashes.items()
    )


# SHA-256 of the decompressed files, computed from them; their MD5 are the ones in circulation.
_MNIST = _idx_resources(
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    {
        "train-images-idx3-ubyte": (
            47_040_016,
            "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "",
        ),
        "train-labels-idx1-ubyte": (
            60_008,
            "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "",
        ),
        "t10k-images-idx3-ubyte": (
            7_840_016,
            "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "",
        ),
        "t10k-labels-idx1-ubyte": (
            10_008,
            "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "",
        ),
    },
)

# First the MD5 of the decompressed files, then the SHA-256 of the .gz as Zalando publishes them, both as quoted
# by several independent projects. (No SHA-256 of the decompressed files could be confirmed.)
_FASHION_MNIST = _idx_resources(
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    {
        "train-images-idx3-ubyte": (
            47_040_016,
            "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte": (
            60_008,
            "md5:9018921c3c673c538a1fc5bad174d6f9",
            "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte": (
            7_840_016,
            "md5:8181f5470baa50b63fa0f6fddb340f0a",
            "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte": (
            10_008,
            "md5:15d484375f8d13e6eb1aabb0c3f46965",
            "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    },
)

# The binary version: the Python version is a pickle, which could run anything. SHA-256 of the six members, and
# of the archive as published (170,052,171 bytes).
_CIFAR10_HASHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
_CIFAR10 = Resource(
    file="cifar-10-binary.tar.gz",
    urls=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    ),
    contents=tuple(
        Content(name, 10_000 * 3073, f"sha256:{digest}") for name, digest in _CIFAR10_HASHES.items()
    ),
    archive_hash="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)


def _parse_idx_pair(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images "n 1 h w" of bytes and labels "n" of int64 from an IDX file of each."""
    images = parse_idx(files[0])
    labels = parse_idx(files[1])
    return images[:, None], labels.astype(np.int64)


def parse_idx(data: bytes) -> np.ndarray:
    """Reads an IDX file of bytes: two zeros, type 8, the number of dimensions, big-endian sizes, the data.

    Raises:
        CorruptFileError: it is not such a file.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise CorruptFileError(f"not an IDX file of bytes: it starts with {data[:4]!r}.")
    dimensions, start = data[3], 4 + 4 * data[3]
    if not 1 <= dimensions <= MAX_DIMENSIONS or len(data) < start:
        raise CorruptFileError(
            f"an IDX file cannot have {dimensions} dimensions in {len(data)} bytes."
        )
    # Numbers of Python, whose product does not overflow.
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4"))
    if len(data) != start + math.prod(shape):
        raise CorruptFileError(f"an IDX file of shape {shape} cannot have {len(data)} bytes.")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _parse_cifar(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images "n 3 32 32" and labels "n": a record is the label, then red, green and blue planes."""
    records = np.concatenate(
        [np.frombuffer(data, dtype=np.uint8).reshape(-1, 3073) for data in files]
    )
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


SOURCES = {
    "mnist": Source(
        splits={"train": _MNIST[:2], "test": _MNIST[2:]},
        classes=tuple("0123456789"),
        parse=_parse_idx_pair,
        kind="digits",
    ),
    "fashion_mnist": Source(
        splits={"train": _FASHION_MNIST[:2], "test": _FASHION_MNIST[2:]},
        classes=(
            *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
        parse=_parse_idx_pair,
    ),
    "cifar10": Source(
        splits={"train": (_CIFAR10,), "test": (_CIFAR10,)},
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        parse=_parse_cifar,
        contents={"train": tuple(list(_CIFAR10_HASHES)[:5]), "test": ("test_batch.bin",)},
    ),
}


# --- From a name to images --------------------------------------------------------------------------------


def cache_folder(root: str | PathLike[str] | None = None) -> Path:
    """Returns where datasets are kept: `root`, else `$COMPANION_DATA`, else the user's cache folder."""
    chosen = root if root is not None else os.environ.get("COMPANION_DATA")
    if chosen:
        return Path(chosen).expanduser()
    import pooch  # only here: reading the embedded data should not pay for it

    return Path(pooch.os_cache("companion"))


def read_split(
    name: str, split: str, root: str | PathLike[str] | None, download: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (bytes "n c h w") and labels of a dataset in `SOURCES`, from the cache or its mirrors.

    Raises:
        CorruptFileError: a cached file is not what was published, and downloading is off.
        DownloadError: files are missing and could not, or must not, be downloaded.
    """
    source = SOURCES[name]
    resources = source.splits[split]
    found = fetch(resources, cache_folder(root) / name, download=download)
    wanted = source.contents.get(split) or tuple(c.name for r in resources for c in r.contents)
    return source.parse([found[content] for content in wanted])


def fetch(resources: Sequence[Resource], folder: Path, *, download: bool) -> dict[str, bytes]:
    """Returns the verified contents of all resources, by name, downloading what is missing or corrupt.

    Raises:
        CorruptFileError: a cached file is not what was published, and downloading is off.
        DownloadError: files are missing and could not, or must not, be downloaded. It names all of them.
    """
    found: dict[str, bytes] = {}
    for position, resource in enumerate(resources):
        cached = _read_cached(resource, folder, remove_corrupt=download)
        if cached is None and download:
            try:
                cached = _download(resource, folder)
            except DownloadError as error:
                raise DownloadError(f"{error}\n{_by_hand(resources[position:], folder)}") from error
        if cached is None:
            raise DownloadError(
                f"{resource.file} is not in {folder}, and downloading is switched off (download=False).\n"
                f"{_by_hand(resources[position:], folder)}"
            )
        found.update(cached)
    return found


def _by_hand(resources: Sequence[Resource], folder: Path) -> str:
    """Says which files to put where."""
    lines = ["Without internet, get these files on another machine and put them here:"]
    for resource in resources:
        path = folder / resource.file
        if not path.exists():
            lines.append(f"  {path}\n    from {resource.urls[0]}")
    lines.append(
        "(another folder: set COMPANION_DATA, or pass root=…). They are verified when read."
    )
    return "\n".join(lines)


# --- Verification -----------------------------------------------------------------------------------------


def _read_cached(
    resource: Resource, folder: Path, *, remove_corrupt: bool
) -> dict[str, bytes] | None:
    """Returns the contents of the file in the cache, packed or not, or nothing if there is none."""
    for path in (folder / resource.file, folder / resource.file.removesuffix(".gz")):
        if not path.is_file():
            continue
        try:
            return read_verified(path, resource)
        except CorruptFileError:
            if not remove_corrupt:
                raise
            path.unlink()
    return None


def read_verified(path: Path, resource: Resource) -> dict[str, bytes]:
    """Reads a file and returns its contents by name if they are those that were published.

    Raises:
        CorruptFileError: they are not; the message has the file, the expected and the found hash, and what to
            do.
    """
    remedy = "Delete the file and load again to download it anew, or put a good copy in its place."
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > resource.limit:
            raise CorruptFileError(
                f"{path} has {size:,} bytes, more than the {resource.limit:,} that it can have. {remedy}"
            )
        data = file.read(size)
    return _verified(data, resource, str(path), remedy)


def _verified(data: bytes, resource: Resource, label: str, remedy: str) -> dict[str, bytes]:
    """Unpacks bytes in memory and returns the contents by name if they are those that were published."""
    try:
        contents = _unpack(data, resource)
    except MemoryError:
        raise  # says nothing of the file: what is unpacked is bounded
    except Exception as error:  # damaged bytes make gzip and tarfile raise what they like
        expected = resource.archive_hash or resource.contents[0].hash
        raise CorruptFileError(
            f"{label} cannot be unpacked ({error}; {_looks_like(data)}). Expected {expected}, "
            f"found {_hash(data, expected)} of its {len(data):,} bytes. {remedy}"
        ) from error
    as_published = (
        bool(resource.archive_hash) and _hash(data, resource.archive_hash) == resource.archive_hash
    )
    for content in resource.contents:
        found = contents.get(content.name)
        if found is None:
            raise CorruptFileError(
                f"{label} has no {content.name} of {content.size:,} bytes in it ({_looks_like(data)}). "
                f"Expected {resource.archive_hash or content.hash}, "
                f"found {_hash(data, resource.archive_hash or content.hash)}. {remedy}"
            )
        if not as_published and _hash(found, content.hash) != content.hash:
            more = " or more" if len(found) > content.size else ""
            raise CorruptFileError(
                f"{label} does not hold what was published: expected {content.hash} of {content.name} "
                f"({content.size:,} bytes), found {_hash(found, content.hash)} "
                f"({len(found):,} bytes{more}). {remedy}"
            )
    return contents


def _hash(data: bytes, like: str) -> str:
    """Returns the hash of the bytes by the algorithm that `like` starts with, in the same form."""
    algorithm = like.split(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}"


def _unpack(data: bytes, resource: Resource) -> dict[str, bytes]:
    """Decompresses in memory, reading at most one byte more of each content than it should have."""
    packed = data[:2] == b"\x1f\x8b"
    if not resource.file.endswith((".tar.gz", ".tgz")):
        content = resource.contents[0]
        if not packed:  # perhaps already unpacked
            if len(data) == content.size:
                return {content.name: data}
            raise OSError("not a gzip file")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return {content.name: stream.read(content.size + 1)}
    with gzip.GzipFile(fileobj=io.BytesIO(data)) if packed else io.BytesIO(data) as stream:
        return _members(_Bounded(stream, resource.limit), resource)


def _members(stream: "_Bounded", resource: Resource) -> dict[str, bytes]:
    """The wanted members of a tar that is read from front to back."""
    wanted = {content.name: content for content in resource.contents}
    contents = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            content = wanted.get(member.name.rsplit("/", 1)[-1])
            if content is not None and member.isfile() and member.size == content.size:
                file = archive.extractfile(member)
                contents[content.name] = file.read() if file else b""
            # Or a tar of empty members fills the memory with their names; typeshed does not list the attribute.
            archive.members.clear()  # type: ignore[attr-defined]
    return contents


class _Bounded(io.BufferedIOBase):
    """What a tar is read from: an error ends it after `limit` bytes, however many are asked for.

    One ends it, too, if it is asked again and again at the end: to pass over a member that claims 10²⁴ bytes,
    `tarfile` would read nothing for ever.
    """

    def __init__(self, stream: io.BytesIO | gzip.GzipFile, limit: int) -> None:
        super().__init__()
        self.stream = stream
        self.left = limit
        self.patience = 100

    def read(self, size: int | None = -1, /) -> bytes:
        most = self.left + 1
        data = self.stream.read(most if size is None or size < 0 else min(size, most))
        self.left -= len(data)
        self.patience -= not data
        if self.left < 0:
            raise OSError("it unpacks to more than it can hold")
        if self.patience < 0:
            raise OSError("it is cut short")
        return data


def _looks_like(data: bytes) -> str:
    """Guesses what a foreign file is."""
    head = data[:512].lstrip().lower()
    if not data:
        return "it is empty"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it looks like a web page"
    if data[:2] == b"PK":
        return "it looks like a zip"
    if data[:2] == b"\x1f\x8b":
        return "it is a gzip file, perhaps cut short or of something else"
    return f"it starts with {data[:8]!r}"


# --- Download ---------------------------------------------------------------------------------------------


def _download(resource: Resource, folder: Path) -> dict[str, bytes]:
    """Fetches one file from its mirrors in turn, verifies it, and gives it its name in the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / f".{resource.file}.lock"
        with locked(lock, message="Another process is downloading the file.", wait=math.inf):
            # Another process may have finished it while this one waited.
            cached = _read_cached(resource, folder, remove_corrupt=True)
            return cached if cached is not None else _from_mirrors(resource, folder)
    except DataError:
        raise
    except OSError as error:
        raise DownloadError(
            f"cannot write to {folder} ({error}). Set COMPANION_DATA to a folder of yours."
        ) from error


def _from_mirrors(resource: Resource, folder: Path) -> dict[str, bytes]:
    failures = []
    with Part(folder / f".{resource.file}.part", resource.limit) as part:
        for url in resource.urls:
            try:
                contents = _from_mirror(url, part, resource)
            except DataError as error:
                failures.append(f"  {url}: {error}")
                continue
            part.finish(folder / resource.file)
            return contents
    raise DownloadError(f"{resource.file} could not be downloaded:\n" + "\n".join(failures))


def _from_mirror(url: str, part: Part, resource: Resource) -> dict[str, bytes]:
    """Completes the partial file from one mirror and verifies it, or deletes what is wrong and raises."""
    failure: DataError | None = None
    for _ in range(ATTEMPTS):
        before = part.size
        failure = transfer(url, part, label=resource.file)
        if isinstance(failure, GivenUpError) or (failure is not None and part.size <= before):
            raise failure  # no progress: this mirror is down
        if failure is not None:
            continue
        try:
            return _verified(part.read(), resource, f"{resource.file} as sent", "It was deleted.")
        except CorruptFileError as error:
            part.cut()
            # What was resumed may have been begun at another mirror that packs differently: once more from
            # the start. What came in one piece is wrong at this mirror.
            if before == 0:
                raise
            failure = error
    raise failure or DownloadError("gave up")
