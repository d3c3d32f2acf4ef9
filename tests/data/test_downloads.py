"""Downloads: whatever the network does, the cache holds the published content or nothing."""

import gzip
import hashlib
import io
import os
import pickle
import random
import tarfile
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch

from companion import data
from companion.data import downloads, retrieval
from companion.data.downloads import (
    Content,
    CorruptFileError,
    DownloadError,
    Resource,
    Source,
    fetch,
)

# Bytes that do not compress, so that half of the packed file is half of the content. 400 kB are several chunks.
CONTENT = random.Random(0).randbytes(400_000)
PACKED = gzip.compress(CONTENT, mtime=0)
FILE = "blob.gz"


def sha256(data_):
    return f"sha256:{hashlib.sha256(data_).hexdigest()}"


def resource(*urls, archive_hash="", content_hash=""):
    content_hash = content_hash or sha256(CONTENT)
    return Resource(FILE, urls, (Content("blob", len(CONTENT), content_hash),), archive_hash)


def visible(folder):
    """The files in the cache that anyone would take for data."""
    return (
        sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if folder.exists()
        else []
    )


def get(site, folder, *plans, files=None, **options):
    """Fetches the blob from one mirror a plan."""
    urls = []
    for number, plan in enumerate(plans):
        path = f"/{number}/{FILE}"
        site.files[path] = files[number] if files else PACKED
        site.plans[path] = list(plan) if isinstance(plan, list) else [plan]
        urls.append(site.url + path)
    return fetch([resource(*urls, **options)], folder, download=True)


def test_a_plain_download_is_kept_and_not_repeated(site, tmp_path):
    for _ in range(3):
        assert get(site, tmp_path / "new" / "folder", "ok") == {"blob": CONTENT}
    assert len(site.requests) == 1
    assert visible(tmp_path / "new" / "folder") == [FILE]
    assert (tmp_path / "new" / "folder" / FILE).read_bytes() == PACKED
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("kind", ["drop", "unsized drop"])
def test_a_dropped_connection_is_resumed_where_it_broke(site, tmp_path, kind):
    plan = [("drop", 150_000), ("drop", 140_000), "ok"]
    if kind == "unsized drop":
        plan = [("drop", 150_000), "ok"]
    assert get(site, tmp_path, plan) == {"blob": CONTENT}
    ranges = [wanted for wanted, _ in site.asked(f"/0/{FILE}")]
    assert ranges[0] is None
    starts = [int(wanted[6:-1]) for wanted in ranges[1:]]
    assert starts == sorted(starts)
    assert 0 < starts[0] <= 150_000
    assert [status for _, status in site.asked(f"/0/{FILE}")] == [200] + [206] * len(starts)


def test_a_break_without_a_length_is_found_by_the_hash(site, tmp_path):
    assert get(site, tmp_path, ("unsized drop", 150_000), "ok") == {"blob": CONTENT}
    assert visible(tmp_path) == [FILE]


def test_a_server_without_ranges_starts_again(site, tmp_path):
    assert get(site, tmp_path, [("drop", 150_000), "ignore range"]) == {"blob": CONTENT}
    assert [status for _, status in site.asked(f"/0/{FILE}")] == [200, 200]


def test_a_server_that_sends_another_range_is_not_believed(site, tmp_path):
    assert get(site, tmp_path, [("drop", 150_000), "wrong range", "ok"]) == {"blob": CONTENT}


def test_the_next_session_resumes(site, tmp_path):
    with pytest.raises(DownloadError):
        get(site, tmp_path, [("drop", 150_000), 503])
    assert visible(tmp_path) == []
    site.requests.clear()
    assert get(site, tmp_path, "ok") == {"blob": CONTENT}
    assert [status for _, status in site.asked(f"/0/{FILE}")] == [206]


