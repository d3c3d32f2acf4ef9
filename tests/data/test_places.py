"""Folders and zips: what is found in them, and what is refused."""

import io
import os
import stat
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from companion import data
from companion.data import places


def png(colour=(255, 0, 0), size=(6, 4), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN, BLUE = png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))
CLASSES = {"cats/2.png": GREEN, "cats/1.png": RED, "dogs/deep/3.png": BLUE}


def written_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def written_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo("placeholder")
            member.filename = member.orig_filename = name
            member.compress_type = archive.compression
            archive.writestr(member, content)
    return path


# --- The same in a folder and a zip -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cats/1.png", "cats/old/2.png"], ("cats",)),
        (["data/cats/1.png", "data/dogs/1.png"], ("cats", "dogs")),
        (["data/cats/1.png", "data/dogs/old/1.png", "data/notes.txt", "README"], ("cats", "dogs")),
        (["a/b/c/cats/1.png", "a/b/c/dogs/1.png"], ("cats", "dogs")),
        (["data/train/1.png", "other/train/1.png"], ("data", "other")),
        (["cats/1.png"], ("cats",)),
        (["a/b/cats/1.png"], ("cats",)),
        (["1.png", "2.png"], ("mine",)),
        (
            ["data/.git/1.png", "data/cats/1.png", "__MACOSX/data/1.png", "data/dogs/1.png"],
            ("cats", "dogs"),
        ),
    ],
)
def test_folder_and_zip_agree_about_nesting(tmp_path, names, classes):
    files = dict.fromkeys(names, RED)
    from_folder = data.folder(written_folder(tmp_path / "mine", files))
    from_zip = data.folder(written_zip(tmp_path / "mine.zip", files))
    assert from_folder.classes == from_zip.classes == classes
    assert from_folder.files == from_zip.files
    assert from_folder.sha256 == from_zip.sha256


PARTS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=0, max_size=4)


@settings(deadline=None, max_examples=200)
@given(st.sets(PARTS.map(lambda parts: "/".join([*parts, "1.png"])), min_size=1, max_size=5))
def test_only_what_is_around_everything_is_taken_off(names):
    short = places._without_wrapping_folder({name: name for name in names})
    assert sorted(short.values()) == sorted(names), "no file is lost"
    cut = {len(name) - len(new) for new, name in short.items()}
    assert len(cut) == 1
    (length,) = cut
    assert len({name[:length] for name in names}) == 1
    parts = [name.split("/") for name in short]
    if length:
        assert any(len(p) == 2 for p in parts) or len({p[0] for p in parts}) > 1
    assert len({p[0] for p in parts}) > 1 or any(len(p) <= 2 for p in parts), (
        "nothing is left to take off"
    )


def test_captions_in_a_wrapping_folder(tmp_path):
    files = {"mine/a.png": RED, "mine/sub/b.png": RED}
    files["mine/captions.jsonl"] = (
        b'{"file": "a.png", "caption": "x"}\n{"file": "sub/b.png", "caption": "y"}\n'
    )
    for path in (
        written_zip(tmp_path / "a.zip", files),
        written_folder(tmp_path / "export", files),
    ):
        assert data.folder(path).captions == ("x", "y")


