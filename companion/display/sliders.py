"""The book's interactive figure: a slider over pictures that works on paper-thin pages and in live kernels.

A static page holds one small picture for each position of the slider and a few lines of script that swap
them. Where a kernel is running and ipywidgets is there, the reader gets its twin instead, which calls the
drawing function again at every move.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from companion.display.pictures import (
    Kind,
    data_uri,
    encode,
    refused_figures_closed,
    render,
    require_kind,
    tile,
)
from companion.display.text import require_words, to_attribute, to_html

MAX_FRAMES = 24
_ZOOMED_WIDTH = 360

# Each figure brings the script, which looks after every slider that no script has taken on yet: a page may show one
# figure twice, and viewers that run the scripts of an output elsewhere in the page find their figures too. The mark is
# a property, not an attribute, so that a page that is saved and opened again works.
_SCRIPT = """
(() => {
  for (const box of document.querySelectorAll("figure.cmp-slider")) {
    const source = box.querySelector("script[type='application/json']");
    if (box.cmpReady || !source) continue;
    box.cmpReady = true;
    const data = JSON.parse(source.textContent);
    const input = box.querySelector("input"), image = box.querySelector("img"), output = box.querySelector("output");
    input.addEventListener("input", () => {
      const i = Number(input.value);
      image.src = data.frames[i];
      image.alt = data.alt + " " + data.name + ": " + data.labels[i] + ".";
      output.textContent = data.labels[i];
      input.setAttribute("aria-valuetext", data.labels[i]);
    });
  }
})();
"""


class Slider:
    """A picture that a slider changes; the last expression of a cell shows it.

    Attributes:
        frames: the PNG files, one for each value.
        labels: the values as they are shown.
        html: the `<figure>` element with the slider in it.
    """

    def __init__(
        self,
        draw: Callable[[Any], Figure | Tensor],
        values: Sequence[Any],
        *,
        name: str,
        alt: str,
        caption: str,
        format: str,
        start: int,
        kind: Kind | None,
    ):
        require_kind(kind)
        self.name = require_words("name", name)
        self.alt = require_words("alt", alt)
        self.caption = require_words("caption", caption)
        self.values = list(values)
        if not 2 <= len(self.values) <= MAX_FRAMES:
            raise ValueError(
                f"{len(self.values)} values for slider {name!r}: give 2 to {MAX_FRAMES}, since each is a picture "
                "in the page"
            )
        if not 0 <= start < len(self.values):
            raise ValueError(
                f"start={start} for slider {name!r}: give an index from 0 to {len(self.values) - 1}"
            )
        self.labels = [format.format(value) for value in self.values]
        self.start, self.draw = start, draw
        with refused_figures_closed():
            drawn = [_draw_frame(draw(value), kind) for value in self.values]
        self.frames = [frame.png for frame in drawn]
        self.kind = drawn[start].kind
        self.html = self._figure(width=drawn[start].width, pixelated=drawn[start].pixelated)

    def _figure(self, width: int, pixelated: bool) -> str:
        sources = [data_uri(png) for png in self.frames]
        alt = self.alt if self.alt.endswith((".", "!", "?")) else self.alt + "."
        data = {"alt": alt, "name": self.name, "labels": self.labels, "frames": sources}
        # "</" would end the script element early.
        payload = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
        label = self.labels[self.start]
        style = ' style="image-rendering: pixelated"' if pixelated else ""
        return (
            f'<figure class="cmp-figure cmp-slider cmp-{self.kind}">'
            f'<img src="{sources[self.start]}" width="{width}"{style} '
            f'alt="{to_attribute(f"{alt} {self.name}: {label}.")}">'
            f'<div class="cmp-controls"><label><span>{to_html(self.name)}</span> '
            f'<input type="range" min="0" max="{len(self.frames) - 1}" step="1" '
            f'value="{self.start}" aria-valuetext="{to_attribute(label)}" autocomplete="off"></label>'
            f"<output>{to_html(label)}</output></div>"
            f"<figcaption>{to_html(self.caption)}</figcaption>"
            f'<script type="application/json">{payload}</script>'
            f"<script>{_SCRIPT}</script></figure>"
        )

    def widget(self) -> Any:
        """Builds the live twin, which draws anew at every move.

        Returns:
            An ipywidgets box.

        Raises:
            ImportError: if ipywidgets is not installed.
        """
        import ipywidgets

        control = ipywidgets.SelectionSlider(
            options=list(zip(self.labels, range(len(self.values)), strict=True)),
            value=self.start,
            description=self.name,
            continuous_update=False,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="30em"),
        )
        image = ipywidgets.Image(value=self.frames[self.start], format="png")
        text = ipywidgets.HTML(f"<p>{to_html(self.caption)}</p>")

        def redraw(change: dict) -> None:
            image.value = _draw_frame(self.draw(self.values[change["new"]]), self.kind).png

        control.observe(redraw, names="value")
        return ipywidgets.VBox([control, image, text])

    def _repr_html_(self) -> str:
        return self.html

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = {"text/html": self.html, "text/plain": repr(self)}
        if _kernel_is_live():
            try:
                view = self.widget()._repr_mimebundle_()
            except ImportError:
                return bundle
            key = "application/vnd.jupyter.widget-view+json"
            bundle[key] = view[key]
        return bundle

    def __repr__(self) -> str:
        return f"Slider: {self.name}, {len(self.values)} positions"


def _kernel_is_live() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


class _Frame(NamedTuple):
    png: bytes
    width: int  # on the page, in CSS pixels
    pixelated: bool  # whether pixels are shown as squares
    kind: Kind


def _draw_frame(drawing: object, kind: Kind | None) -> _Frame:
    if isinstance(drawing, Figure):
        kind = kind or "plot"
        return _Frame(*render(drawing, kind), False, kind)
    if isinstance(drawing, Tensor):
        sheet = tile(drawing[None] if drawing.ndim == 3 else drawing, columns=8)
        zoom = max(1.0, _ZOOMED_WIDTH / sheet.width)
        png = encode(sheet, 256 if sheet.mode == "RGB" else None)
        return _Frame(png, round(sheet.width * zoom), zoom > 1, kind or "image")
    raise TypeError(
        f"the drawing function returned {type(drawing).__name__}: return a matplotlib figure or an image tensor"
    )


def slider(
    draw: Callable[[Any], Figure | Tensor],
    values: Sequence[Any],
    *,
    name: str,
    alt: str,
    caption: str,
    format: str = "{:g}",
    start: int = 0,
    kind: Kind | None = None,
) -> Slider:
    """Makes an interactive figure: one picture for each value, chosen with a slider.

    Args:
        draw: takes a value, returns a matplotlib figure (all of one size), an image (c, h, w) or images
            (n, c, h, w), uint8 or float in [−1, 1].
        values: 2 to 24 values, in the order of the slider.
        name: what the slider changes, such as "JPEG quality"; its label.
        alt: what the picture shows, for readers who cannot see it; the value is added to it.
        caption: what to see when the slider moves.
        format: how a value is shown, as for `str.format`.
        start: index of the value shown first.
        kind: "plot" for line art, whose colours are inverted on a dark page, "image" for pictures, which would then be
            negatives. Tensors are taken for images and figures for plots, so a figure that shows images, with
            `imshow` for instance, needs `kind="image"`.

    Raises:
        ValueError: for too few or too many values, a bad start, blank words, or a kind that is neither. Figures that
            were drawn until then are closed.
        TypeError: if `draw` returns something else, or images that are neither uint8 nor floats.
    """
    return Slider(
        draw, values, name=name, alt=alt, caption=caption, format=format, start=start, kind=kind
    )