def test_a_complete_partial_file_is_taken(site, tmp_path):
    (tmp_path / f".{FILE}.part").write_bytes(PACKED)
    assert get(site, tmp_path, "ok") == {"blob": CONTENT}
    assert [status for _, status in site.asked(f"/0/{FILE}")] == [416]


def test_a_foreign_partial_file_is_thrown_away(site, tmp_path):
    (tmp_path / f".{FILE}.part").write_bytes(b"x" * 1000)
    assert get(site, tmp_path, "ok") == {"blob": CONTENT}
    (tmp_path / FILE).unlink()
    (tmp_path / f".{FILE}.part").write_bytes(b"x" * 1_000_000)
    assert get(site, tmp_path, "ok") == {"blob": CONTENT}


@pytest.mark.parametrize(
    "bad", [404, 500, 403, "corrupt", ("truncate", 100_000), "page", ("drop", 0)]
)
def test_the_next_mirror_helps(site, tmp_path, bad):
    assert get(site, tmp_path, bad, "ok") == {"blob": CONTENT}
    assert visible(tmp_path) == [FILE]
    assert not list(tmp_path.glob("*.part"))
    assert len(site.asked(f"/1/{FILE}")) >= 1


def test_a_hanging_server_is_given_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "TIMEOUT", 0.2)
    assert get(site, tmp_path, "hang", "ok") == {"blob": CONTENT}


def test_a_mirror_that_packs_differently_can_finish(site, tmp_path):
    other = gzip.compress(CONTENT, compresslevel=1, mtime=99)
    # Half of one packing and half of another are nothing; the second mirror then sends all of its own.
    answer = get(site, tmp_path, [("drop", 200_000), 503], ["ok"], files=[PACKED, other])
    assert answer == {"blob": CONTENT}
    assert (tmp_path / FILE).read_bytes() == other


@pytest.mark.parametrize("bad", ["corrupt", ("truncate", 100_000), "page"])
def test_corrupt_everywhere_leaves_nothing_and_says_all(site, tmp_path, bad):
    with pytest.raises(DownloadError) as raised:
        get(site, tmp_path, bad, bad)
    message = str(raised.value)
    assert visible(tmp_path) == []
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part") and p.stat().st_size]
    assert FILE in message
    assert sha256(CONTENT) in message
    served = {
        "corrupt": PACKED[:-9] + bytes([PACKED[-9] ^ 1]) + PACKED[-8:],
        "page": b"<!DOCTYPE html><html>Please log in</html>",
    }.get(bad, PACKED[:100_000])
    assert sha256(served) in message
    assert message.count(site.url) == 3  # both mirrors, and where to get it by hand
    assert str(tmp_path / FILE) in message
    assert "COMPANION_DATA" in message
    assert ("web page" in message) == (bad == "page")


def test_another_content_in_a_sound_gzip_is_refused_with_both_hashes(site, tmp_path):
    foreign = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError) as raised:
        get(site, tmp_path, "ok", files=[gzip.compress(foreign)])
    assert sha256(CONTENT) in str(raised.value)
    assert sha256(foreign) in str(raised.value)
    assert visible(tmp_path) == []


def test_a_gzip_that_unpacks_to_far_too_much_is_not_unpacked(tmp_path):
    (tmp_path / FILE).write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(CorruptFileError, match=r"\(400,001 bytes or more\)"):
        fetch([resource("http://nowhere.invalid/")], tmp_path, download=False)


def test_all_failures_are_told(site, tmp_path):
    with pytest.raises(DownloadError) as raised:
        get(site, tmp_path, 404, 500)
    assert "the server answered 404" in str(raised.value)
    assert "the server answered 500" in str(raised.value)
    assert visible(tmp_path) == []


def test_nobody_listens(tmp_path):
    with pytest.raises(DownloadError, match="could not be downloaded") as raised:
        fetch([resource("http://127.0.0.1:9/blob.gz")], tmp_path, download=True)
    assert "ConnectionRefusedError" in str(raised.value)


