"""Image files to pixels of 8 bits."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from companion.data import decoding
from companion.data.decoding import decode

RNG = np.random.default_rng(0)


def png(values, transparent=None):
    """A PNG by its specification: 8 or 16 bits, of shape rows, columns, channels (1 to 4)."""
    rows, columns, channels = values.shape
    bits = 8 * values.dtype.itemsize
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_eight_bits(values):
    """value / 257, rounded, in the order channel, row, column."""
    return np.round(values.astype(np.float64) / 257).astype(np.uint8).transpose(2, 0, 1)


def sixteen(*shape):
    values = RNG.integers(0, 65536, shape).astype(np.uint16)
    values.reshape(-1)[:4] = [0, 65535, 128, 129]  # 128 / 257 is rounded down, 129 / 257 up
    return values


# --- 16 bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight_in_png(channels):
    values = sixteen(37, 23, channels)
    assert np.array_equal(decode(png(values), None, None), to_eight_bits(values))


def test_sixteen_bits_become_eight_in_an_interlaced_or_filtered_png():
    """Pillow writes no colours of 16 bits, but rows that are filtered for real: Paeth by hand."""
    values = sixteen(5, 4, 3)
    raw = values.astype(">u2").reshape(5, -1).view(np.uint8).astype(int)
    lines = b""
    for y, row in enumerate(raw):
        up = raw[y - 1] if y else np.zeros_like(row)
        left, corner = (np.concatenate([np.zeros(6, int), part[:-6]]) for part in (row, up))
        guess = left + up - corner
        distances = np.stack([abs(guess - part) for part in (left, up, corner)])
        chosen = np.choose(distances.argmin(axis=0), [left, up, corner])
        lines += b"\x04" + ((row - chosen) % 256).astype(np.uint8).tobytes()
    file = png(values).replace(
        *(
            struct.pack(">I", len(packed))
            + b"IDAT"
            + packed
            + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
            for packed in (png_data(values), zlib.compress(lines))
        )
    )
    assert np.array_equal(decode(file, None, None), to_eight_bits(values))


def png_data(values):
    return zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight_in_tiff(channels, compression, byteorder):
    values = sixteen(37, 23, channels)
    content = values if channels == 3 else values[:, :, 0]
    kind = "rgb" if channels == 3 else "minisblack"
    file = tiff(content, photometric=kind, compression=compression, byteorder=byteorder)
    assert np.array_equal(decode(file, None, None), to_eight_bits(values))


@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_sixteen_bits_become_eight_in_pgm_and_ppm(kind):
    values = sixteen(7, 5, 1 if kind == "P5" else 3)
    file = f"{kind}\n5 7\n65535\n".encode() + values.astype(">u2").tobytes()
    assert np.array_equal(decode(file, None, None), to_eight_bits(values))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 255), st.sampled_from([1, 3]))
def test_sixteen_bits_that_were_eight_come_back(byte, channels):
    values = np.full((2, 3, channels), byte * 257, dtype=np.uint16)
    assert (decode(png(values), None, None) == byte).all()


def test_transparency_of_sixteen_bits_is_laid_on_white():
    values = sixteen(6, 5, 4)
    found = decode(png(values), None, None).transpose(1, 2, 0)
    bytes_ = to_eight_bits(values).transpose(1, 2, 0).astype(float)
    opacity = bytes_[..., 3:] / 255
    assert np.abs(found - (bytes_[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1
    for channels in (1, 3):
        values = sixteen(6, 5, channels)
        values[2, 3] = [1000, 2000, 3000][:channels]
        values[2, 4] = [1001, 2000, 3000][:channels]  # its high bytes are the same
        wanted = to_eight_bits(values)
        wanted[:, 2, 3] = 255
        file = png(values, transparent=values[2, 3].tolist())
        assert np.array_equal(decode(file, None, None), wanted)


def test_photographs_of_sixteen_bits_are_turned_upright():
    values = sixteen(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    Image.new("L", (1, 1)).save(turned, "PNG", exif=exif, pnginfo=info)
    chunk = turned.getvalue()
    start = chunk.index(b"eXIf") - 4
    length = struct.unpack(">I", chunk[start : start + 4])[0] + 12
    plain = png(values)
    file = plain[:33] + chunk[start : start + length] + plain[33:]
    assert np.array_equal(decode(file, None, None), to_eight_bits(np.rot90(values, -1)))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (tiff(np.zeros((4, 5), np.float32)), "floating-point"),
        (tiff(np.zeros((4, 5), np.int32)), "more than 16 bits, or below zero"),
        (tiff(np.zeros((4, 5), np.uint32)), "more than 16 bits"),
        (tiff(np.zeros((4, 5), np.int16)), "below zero"),
        (png(sixteen(4, 5, 2)), "LA;16B, which is not understood"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(file, message):
    with pytest.raises(OSError, match=f"{message}.*store it with"):
        decode(file, None, None)


# --- Grey or not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("grey", [True, False])
def test_a_palette_of_greys_is_grey(kind, grey):
    image = Image.fromarray(
        RNG.integers(0, 4, (6, 5)).astype(np.uint8), "P" if kind != "x" else "L"
    )
    colours = np.array([[9, 9, 9], [200, 200, 200], [40, 40, 40], [7, 7, 7]], dtype=np.uint8)
    if not grey:
        colours[2, 1] = 41
    image.putpalette(
        colours.tobytes() + b"\1\2\3" * 252
    )  # the colours that no pixel has do not count
    found = decode(saved(image, kind), None, None)
    wanted = colours[np.asarray(image)]
    if grey:
        assert np.array_equal(found, wanted[None, :, :, 0])
    else:
        assert np.array_equal(found, wanted.transpose(2, 0, 1))


def test_a_transparent_palette_of_greys_is_grey():
    image = Image.new("P", (3, 2), 1)
    image.putpixel((0, 0), 0)
    image.putpalette([9, 9, 9, 50, 50, 50])
    found = decode(saved(image, "PNG", transparency=0), None, None)
    assert found.tolist() == [[[255, 50, 50], [50, 50, 50]]]


def test_channels_and_shape():
    values = RNG.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    image = Image.fromarray(values)
    assert np.array_equal(decode(png(values), None, None), values.transpose(2, 0, 1))
    assert np.array_equal(decode(png(values), 1, None)[0], np.asarray(image.convert("L")))
    cut = image.resize((4, 4), Image.Resampling.BICUBIC, box=(2, 0, 10, 8))
    assert np.array_equal(decode(png(values), 3, (4, 4)), np.asarray(cut).transpose(2, 0, 1))


# --- Which formats ----------------------------------------------------------------------------------------


def test_other_formats_are_not_even_tried():
    """A PostScript file would start a program."""
    Image.init()
    foreign = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
        "ICO": saved(Image.new("RGB", (16, 16)), "ICO"),
        "TGA": saved(Image.new("RGB", (16, 16)), "TGA"),
        "PCX": saved(Image.new("RGB", (16, 16)), "PCX"),
        "SGI": saved(Image.new("RGB", (16, 16)), "SGI"),
    }
    for kind, file in foreign.items():
        assert Image.open(io.BytesIO(file)).format == kind, "Pillow would open it"
        with pytest.raises(OSError, match="not an image in a known format"):
            decode(file, None, None)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_known_formats(kind):
    image = Image.new("RGB", (6, 4), (200, 100, 50))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(saved(image, kind, **options), None, None)
    assert found.shape == (3, 4, 6)
    assert np.abs(found[:, 0, 0].astype(int) - [200, 100, 50]).max() <= (3 if kind == "JPEG" else 0)


def test_what_claims_to_be_huge_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 19)
    with pytest.raises(OSError, match="5×4 pixels, more than 19"):
        decode(png(sixteen(4, 5, 3)), None, None)