# --- Folders ----------------------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(tmp_path):
    written_folder(tmp_path / "elsewhere", {"cats/1.png": RED, "dogs/1.png": BLUE, "x.png": GREEN})
    mine = tmp_path / "mine"
    (mine / "dogs").mkdir(parents=True)
    (mine / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (mine / "dogs" / "9.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (mine / "dogs" / "more").symlink_to(tmp_path / "elsewhere" / "dogs")
    assert data.folder(mine).files == ("cats/1.png", "dogs/9.png", "dogs/more/1.png")
    (tmp_path / "link").symlink_to(mine)
    assert data.folder(tmp_path / "link").classes == ("cats", "dogs")


@pytest.mark.parametrize("target", [".", "..", "../..", "../dogs"])
def test_a_link_to_a_folder_around_it_is_named(tmp_path, target):
    mine = written_folder(tmp_path / "mine", {"cats/1.png": RED, "dogs/1.png": BLUE})
    (mine / "cats" / "loop").symlink_to(target, target_is_directory=True)
    if target == "../dogs":
        (mine / "dogs" / "loop").symlink_to("../cats", target_is_directory=True)
    message = r"loop/\S* \(it is a link to a folder that it lies in\)"
    with pytest.raises(data.UnreadableImageError, match=message):
        data.folder(mine)
    with pytest.warns(UserWarning, match=message):
        found = data.folder(mine, on_error="skip").files
    assert {"cats/1.png", "dogs/1.png"} <= set(found)


def test_links_that_branch_without_end_come_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "MAX_FOLDERS", 1000)
    for n in range(30):
        (tmp_path / f"{n}").mkdir()
    for n in range(29):
        for side in "ab":
            (tmp_path / f"{n}" / side).symlink_to(tmp_path / f"{n + 1}")
    with pytest.raises(data.DataError, match=r"more than 1,000 folders.*lead to one another"):
        data.folder(tmp_path / "0")


def test_what_is_no_file_is_named(tmp_path):
    mine = written_folder(tmp_path / "mine", {"good.png": RED})
    (mine / "dangling.png").symlink_to(tmp_path / "nowhere")
    (mine / "circle.png").symlink_to("circle.png")
    os.mkfifo(mine / "pipe.png")
    os.mkfifo(mine / "pipe.txt")
    (mine / "notes").symlink_to(tmp_path / "nowhere")
    wrong = os.fsdecode(b"\xff.png")
    (mine / wrong).write_bytes(RED)
    with pytest.warns(UserWarning, match="4 of the images"):
        ds = data.folder(mine, on_error="skip")
    assert ds.files == ("good.png",)
    assert [text.split(" ")[0] for text in ds.skipped] == [
        "\\udcff.png",
        "circle.png",
        "dangling.png",
        "pipe.png",
    ]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    mine = written_folder(tmp_path / "mine", CLASSES)
    really = os.scandir

    def refusing(path):
        if str(path).endswith("cats"):
            raise PermissionError(13, "Permission denied")
        return really(path)

    monkeypatch.setattr(places.os, "scandir", refusing)
    with pytest.raises(data.UnreadableImageError, match=r"cats/ \(it cannot be listed: Permission"):
        data.folder(mine)


def test_a_pipe_is_no_place(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(data.DataError, match="neither a folder nor a readable zip"):
        data.folder(tmp_path / "pipe.zip")


# --- Zips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evil",
    [
        "../evil.png",
        "cats/../../evil.png",
        "/etc/evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "cats\\..\\evil.png",
        "\\evil.png",
        "C:\\evil.png",
        "./../evil.png",
    ],
)
def test_paths_that_leave_the_zip_are_refused(tmp_path, evil):
    path = tmp_path / "sub" / "a.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cats/1.png", RED)
        member = zipfile.ZipInfo("placeholder")
        member.filename = member.orig_filename = evil
        archive.writestr(member, RED)
    for on_error in ("raise", "skip"):
        with pytest.raises(data.DataError, match="path that leads out of it") as raised:
            data.folder(path, on_error=on_error)
        assert repr(evil) in str(raised.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "sub"]


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("cats/1.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(data.DataError, match="symbolic link"):
        data.folder(tmp_path / "a.zip")


def test_a_wrapping_folder_is_taken_off(tmp_path):
    wrapped = {f"export/mine/{name}": content for name, content in CLASSES.items()}
    ds = data.folder(written_zip(tmp_path / "a.zip", wrapped | {"__MACOSX/export/._x.png": b""}))
    assert ds.classes == ("cats", "dogs")
    flat = {"mine/a.png": RED, "mine/captions.jsonl": b'{"file": "a.png", "caption": "x"}'}
    assert data.folder(written_zip(tmp_path / "b.zip", flat)).captions == ("x",)
    single = {"cats/a.png": RED, "cats/b.png": GREEN}
    assert data.folder(written_zip(tmp_path / "c.zip", single)).classes == ("cats",)


def test_a_damaged_member_is_named_and_the_rest_used(tmp_path):
    path = tmp_path / "a.zip"
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    written_zip(path, {"a.png": buffer.getvalue(), "b.png": RED})
    content = bytearray(path.read_bytes())
    content[content.index(buffer.getvalue()) + 60] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(data.UnreadableImageError, match=r"a\.png .*CRC"):
        data.folder(path)
    with pytest.warns(UserWarning, match=r"a\.png"):
        assert data.folder(path, on_error="skip").files == ("b.png",)


def test_an_encrypted_member_is_named(tmp_path):
    path = written_zip(tmp_path / "a.zip", {"a.png": RED})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(data.UnreadableImageError, match=r"a\.png .*encrypted"):
        data.folder(path)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["./cats/1.png", "./dogs/2.png"], ("cats/1.png", "dogs/2.png")),
        (["././cats//1.png", "dogs/./2.png"], ("cats/1.png", "dogs/2.png")),
        (["cats\\1.png", "dogs\\2.png"], ("cats/1.png", "dogs/2.png")),
        (["mine\\cats\\1.png", "mine\\dogs\\2.png", "mine\\"], ("cats/1.png", "dogs/2.png")),
        (["cats\\1.png", "dogs/2.png"], ("cats/1.png", "dogs/2.png")),
        (["cats/", "cats/1.png", "dogs/2.png", "./"], ("cats/1.png", "dogs/2.png")),
    ],
)
def test_other_spellings_of_a_path(tmp_path, names, files):
    contents = {name: b"" if name.endswith(("/", "\\")) else RED for name in names}
    ds = data.folder(written_zip(tmp_path / "a.zip", contents))
    assert ds.files == files
    assert ds.classes == ("cats", "dogs")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cats/1.png", "cats/1.png"),
        ("cats/1.png", "./cats/1.png"),
        ("cats/1.png", "cats\\1.png"),
        ("cats/1.png", "cats//1.png"),
        ("captions.jsonl", "./captions.jsonl"),
    ],
)
def test_two_members_of_one_name_are_both_named(tmp_path, first, second):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of it when writing
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, content in ((first, RED), (second, BLUE), ("dogs/1.png", GREEN)):
                member = zipfile.ZipInfo("placeholder")
                member.filename = member.orig_filename = name
                archive.writestr(member, content)
    with pytest.raises(data.DataError, match="two members") as raised:
        data.folder(tmp_path / "a.zip")
    assert repr(first) in str(raised.value)
    assert repr(second) in str(raised.value)