def test_a_repacked_or_unpacked_file_put_there_by_hand_is_accepted(tmp_path):
    (tmp_path / FILE).write_bytes(gzip.compress(CONTENT, compresslevel=1))
    assert fetch([resource("http://nowhere.invalid/")], tmp_path, download=False) == {
        "blob": CONTENT
    }
    (tmp_path / FILE).write_bytes(CONTENT)
    assert fetch([resource("http://nowhere.invalid/")], tmp_path, download=False) == {
        "blob": CONTENT
    }
    (tmp_path / FILE).rename(tmp_path / "blob")
    assert fetch([resource("http://nowhere.invalid/")], tmp_path, download=False) == {
        "blob": CONTENT
    }


def test_either_the_published_archive_or_the_content_will_do(site, tmp_path):
    wrong = sha256(b"something else")
    by_archive = get(site, tmp_path / "a", "ok", archive_hash=sha256(PACKED), content_hash=wrong)
    by_content = get(site, tmp_path / "b", "ok", archive_hash=wrong)
    assert by_archive == by_content == {"blob": CONTENT}
    md5 = f"md5:{hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
    assert get(site, tmp_path / "c", "ok", content_hash=md5) == {"blob": CONTENT}
    with pytest.raises(DownloadError):
        get(site, tmp_path / "d", "ok", archive_hash=wrong, content_hash=wrong)


def test_a_cached_file_that_went_bad_is_fetched_anew(site, tmp_path):
    get(site, tmp_path, "ok")
    damaged = bytearray(PACKED)
    damaged[200_000] ^= 1
    (tmp_path / FILE).write_bytes(bytes(damaged))
    assert get(site, tmp_path, "ok") == {"blob": CONTENT}
    assert (tmp_path / FILE).read_bytes() == PACKED
    assert len(site.requests) == 2


def test_a_cached_file_that_went_bad_does_not_outlive_a_failed_download(site, tmp_path):
    (tmp_path / FILE).write_bytes(b"junk")
    with pytest.raises(DownloadError):
        get(site, tmp_path, 500)
    assert visible(tmp_path) == []


def test_without_downloading_a_bad_file_is_named_and_left(tmp_path):
    (tmp_path / FILE).write_bytes(b"junk")
    with pytest.raises(CorruptFileError) as raised:
        fetch([resource("http://nowhere.invalid/")], tmp_path, download=False)
    message = str(raised.value)
    assert str(tmp_path / FILE) in message
    assert sha256(CONTENT) in message
    assert sha256(b"junk") in message
    assert "Delete the file and load again" in message
    assert visible(tmp_path) == [FILE]


@pytest.mark.parametrize(
    ("foreign", "hint"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04xx", "a zip"),
        (PACKED[:5000], "cut short"),
        (b"abcd", "starts with"),
    ],
)
def test_foreign_files_are_recognised(tmp_path, foreign, hint):
    (tmp_path / FILE).write_bytes(foreign)
    with pytest.raises(CorruptFileError, match=hint):
        fetch([resource("http://nowhere.invalid/")], tmp_path, download=False)


def test_an_interrupt_leaves_no_corrupt_file(site, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(retrieval.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path, "ok")
    assert visible(tmp_path) == []


def test_two_at_a_time_download_once(site, tmp_path):
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(get(site, tmp_path, "slow")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"blob": CONTENT}] * 4
    assert len(site.requests) == 1


# --- Hostile servers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["endless", "endless chunks"])
def test_an_endless_body_is_read_no_further_than_the_file_can_be(site, tmp_path, how):
    limit = resource("x").limit
    assert len(CONTENT) < limit < 4 * len(CONTENT)
    with pytest.raises(DownloadError, match=f"it sends more than the {limit:,} bytes"):
        get(site, tmp_path, how)
    assert site.sent < limit + 20_000_000  # what the system keeps between the two
    assert len(site.asked(f"/0/{FILE}")) == 1, "it is not asked again"
    assert all(path.stat().st_size <= limit for path in tmp_path.iterdir())
    assert get(site, tmp_path, how, "ok") == {"blob": CONTENT}


