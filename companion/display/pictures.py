"""Still pictures: matplotlib figures, grids of images and curves, as HTML with caption and alternative text."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from companion.data import to_uint8
from companion.display.text import require_words, to_attribute, to_html
from companion.errors import unknown_name

Kind = Literal["plot", "image"]
Images = UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"]

# Pictures are stored at twice the size at which they are shown, for screens with small pixels.
_PIXELS_PER_INCH = 96
_OVERSAMPLING = 1.5
_GAP = 2
_PAGE_WIDTH = 720


class Picture:
    """A picture with its caption; the last expression of a cell shows it.

    Attributes:
        caption: the text under the picture.
        alt: what a reader who cannot see the picture is told.
        html: the `<figure>` element.
    """

    def __init__(
        self, png: bytes, width: int, *, alt: str, caption: str, kind: Kind, pixelated: bool
    ):
        self.alt = require_words("alt", alt)
        self.caption = require_words("caption", caption)
        style = ' style="image-rendering: pixelated"' if pixelated else ""
        self.html = (
            f'<figure class="cmp-figure cmp-{kind}">'
            f'<img src="{data_uri(png)}" alt="{to_attribute(self.alt)}" width="{width}"{style}>'
            f"<figcaption>{to_html(self.caption)}</figcaption></figure>"
        )

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "Picture"


def data_uri(png: bytes) -> str:
    """Returns a PNG file as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def encode(image: Image.Image, colours: int | None = None) -> bytes:
    """Writes a PNG file, with a palette of so many colours if that is asked for."""
    if colours is not None:
        image = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def require_kind(kind: Kind | None) -> None:
    """Checks that a kind of picture is one of the two.

    Raises:
        ValueError: if it is neither.
    """
    if kind is not None and kind not in get_args(Kind):
        raise unknown_name("kind of picture", kind, get_args(Kind))


@contextmanager
def refused_figures_closed() -> Iterator[None]:
    """Closes the pyplot figures that were opened within, if what is done within raises.

    A figure that stays open would be shown by Jupyter although it was refused, and keeps its memory.
    """
    before = set(plt.get_fignums())
    try:
        yield
    except BaseException:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
        raise


def render(fig: Figure, kind: Kind) -> tuple[bytes, int]:
    """Draws a matplotlib figure and closes it, also if it cannot be drawn.

    Returns:
        The PNG file and the width at which it is shown, in CSS pixels.
    """
    buffer = io.BytesIO()
    try:
        fig.savefig(buffer, format="png", dpi=_PIXELS_PER_INCH * _OVERSAMPLING, facecolor="white")
    finally:
        plt.close(fig)
    width = round(fig.get_figwidth() * _PIXELS_PER_INCH)
    with Image.open(buffer) as image:
        # A plot has few colours; a photograph needs the whole palette.
        return encode(image, 96 if kind == "plot" else 256), width


def figure(fig: Figure, *, alt: str, caption: str, kind: Kind = "plot") -> Picture:
    """Shows a matplotlib figure, and closes it so that Jupyter does not show it twice.

    Args:
        fig: the figure.
        alt: what the picture shows, for readers who cannot see it.
        caption: what to see in it. `measured` numbers, `code` and *emphasis* are allowed.
        kind: "plot" for line art, whose colours are inverted on a dark page, "image" for pictures, which are not.

    Raises:
        ValueError: if `alt` or `caption` is blank, or `kind` is neither. The figure is closed all the same.
    """
    try:
        require_kind(kind)
        require_words("alt", alt)
        require_words("caption", caption)
    except ValueError:
        plt.close(fig)
        raise
    png, width = render(fig, kind)
    return Picture(png, width, alt=alt, caption=caption, kind=kind, pixelated=False)


def _as_uint8(images: Images) -> UInt8[Tensor, "n c h w"]:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images have shape {tuple(images.shape)}: give (n, channels, height, width) with 1 or 3 channels"
        )
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise TypeError(
            f"images of {images.dtype} could be anything: give uint8 in [0, 255] or floats in [−1, 1], for instance "
            "`mask * 2.0 - 1` of a mask"
        )
    return to_uint8(images.float().clamp(-1, 1))


def tile(images: Images, columns: int) -> Image.Image:
    """Lays images out in rows, two pixels apart, on mid-grey.

    Args:
        images: uint8, or float in [−1, 1].
        columns: images in a row, 1 or more.

    Raises:
        TypeError: for whole numbers other than uint8, and for booleans.
        ValueError: for a wrong shape, no images, no columns, or values that are not numbers.
    """
    if len(images) == 0:
        raise ValueError("there are no images to show: give at least one")
    if columns < 1:
        raise ValueError(f"columns={columns}: give 1 or more")
    array = _as_uint8(images).permute(0, 2, 3, 1).numpy()
    n, h, w, c = array.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = np.full((rows * (h + _GAP) - _GAP, columns * (w + _GAP) - _GAP, c), 128, np.uint8)
    for i, image in enumerate(array):
        top, left = (i // columns) * (h + _GAP), (i % columns) * (w + _GAP)
        sheet[top : top + h, left : left + w] = image
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)


