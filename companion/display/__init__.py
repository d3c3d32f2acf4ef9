"""What the notebooks show: pictures, curves, tables, sliders, claims and exercises.

Everything here returns an object that a notebook displays as a small piece of HTML, which looks the same in
JupyterLab and on the page of the book and asks no other host for anything. A picture cannot be made without
a caption and an alternative text.
"""

from typing import TYPE_CHECKING

from companion.faces import make_lazy

if TYPE_CHECKING:
    from companion.display.claims import (
        Claim,
        Condition,
        Control,
        Nuance,
        above,
        below,
        claim,
        inside,
        outside,
    )
    from companion.display.exercises import exercise_check
    from companion.display.glued import glue
    from companion.display.pictures import Picture, curves, figure, image_grid
    from companion.display.sliders import Slider, slider
    from companion.display.style import COLOURS, use_style
    from companion.display.tables import Table, table
    from companion.display.text import measured

__all__ = [
    "COLOURS",
    "Claim",
    "Condition",
    "Control",
    "Nuance",
    "Picture",
    "Slider",
    "Table",
    "above",
    "below",
    "claim",
    "curves",
    "exercise_check",
    "figure",
    "glue",
    "image_grid",
    "inside",
    "measured",
    "outside",
    "slider",
    "table",
    "use_style",
]

make_lazy(__name__)