def test_a_body_that_claims_to_be_too_long_is_not_begun(site, tmp_path):
    with pytest.raises(DownloadError, match="it has 300,000,000 bytes, more than"):
        get(site, tmp_path, ("claims", 300_000_000))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("claim", ["abc", "-7", "9" * 30, "1e3", "٣"])
def test_a_senseless_length_harms_nothing(site, tmp_path, claim):
    claim = claim.encode().decode("latin-1")
    assert get(site, tmp_path, ("claims", claim), "ok") == {"blob": CONTENT}


def test_a_body_that_is_encoded_once_more_is_refused(site, tmp_path):
    with pytest.raises(DownloadError, match="Content-Encoding: gzip"):
        get(site, tmp_path, "encoded")
    assert os.listdir(tmp_path) == []
    assert get(site, tmp_path, "encoded", "ok") == {"blob": CONTENT}


@pytest.mark.parametrize("part", ["head", "body", "chunks"])
def test_a_trickle_ends(site, tmp_path, monkeypatch, part):
    monkeypatch.setattr(retrieval, "GRACE", 0.3)
    monkeypatch.setattr(retrieval, "LOOK", 0.05)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"it is too slow: [0-9]+ bytes in [01] seconds"):
        get(site, tmp_path, ("trickle", part))
    assert time.monotonic() - start < 1.9, "before the server ends it"
    assert len(site.asked(f"/0/{FILE}")) == 1, "it is not asked again"
    before = [path.read_bytes() for path in tmp_path.iterdir()]
    assert get(site, tmp_path, ("trickle", part), "ok") == {"blob": CONTENT}
    assert before in ([], [PACKED[: len(b"".join(before))]])
    assert (tmp_path / FILE).read_bytes() == PACKED


def test_a_stopped_transfer_writes_nothing_more(tmp_path):
    with retrieval.Part(tmp_path / "part", 100) as part:
        attempt = retrieval._Transfer("http://127.0.0.1:9/", part, "x")
        attempt.write(b"one")
        attempt.stop()
        with pytest.raises(retrieval.GivenUpError):
            attempt.write(b"two")
        assert part.read() == b"one"


def test_a_redirect_is_followed_and_its_body_left(site, tmp_path):
    site.files[f"/there/{FILE}"] = PACKED
    answer = get(site, tmp_path, ("redirect", f"{site.url}/there/{FILE}"))
    assert answer == {"blob": CONTENT}
    assert site.sent < 20_000_000
    (tmp_path / FILE).unlink()
    assert get(site, tmp_path, ("redirect", f"/there/{FILE}")) == {"blob": CONTENT}, "relative"


@pytest.mark.parametrize("target", [f"/0/{FILE}", "file:///etc/passwd", "", "http://", "ftp://x/y"])
def test_a_redirect_that_leads_nowhere_ends(site, tmp_path, target):
    with pytest.raises(DownloadError, match="could not be downloaded"):
        get(site, tmp_path, ("redirect", target))
    assert os.listdir(tmp_path) == []
    assert len(site.requests) <= 6


# --- What is left in the cache, and what was planted there ------------------------------------------------


@pytest.mark.parametrize(
    "bad", [404, "corrupt", "page", "encoded", ("claims", 300_000_000), ("drop", 0)]
)
def test_a_failed_download_leaves_nothing(site, tmp_path, bad):
    with pytest.raises(DownloadError):
        get(site, tmp_path, bad)
    assert os.listdir(tmp_path) == []


