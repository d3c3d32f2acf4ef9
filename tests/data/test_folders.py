"""Folders and zips of the reader's own images."""

import inspect
import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data
from companion.data import folders, places


def png(colour=(255, 0, 0), size=(6, 4), mode="RGB", kind="PNG", **options):
    """An image of one colour; size is columns × rows, as Pillow has it."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


RED, GREEN, BLUE = png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))
GREY = png(128, mode="L")
CLASSES = {"cats/2.png": GREEN, "cats/1.png": RED, "dogs/deep/3.png": BLUE}


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path):
    """Writes files as a folder or as a zip, and returns its path."""

    def write(files):
        if request.param == "zip":
            return written_zip(tmp_path / "mine.zip", files)
        for name, content in files.items():
            path = tmp_path / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "mine"

    return write


def written_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def captions(*pairs):
    return "\n".join(json.dumps({"file": f, "caption": c}) for f, c in pairs).encode()


def test_one_sub_folder_a_class(place):
    ds = data.folder(
        place(CLASSES | {"notes.txt": b"hello", ".DS_Store": b"", "cats/.hidden.png": b""})
    )
    assert isinstance(ds, data.ImageDataset)
    assert ds.classes == ("cats", "dogs")
    assert ds.labels.tolist() == [0, 0, 1]
    assert ds.files == ("cats/1.png", "cats/2.png", "dogs/deep/3.png")
    assert ds.images.shape == (3, 3, 4, 6)
    assert ds.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert ds.name == "mine"
    assert ds.captions == ds.skipped == ()


def test_flat_with_captions(place):
    files = {"b.png": GREEN, "a.png": RED}
    files["captions.jsonl"] = captions(("a.png", "a red wall"), ("b.png", "grün")) + b"\n\n"
    ds = data.folder(place(files))
    assert ds.files == ("a.png", "b.png")
    assert ds.captions == ("a red wall", "grün")
    assert ds.classes == ("mine",)
    chosen = ds[ds.images[:, 1, 0, 0] == 255]
    assert (chosen.files, chosen.captions) == (("b.png",), ("grün",))
    shuffled = ds.shuffled(torch.Generator().manual_seed(0))
    assert dict(zip(shuffled.files, shuffled.captions, strict=True)) == dict(
        zip(ds.files, ds.captions, strict=True)
    )


def test_flat_without_captions_is_one_class(place):
    ds = data.folder(place({"a.png": RED, "b.png": GREEN}))
    assert ds.classes == ("mine",)
    assert ds.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("faces.v2", "faces.v2"),
        ("v1.0", "v1.0"),
        ("faces.zip/", "faces.zip"),
        ("faces.v2.zip", "faces.v2"),
        ("FACES.ZIP", "FACES"),
        ("faces.cbz", "faces.cbz"),
    ],
)
def test_the_name_is_that_of_the_folder_or_of_the_zip(tmp_path, name, wanted):
    path = tmp_path / name
    if name.endswith("/") or name in ("faces.v2", "v1.0"):
        path.mkdir()
        (path / "a.png").write_bytes(RED)
    else:
        written_zip(path, {"a.png": RED})
    ds = data.folder(path)
    assert (ds.name, ds.classes) == (wanted, (wanted,))


def test_the_folder_one_is_in_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(RED)
    monkeypatch.chdir(tmp_path / "mine")
    assert data.folder(".").classes == ("mine",)
    assert data.folder("../mine/../mine/").classes == ("mine",)


def test_the_kind_is_images_even_if_they_look_like_digits(place):
    files = {f"{k}/a.png": png(size=(28, 28), colour=0, mode="L") for k in range(10)}
    ds = data.folder(place(files))
    assert ds.classes == tuple("0123456789")
    assert ds.kind == "images"


def test_batches_have_captions(place):
    files = {
        "b.png": GREEN,
        "a.png": RED,
        "captions.jsonl": captions(("a.png", "x"), ("b.png", "y")),
    }
    ds = data.folder(place(files))
    batch = ds.batch([1, 0, 1])
    assert batch.captions == ("y", "x", "y")
    assert torch.equal(batch.images, ds.floats()[[1, 0, 1]])


def test_batches_without_captions_have_none(place):
    assert data.folder(place(CLASSES)).batch([0]).captions is None


def test_parts_keep_their_files_and_captions(place):
    files = {f"{n}.png": png((n, 0, 0)) for n in range(10)}
    lines = captions(*((name, f"shade {name}") for name in files))
    train, validation = data.folder(place(files | {"captions.jsonl": lines})).split_off(0.3, seed=0)
    assert (len(train), len(validation)) == (7, 3)
    for part in (train, validation):
        assert part.captions == tuple(f"shade {name}" for name in part.files)
        assert [f"{n}.png" for n in part.images[:, 0, 0, 0].tolist()] == list(part.files)
    assert set(train.files) | set(validation.files) == set(files)


BROKEN = {"cats/bad.png": b"no image", "dogs/cut.png": BLUE[:-30], "dogs/empty.jpg": b""}


def test_unreadable_images_are_all_named_in_one_error(place):
    with pytest.raises(data.UnreadableImageError) as raised:
        data.folder(place(CLASSES | BROKEN))
    message = str(raised.value)
    assert message.startswith("3 of the images in")
    for name in BROKEN:
        assert name in message
    assert 'on_error="skip" uses the other 3' in message


def test_unreadable_images_are_skipped_and_reported(place):
    with pytest.warns(UserWarning, match=r"3 of the images.*cats/bad\.png.*The other 3 are used"):
        ds = data.folder(place(CLASSES | BROKEN), on_error="skip")
    assert ds.files == ("cats/1.png", "cats/2.png", "dogs/deep/3.png")
    assert [text.split(" ")[0] for text in ds.skipped] == sorted(BROKEN)
    assert "not an image" in ds.skipped[0]


def test_a_long_list_of_faults_is_cut(tmp_path):
    files = {f"{n:02}.png": b"bad" for n in range(25)} | {"good.png": RED}
    with pytest.raises(
        data.UnreadableImageError, match=r"25 of the images.*09\.png \(.*and 15 more"
    ):
        data.folder(written_zip(tmp_path / "a.zip", files))


def test_nothing_readable_is_an_error_even_when_skipping(place):
    with pytest.raises(data.UnreadableImageError, match="There are no others"):
        data.folder(place({"a.png": b"bad"}), on_error="skip")


def test_mixed_sizes_need_a_size(place):
    files = {"a.png": RED, "b.png": GREEN, "c.png": png(size=(9, 9))}
    path = place(files)
    with pytest.raises(ValueError, match=r"2 sizes.*4×6 \(2, such as a\.png\), 9×9 \(1.*size=32"):
        data.folder(path)
    assert data.folder(path, size=5).images.shape == (3, 3, 5, 5)
    assert data.folder(path, size=(3, 7)).images.shape == (3, 3, 3, 7)


def test_what_has_no_caption_does_not_count_for_the_size(place):
    files = {"a.png": RED, "b.png": png(size=(9, 9)), "captions.jsonl": captions(("a.png", "x"))}
    with pytest.warns(UserWarning, match="it has no caption"):
        assert data.folder(place(files), on_error="skip").images.shape == (1, 3, 4, 6)


PEAK = """
import pathlib, sys
from companion.data import folder
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
one, many = sys.argv[1:3], sys.argv[3:]
for path in one:
    folder(path, size=16, on_error="raise")  # once, so that everything is loaded