@pytest.mark.parametrize("name", [".", "", "cats/.", "./."])
def test_a_member_without_a_name(tmp_path, name):
    with pytest.raises(data.DataError, match="member without a name"):
        data.folder(written_zip(tmp_path / "a.zip", {"cats/1.png": RED, name: RED}))


def test_a_very_long_path_takes_no_time_and_fills_no_page(tmp_path):
    deep = "a/" * 32_700
    for content, names in (
        ({f"{deep}1.png": RED, f"{deep}2.png": RED}, ("a/1.png", "a/2.png")),
        ({f"{deep}b/1.png": RED, f"{deep}c/2.png": RED}, ("b/1.png", "c/2.png")),
        ({"1/1.png": RED, f"{deep}2.png": RED}, ("1/1.png", f"{deep}2.png")),
    ):
        start = time.process_time()
        assert data.folder(written_zip(tmp_path / "a.zip", content)).files == names
        assert time.process_time() - start < 10, "seconds of the processor"
    with pytest.raises(data.UnreadableImageError) as raised:
        data.folder(written_zip(tmp_path / "b.zip", {"1/1.png": RED, f"{deep}2.png": b"bad"}))
    assert len(str(raised.value)) < 1000


# --- Zips that are larger inside --------------------------------------------------------------------------


def lying_zip(path, content, compression, declared):
    """A zip with one member that declares another size than it unpacks to."""
    written_zip(path, {"a.png": content, "b.png": RED}, compression=compression)
    raw = bytearray(path.read_bytes())
    crc = struct.pack("<I", zlib.crc32(content[:declared]))
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        at = raw.index(signature) + offset
        raw[at : at + 4] = crc
        raw[at + 8 : at + 12] = struct.pack("<I", declared)
    path.write_bytes(bytes(raw))
    return path


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path):
    path = lying_zip(tmp_path / "a.zip", bytes(50_000_000), zipfile.ZIP_DEFLATED, declared=1000)
    tracemalloc.start()
    with pytest.raises(data.UnreadableImageError, match=r"a\.png"):
        data.folder(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_cannot_be_bounded_are_not_read(tmp_path, compression):
    path = written_zip(tmp_path / "a.zip", {"a.bmp": RED}, compression=compression)
    with pytest.raises(data.UnreadableImageError, match=r"a\.bmp \(its compression .*deflate it"):
        data.folder(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_usual_compression_is_read(tmp_path, compression):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "BMP")
    path = written_zip(tmp_path / "a.zip", {"a.bmp": buffer.getvalue()}, compression=compression)
    assert np.array_equal(data.folder(path).images[0].permute(1, 2, 0).numpy(), noise)


def test_a_member_that_is_shorter_than_it_says_is_cut_short(tmp_path):
    path = lying_zip(tmp_path / "a.zip", GREEN, zipfile.ZIP_DEFLATED, declared=len(GREEN) + 7)
    with pytest.raises(data.UnreadableImageError, match=r"a\.png \(it"):
        data.folder(path)


def test_a_zip_that_unpacks_to_a_hundred_times_its_size_is_read_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "MAX_RATIO_FROM", 50_000)
    grey = io.BytesIO()
    Image.new("L", (400, 400)).save(grey, "BMP")  # 160 kB of zeros
    files = {f"{n}.bmp": grey.getvalue() for n in range(9)} | {"small.png": RED}
    path = written_zip(tmp_path / "a.zip", files, compression=zipfile.ZIP_DEFLATED)
    room = 100 * path.stat().st_size
    with pytest.warns(UserWarning, match="unpacks to more than 100 times its size"):
        ds = data.folder(path, size=4, on_error="skip")
    assert len(ds) == room // len(grey.getvalue()) + 1 < len(files)
    assert len(data.folder(written_zip(tmp_path / "b.zip", files), size=4)) == len(files), "stored"


def test_an_unknown_compression_is_named(tmp_path):
    path = written_zip(tmp_path / "a.zip", {"a.png": RED})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(signature) + offset
        content[at : at + 2] = struct.pack("<H", 97)
    path.write_bytes(bytes(content))
    with pytest.raises(data.UnreadableImageError, match=r"a\.png .*compression"):
        data.folder(path)