def test_a_broken_download_leaves_what_can_be_resumed_and_nothing_else(site, tmp_path):
    with pytest.raises(DownloadError):
        get(site, tmp_path, [("drop", 150_000), 503])
    assert os.listdir(tmp_path) == [f".{FILE}.part"]
    content = (tmp_path / f".{FILE}.part").read_bytes()
    assert 0 < len(content) <= 150_000
    assert PACKED.startswith(content)


@pytest.mark.parametrize("name", [f".{FILE}.part", f".{FILE}.lock"])
@pytest.mark.parametrize("how", ["symbolic link", "hard link"])
def test_planted_links_are_not_followed(site, tmp_path, name, how):
    cache, theirs = tmp_path / "cache", tmp_path / "theirs"
    cache.mkdir()
    theirs.write_bytes(b"precious")
    (os.symlink if how == "symbolic link" else os.link)(theirs, cache / name)
    with pytest.raises(
        DownloadError, match=f"{name} is a symbolic link or no plain file. Remove it"
    ):
        get(site, cache, "ok")
    assert theirs.read_bytes() == b"precious"
    assert site.requests == []
    (cache / name).unlink()
    assert get(site, cache, "ok") == {"blob": CONTENT}


def test_a_link_to_a_good_copy_is_read_and_one_to_a_bad_copy_is_replaced(site, tmp_path):
    cache, good, bad = tmp_path / "cache", tmp_path / "good.gz", tmp_path / "bad.gz"
    cache.mkdir()
    good.write_bytes(PACKED)
    bad.write_bytes(b"precious")
    (cache / FILE).symlink_to(good)
    assert get(site, cache, 404) == {"blob": CONTENT}
    (cache / FILE).unlink()
    (cache / FILE).symlink_to(bad)
    assert get(site, cache, "ok") == {"blob": CONTENT}
    assert bad.read_bytes() == b"precious"
    assert not (cache / FILE).is_symlink()


def test_a_cached_file_that_is_far_too_large_is_not_read(tmp_path):
    with open(tmp_path / FILE, "wb") as file:
        file.truncate(10**12)  # a file with a hole: it takes no room
    with pytest.raises(CorruptFileError, match="has 1,000,000,000,000 bytes, more than the"):
        fetch([resource("http://nowhere.invalid/")], tmp_path, download=False)


def test_a_file_in_the_cache_has_the_permissions_of_the_umask(site, tmp_path):
    before = os.umask(0o027)
    try:
        get(site, tmp_path, "ok")
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written(site, tmp_path):
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(DownloadError, match="Set COMPANION_DATA to a folder of yours"):
        get(site, tmp_path / "file" / "sub", "ok")