before = peak()
for path in many:
    assert len(folder(path, size=16)) == 12
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's account of memory"
)
def test_images_are_resized_as_they_are_read(tmp_path):
    """Twelve pictures of 9 MB each, in a folder and in a zip, in the memory of two."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=20)
    paths = []
    for name, count in (("one", 1), ("many", 12)):
        files = {f"{n}.jpg": buffer.getvalue() for n in range(count)}
        place = tmp_path / name
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content)
        paths += [place, written_zip(tmp_path / f"{name}.zip", files)]
    found = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 18_000  # kB


def test_images_of_several_sizes_are_not_kept_for_the_error(place):
    picture = png(size=(1000, 1000))
    path = place({f"{n:02}.png": picture for n in range(30)} | {"00.png": png(size=(1000, 999))})
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"1000×1000 \(29, .*999×1000 \(1, such as 00\.png"):
        data.folder(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


def test_more_bytes_than_a_memory_has_are_an_error(place, monkeypatch):
    monkeypatch.setattr(folders, "MAX_TOTAL", 2 * 72)
    files = {"a.png": RED, "b.png": GREEN}
    assert len(data.folder(place(files))) == 2
    with pytest.raises(data.DataError, match=r"more than 144 bytes.*size=32"):
        data.folder(place(files | {"c.png": BLUE}))


def test_resizing_crops_the_middle_and_does_not_alias(place):
    stripes = np.zeros((64, 128), dtype=np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: after shrinking by four, even grey
    stripes[:, :32] = stripes[:, 96:] = 7  # the outer quarters are cut off
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "PNG")
    small = data.folder(place({"a.png": buffer.getvalue()}), size=16).images[0, 0]
    assert small.shape == (16, 16)
    inner = small[:, 2:-2].float()
    assert abs(float(inner.mean()) - 127.5) < 2
    assert float(inner.std()) < 3


def test_the_right_size_is_left_untouched(place):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    ds = data.folder(place({"a.png": buffer.getvalue()}), size=8)
    assert np.array_equal(ds.images[0].permute(1, 2, 0).numpy(), noise)


def test_channels(place):
    grey = place({"a.png": GREY, "b.png": png(200, mode="L")})
    assert data.folder(grey).images.shape[1] == 1
    assert data.folder(grey, channels=3).images.shape[1] == 3
    (mixed := place({"c.png": RED}))
    if mixed == grey:
        assert data.folder(mixed, channels=1).images[-1, 0, 0, 0] == 76  # 0.299 · 255


def test_modes_that_need_care(place):
    half = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    buffer = io.BytesIO()
    half.save(buffer, "PNG")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    other = io.BytesIO()
    palette.save(other, "PNG")
    ds = data.folder(place({"a.png": buffer.getvalue(), "b.png": other.getvalue(), "c.png": GREY}))
    assert ds.images[:, :, 0, 0].tolist() == [[255, 255, 255], [10, 20, 30], [128, 128, 128]]


def test_photographs_are_turned_upright(place):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90°
    ds = data.folder(place({"a.jpg": png(kind="JPEG", exif=exif)}))
    assert ds.images.shape == (1, 3, 6, 4)


def test_an_animation_gives_its_first_frame(place):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert data.folder(place({"a.gif": buffer.getvalue()})).images[0, :, 0, 0].tolist() == [
        255,
        0,
        0,
    ]


def test_an_image_that_claims_to_be_huge_is_not_decoded(place):
    claim = bytearray(RED)
    claim[16:24] = struct.pack(">II", 60_000, 60_000)
    claim[29:33] = struct.pack(">I", zlib.crc32(bytes(claim[12:29])))
    with pytest.raises(data.UnreadableImageError, match=r"huge\.png \("):
        data.folder(place({"huge.png": bytes(claim), "a.png": RED}))


def test_a_file_that_is_too_large_is_not_read(place, monkeypatch):
    monkeypatch.setattr(places, "MAX_BYTES", 500)
    with pytest.raises(
        data.UnreadableImageError, match=r"large\.png \(it has 501 bytes, more than 500"
    ):
        data.folder(place({"large.png": bytes(501), "a.png": RED}))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (b'{"file": "a.png"', ValueError, "line 1 is not JSON"),
        (b'\n{"file": "a.png"}', ValueError, "line 2 must be"),
        (b"[1, 2]", ValueError, "line 1 must be"),
        (captions(("a.png", "x"), ("a.png", "y")), ValueError, "a second time"),
        (b"[" * 100_000, ValueError, "line 1 is not JSON"),
        (b'{"file": "a.png", "caption": ' + b"9" * 5000 + b"}", ValueError, "line 1 is not JSON"),
        (b'{"file": "a.png", "caption": "\\ud800"}', ValueError, "line 1 has half a character"),
        ('{"file": "a.png", "caption": "x"}'.encode("utf-16"), ValueError, "must be text in UTF-8"),
        (b'{"file": "a.png", "caption": "\xe4"}', ValueError, "must be text in UTF-8.* byte 30"),
        (captions(("a.png", "x")), data.UnreadableImageError, r"b\.png \(it has no caption"),
        (
            captions(("a.png", "x"), ("b.png", "y"), ("../c.png", "z")),
            data.UnreadableImageError,
            r"\.\./c\.png \(captions\.jsonl names it, but it is not there",
        ),
    ],
)
def test_captions_that_do_not_fit(place, text, kind, message):
    with pytest.raises(kind, match=message):
        data.folder(place({"a.png": RED, "b.png": GREEN, "captions.jsonl": text}))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\\n", "\r"]
)
def test_a_caption_may_have_any_line_break_inside(place, inside, end):
    if ord(inside[0]) < 0x20:  # JSON wants these escaped
        inside = f"\\u{ord(inside):04x}"
    texts = [f"two{inside}lines", f"{inside}"]
    lines = [f'{{"file": "{n}.png", "caption": "{text}"}}' for n, text in enumerate(texts)]
    path = place({"0.png": RED, "1.png": RED, "captions.jsonl": end.join(lines).encode()})
    assert data.folder(path).captions == tuple(json.loads(f'"{text}"') for text in texts)


def test_an_unreadable_file_of_captions_is_named(place, monkeypatch):
    monkeypatch.setattr(places, "MAX_BYTES", 500)
    path = place({"a.png": RED, "captions.jsonl": b"\n" * 501})
    with pytest.raises(data.DataError, match=r"captions\.jsonl in .* cannot be read.*501 bytes"):
        data.folder(path)


def test_images_without_caption_can_be_skipped(place):
    path = place({"a.png": RED, "b.png": GREEN, "captions.jsonl": captions(("a.png", "x"))})
    with pytest.warns(UserWarning, match="it has no caption"):
        ds = data.folder(path, on_error="skip")
    assert (ds.files, ds.captions) == (("a.png",), ("x",))


def test_images_beside_class_folders_are_an_error(place):
    with pytest.raises(ValueError, match=r"others beside them: loose\.png"):
        data.folder(place(CLASSES | {"loose.png": RED}))


@pytest.mark.parametrize("files", [{}, {"notes.txt": b"x"}])
def test_no_images(tmp_path, files):
    with pytest.raises(data.DataError, match=r"holds no images.*\.png"):
        data.folder(written_zip(tmp_path / "a.zip", files))


def test_no_such_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or zip"):
        data.folder(tmp_path / "nowhere")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no zip")
    with pytest.raises(data.DataError, match="neither a folder nor a readable zip"):
        data.folder(tmp_path / "a.zip")


def test_bad_arguments(tmp_path):
    written_zip(tmp_path / "a.zip", CLASSES)
    with pytest.raises(ValueError, match=r"channels must be 1 \(grey\) or 3"):
        data.folder(tmp_path / "a.zip", channels=2)
    with pytest.raises(ValueError, match="size must be positive"):
        data.folder(tmp_path / "a.zip", size=(0, 3))
    with pytest.raises(ValueError, match="size must have at most"):
        data.folder(tmp_path / "a.zip", size=10**9)
    with pytest.raises((ValueError, TypeError), match="on_error"):
        data.folder(tmp_path / "a.zip", on_error="ignore")


def test_sizes_are_whole_numbers_of_any_library():
    shape = inspect.unwrap(
        folders._shape
    )  # the type checker of the tests is stricter than the function
    assert shape((np.int64(3), np.int32(4))) == (3, 4)
    assert shape(np.int64(3)) == (3, 3)
    for size in (32.0, "32", (1, 2, 3), (1.5, 2), (1,)):
        with pytest.raises(ValueError, match="size must be rows and columns in whole pixels"):
            shape(size)