def image_grid(
    images: Images,
    *,
    alt: str,
    caption: str,
    columns: int = 8,
    titles: Sequence[str] | None = None,
    zoom: float | None = None,
) -> Picture:
    """Shows images in a grid.

    Args:
        images: shape (n, c, h, w), uint8 in [0, 255] or float in [−1, 1] (values outside are clipped), c = 1 or 3.
        alt: what the picture shows, for readers who cannot see it.
        caption: what to see in it.
        columns: images in a row.
        titles: one short line above each image.
        zoom: screen pixels for each image pixel; chosen to suit small images if not given.

    Raises:
        TypeError: for whole numbers other than uint8, and for booleans.
        ValueError: for a wrong shape, no images, no columns, values that are not numbers, a number of titles that
            differs from the number of images, or a blank `alt` or `caption`.
    """
    if titles is not None:
        with refused_figures_closed():
            return _titled_grid(images, titles, alt=alt, caption=caption, columns=columns)
    sheet = tile(images, columns)
    if zoom is None:
        zoom = max(1.0, min(3.0, 480 / sheet.width))
    width = min(round(sheet.width * zoom), _PAGE_WIDTH)
    png = encode(sheet)
    return Picture(png, width, alt=alt, caption=caption, kind="image", pixelated=zoom > 1)


def _titled_grid(
    images: Images, titles: Sequence[str], *, alt: str, caption: str, columns: int
) -> Picture:
    if len(titles) != len(images):
        raise ValueError(
            f"{len(titles)} titles for {len(images)} images: give one title for each image"
        )
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: give at least one of each")
    array = _as_uint8(images).permute(0, 2, 3, 1).numpy()
    columns = min(columns, len(array))
    rows = -(-len(array) // columns)
    side = min(1.9, 7.2 / columns)
    height = side * array.shape[1] / array.shape[2] + 0.3
    fig, axes = plt.subplots(
        rows, columns, figsize=(side * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, array, titles, strict=False):
        grey = image.shape[2] == 1
        axis.imshow(
            image[..., 0] if grey else image,
            cmap="gray" if grey else None,
            vmin=0,
            vmax=255,
            interpolation="nearest" if image.shape[0] <= 64 else "antialiased",
        )
        axis.set_title(title, fontsize=8, pad=3)
    return figure(fig, alt=alt, caption=caption, kind="image")


def curves(
    series: Mapping[str, tuple],
    *,
    xlabel: str,
    ylabel: str,
    alt: str,
    caption: str,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
    size: tuple[float, float] = (6.4, 3.6),
) -> Picture:
    """Draws named curves in one plot.

    Args:
        series: name → (x, y), or (x, y, spread) for a band of y ± spread; all one-dimensional, of one length.
        xlabel: name of the horizontal quantity, with its unit.
        ylabel: name of the vertical quantity, with its unit.
        alt: what the picture shows, for readers who cannot see it.
        caption: what to see in it.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        title: a line above the plot.
        size: width and height in inches.

    Raises:
        ValueError: if a series is not of that form, or `alt` or `caption` is blank.
    """
    with refused_figures_closed():
        fig = _curves(series, log_x, log_y, size)
        fig.axes[0].set(xlabel=xlabel, ylabel=ylabel, title=title)
        return figure(fig, alt=alt, caption=caption)


def _curves(
    series: Mapping[str, tuple], log_x: bool, log_y: bool, size: tuple[float, float]
) -> Figure:
    fig, axis = plt.subplots(figsize=size, layout="constrained")
    for name, values in series.items():
        arrays = [np.asarray(v, dtype=float) for v in values]
        if len(arrays) not in (2, 3) or any(
            a.shape != arrays[0].shape or a.ndim != 1 for a in arrays
        ):
            shapes = [a.shape for a in arrays]
            raise ValueError(
                f"series {name!r} has shapes {shapes}: give (x, y) or (x, y, spread), each one-dimensional "
                "and of the same length"
            )
        x, y = arrays[:2]
        (line,) = axis.plot(x, y, marker="o" if len(x) <= 15 else None, markersize=4, label=name)
        if len(arrays) == 3:
            axis.fill_between(
                x, y - arrays[2], y + arrays[2], color=line.get_color(), alpha=0.2, lw=0
            )
    if log_x:
        axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")
    if len(series) > 1:
        axis.legend()
    return fig