# --- Whole datasets ---------------------------------------------------------------------------------------


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def small_mnist(site, n=20):
    """A dataset in MNIST's format, served by the site."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
    resources = []
    for name, array in (("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)):
        site.files[f"/{name}.gz"] = gzip.compress(idx(array))
        content = Content(name, len(idx(array)), sha256(idx(array)))
        resources.append(Resource(f"{name}.gz", (f"{site.url}/{name}.gz",), (content,)))
    source = Source({"train": tuple(resources)}, tuple("0123456789"), downloads._parse_idx_pair)
    return source, images, labels


def small_cifar(site, n=7):
    """A dataset in the format of CIFAR-10's binary version, served by the site."""
    rng = np.random.default_rng(0)
    parts = {
        name: np.concatenate([rng.integers(0, 10, (n, 1)), rng.integers(0, 256, (n, 3072))], axis=1)
        for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")
    }
    members = {name: part.astype(np.uint8).tobytes() for name, part in parts.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {"batches.meta.txt": b"cat\n", **members}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    site.files["/cifar.tar.gz"] = packed.getvalue()
    contents = tuple(Content(name, len(c), sha256(c)) for name, c in members.items())
    one = Resource("cifar.tar.gz", (f"{site.url}/cifar.tar.gz",), contents)
    source = Source(
        splits={"train": (one,), "test": (one,)},
        classes=tuple("0123456789"),
        parse=downloads._parse_cifar,
        contents={"train": tuple(members)[:2], "test": ("test_batch.bin",)},
    )
    return source, parts


def test_load_in_the_format_of_mnist(site, tmp_path, monkeypatch):
    source, images, labels = small_mnist(site)
    monkeypatch.setitem(downloads.SOURCES, "mnist", source)
    ds = data.load("mnist", root=tmp_path)
    assert (ds.name, ds.split, len(ds)) == ("mnist", "train", 20)
    assert torch.equal(ds.images[:, 0], torch.from_numpy(images).to(torch.uint8))
    assert torch.equal(ds.labels, torch.from_numpy(labels))
    assert visible(tmp_path / "mnist") == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert data.load("mnist", root=tmp_path, download=False).sha256 == ds.sha256


def test_load_in_the_format_of_cifar(site, tmp_path, monkeypatch):
    source, parts = small_cifar(site)
    monkeypatch.setitem(downloads.SOURCES, "cifar10", source)
    train, test = data.load("cifar10", root=tmp_path), data.load("cifar10", "test", root=tmp_path)
    assert (len(train), len(test)) == (14, 7)
    record = parts["data_batch_2.bin"][0]
    assert train.labels[7] == record[0]
    assert train.images[7].flatten().tolist() == record[1:].tolist()
    assert torch.equal(test.labels, torch.from_numpy(parts["test_batch.bin"][:, 0]))
    assert len(site.requests) == 1


def test_the_pickled_cifar_is_refused_without_being_opened(site, tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    source, _ = small_cifar(site)
    monkeypatch.setitem(downloads.SOURCES, "cifar10", source)
    (tmp_path / "cifar10").mkdir()
    with tarfile.open(tmp_path / "cifar10" / "cifar.tar.gz", "w:gz") as archive:
        content = pickle.dumps(Bomb())
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(CorruptFileError, match=r"has no data_batch_1\.bin"):
        data.load("cifar10", root=tmp_path, download=False)
    assert not (tmp_path / "exploded").exists()


def tar(members, kind="w:gz", **options):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=kind, **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def as_cifar(cache, source, content):
    """Reads bytes that lie in the cache as CIFAR's archive."""
    cache.mkdir(exist_ok=True)
    (cache / "cifar.tar.gz").write_bytes(content)
    return fetch(source.splits["train"], cache, download=False)


def test_archives_of_other_kinds_are_corrupt_files(site, tmp_path):
    source, parts = small_cifar(site)
    members = [(f"x/{name}", part.astype(np.uint8).tobytes()) for name, part in parts.items()]
    wanted = {name.split("/")[1]: content for name, content in members}
    for kind in ("w:gz", "w"):
        assert as_cifar(tmp_path / "c", source, tar(members, kind)) == wanted
    for kind in ("w:xz", "w:bz2"):
        with pytest.raises(CorruptFileError):
            as_cifar(tmp_path / "c", source, tar(members, kind))


def header(**changes):
    """The head of a tar's member with fields changed, its checksum right."""
    member = tarfile.TarInfo("cifar/data_batch_1.bin")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for place, content in changes.values():
        block[place : place + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "block",
    [
        header(size=(124, b"\xff" * 12)),  # below zero
        header(size=(124, b"\x80" + b"\xff" * 11)),  # beyond every number
        header(size=(124, b"77777777777\0")),  # 8 GB
        header(size=(124, b"77777777777\0"), kind=(156, b"x")),  # 8 GB of names
        header(size=(124, b"77777777777\0"), kind=(156, b"L")),
        header(size=(124, b"00000000007\0"), kind=(156, b"x"))
        + b"99 a=\n\xff\xff".ljust(512, b"\0"),
        header(size=(124, b"00000000010\0"), kind=(156, b"x")) + b"8 size=x".ljust(512, b"\0"),
        header(kind=(156, b"S"), sparse=(386, b"\xff" * 100)),
        header(mode=(100, b"zzzzzzz\0")),
        header(name=(0, b"\xff\xfe\0")),
    ],
)
@pytest.mark.parametrize("rest", [0, 50_000_000])
def test_damaged_heads_of_members_are_corrupt_files(site, tmp_path, block, rest):
    source, _ = small_cifar(site)
    bomb = gzip.compress(block + bytes(rest), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(CorruptFileError):
        as_cifar(tmp_path / "c", source, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_a_damaged_archive_is_removed_and_fetched_anew(site, tmp_path, monkeypatch):
    source, _ = small_cifar(site)
    monkeypatch.setitem(downloads.SOURCES, "cifar10", source)
    (tmp_path / "cifar10").mkdir()
    for damaged in (b"\xfd7zXZ\0junk", b"BZhjunk", gzip.compress(b"\xff" * 2000), b"", bytes(2000)):
        (tmp_path / "cifar10" / "cifar.tar.gz").write_bytes(damaged)
        assert len(data.load("cifar10", root=tmp_path)) == 14
        assert (tmp_path / "cifar10" / "cifar.tar.gz").read_bytes() == site.files["/cifar.tar.gz"]


def test_offline_and_not_cached_names_every_file(tmp_path, monkeypatch):
    source = downloads.SOURCES["fashion_mnist"]
    dead = {
        split: tuple(
            Resource(r.file, ("http://127.0.0.1:9/x",), r.contents, r.archive_hash)
            for r in resources
        )
        for split, resources in source.splits.items()
    }
    monkeypatch.setitem(
        downloads.SOURCES,
        "fashion_mnist",
        Source(dead, source.classes, source.parse, source.contents),
    )
    for download in (True, False):
        with pytest.raises(DownloadError) as raised:
            data.load("fashion_mnist", "test", root=tmp_path, download=download)
        message = str(raised.value)
        for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
            assert str(tmp_path / "fashion_mnist" / name) in message
        assert "train-" not in message


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "mine"))
    assert downloads.cache_folder() == tmp_path / "mine"
    assert downloads.cache_folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("COMPANION_DATA")
    assert downloads.cache_folder().name == "companion"
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "mine"))
    with pytest.raises(DownloadError, match="mine"):
        data.load("mnist", download=False)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x00\x00\x0d\x01",
        idx(np.zeros((2, 3, 3)))[:-1],
        b"\x89PNG\r\n",
        b"\x00\x00\x08\x00x",
        b"\x00\x00\x08\x03\x00\x00",
        b"\x00\x00\x08\x04" + b"\x80\x00\x00\x00" * 4,  # 2¹²⁴ bytes, 0 in 64 bits
        b"\x00\x00\x08\xff" + b"\x00\x00\x00\x01" * 255 + b"x",
    ],
)
def test_foreign_idx_files(bad):
    with pytest.raises(CorruptFileError, match="IDX"):
        downloads.parse_idx(bad)


def test_the_list_of_what_is_published_is_well_formed():
    for name, source in downloads.SOURCES.items():
        assert set(source.splits) == set(data.SPLITS)
        assert len(source.classes) == len(set(source.classes)) == 10
        for found in {r for resources in source.splits.values() for r in resources}:
            assert len(found.urls) >= 3, name
            for hash_ in [c.hash for c in found.contents] + [found.archive_hash] * bool(
                found.archive_hash
            ):
                algorithm, digest = hash_.split(":")
                assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
    contents = [
        c
        for s in downloads.SOURCES.values()
        for rs in s.splits.values()
        for r in rs
        for c in r.contents
    ]
    assert len({c.hash for c in contents}) == 4 + 4 + 6


def test_the_real_mnist():
    try:
        train, test = (data.load("mnist", split, download=False) for split in data.SPLITS)
    except DownloadError:
        pytest.skip("MNIST is not in the cache, and tests download nothing")
    assert train.labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert test.labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
