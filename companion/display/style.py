"""The look of the book's plots."""

import matplotlib as mpl
from matplotlib.rcsetup import cycler

#: Okabe and Ito's eight colours, told apart under every common colour-vision deficiency (Okabe & Ito, 2008,
#: "Color Universal Design"), with yellow last because it is faint on white.
COLOURS: tuple[str, ...] = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#F0E442",
)


def use_style() -> None:
    """Sets matplotlib's defaults to the book's style for the rest of the session."""
    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (6.4, 3.6),
            "font.size": 10,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "image.cmap": "gray",
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.8,
        }
    )
