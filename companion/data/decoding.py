"""From the bytes of an image file to pixels of 8 bits, grey or RGB.

Only the formats in `FORMATS` are tried: others that Pillow knows start programs of their own (PostScript) or are
rarely tested. A picture turns upright by its EXIF orientation, transparent pixels are laid on white, and of an
animation the first frame is taken. 16 bits a channel become 8 by value / 257, rounded, so that black stays 0 and
white becomes 255.
"""

import io
import sys
import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Larger than any photograph for a model of this book; a small file that claims more is an attack or an accident.
MAX_PIXELS = 100_000_000
# Formats whose mode "I" (32-bit integers) holds 16-bit values.
SIXTEEN_BITS_IN_I = ("PNG", "PPM")
# Pillow's name of the other byte of a 16-bit value: big-endian, little-endian, as this machine has it.
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def decode(
    data: bytes, channels: int | None, shape: tuple[int, int] | None
) -> UInt8[np.ndarray, "c h w"]:
    """Decodes one image.

    Args:
        data: the file.
        channels: 1 turns colours into grey (luma, ITU-R 601). Otherwise a grey image has one channel and any
            other three.
        shape: rows and columns to crop (the largest part in the middle) and resize to (bicubic, without
            aliasing); the image's own if not given.

    Raises:
        OSError: it is no image in a known format, too large, or has pixels that do not fit 8 bits.
        Exception: decoders raise whatever they like on damaged bytes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd metadata; the size is checked here
        image = _upright(data)
    if channels == 1 and image.mode != "L":
        image = image.convert("L")
    if shape is not None and (image.height, image.width) != shape:
        image = ImageOps.fit(image, (shape[1], shape[0]), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright(data: bytes) -> Image.Image:
    """Decodes an image to mode L or RGB."""
    image = _opened(data)
    if image.mode.startswith("F"):
        raise OSError(
            "its pixels are floating-point numbers, which say nothing of black and white; "
            "store it with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I") or _raw_mode(image) is not None:
        return _on_white(_eight_bits(image, data))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _on_white(image)


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Reads the header, and refuses what claims to be huge before it is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise OSError("not an image in a known format") from error
    if image.width * image.height > MAX_PIXELS:
        raise OSError(f"it has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Returns an image of 8 bits in mode L or RGB, its transparent pixels white."""
    palette = image.mode in ("P", "PA")
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if palette:
        image = image.convert("RGB")
        red, green, blue = (np.asarray(band) for band in image.split())
        grey = np.array_equal(red, green) and np.array_equal(green, blue)
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


# --- 16 bits a channel ------------------------------------------------------------------------------------


def _eight_bits(image: Image.Image, data: bytes) -> Image.Image:
    """Decodes an image of 16 bits a channel to 8, in mode L, RGB or RGBA."""
    transparent = image.info.get("transparency")
    values = _sixteen_bits(image, data)
    pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, (int, tuple)):  # one colour, given in 16 bits, stands for nothing
        hit = values == np.asarray(transparent, dtype=np.uint16)
        pixels[hit if hit.ndim == 2 else hit.all(axis=2)] = 255
    return Image.fromarray(pixels)


def _sixteen_bits(image: Image.Image, data: bytes) -> UInt16[np.ndarray, "h w *c"]:
    raw = _raw_mode(image)
    if raw is None or image.mode.startswith("I"):
        if image.mode == "I" and image.format not in SIXTEEN_BITS_IN_I:
            raise OSError(
                "its pixels are whole numbers of more than 16 bits, or below zero; "
                "store it with 8 or 16 bits a channel"
            )
        image.load()
        return np.asarray(_turned(image)).astype(np.uint16)
    # Pillow has no colours of 16 bits: it keeps the high byte. So it decodes twice, the second time told that
    # the bytes lie the other way round.
    base, order = raw.split(";16")
    if base not in ("RGB", "RGBA") or order not in OTHER_BYTE:
        raise OSError(
            f"its pixels are {raw}, which is not understood; store it with 8 bits a channel"
        )
    image.load()
    low = _opened(data)
    low.tile = [_with_raw_mode(tile, f"{base};16{OTHER_BYTE[order]}") for tile in low.tile]
    low.load()
    high_bytes, low_bytes = (np.asarray(_turned(part)).astype(np.uint16) for part in (image, low))
    return high_bytes * 256 + low_bytes


def _turned(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _raw_mode(image: Image.Image) -> str | None:
    """How the file stores 16 bits a channel, such as "RGB;16B", or None if it stores fewer."""
    for tile in getattr(image, "tile", ()):
        found = tile[3] if isinstance(tile[3], str) else (tile[3] or [None])[0]
        if isinstance(found, str) and ";16" in found:
            return found
    return None


def _with_raw_mode(tile: Any, raw: str) -> Any:
    """Returns a tile, whose type is Pillow's own matter, with another raw mode."""
    arguments = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
    # A named tuple in newer versions of Pillow, which use the names.
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)
