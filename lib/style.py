"""One drawing style for every figure: colours that stay apart for everyone, and matplotlib set once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008): eight colours that stay apart under every common colour blindness.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#4D4D4D"]
COLOURS = {
    "male": "#0072B2",
    "female": "#D55E00",
    "teen": "#009E73",
    "child": "#009E73",
    "adult": "#CC79A7",
    "twenties": "#E69F00",
    "thirties": "#56B4E9",
    "fourties": "#8C6D1F",
    "common_voice": "#56B4E9",
    "voxceleb": "#E69F00",
    "speechocean762": "#009E73",
    "train": "#0072B2",
    "validation": "#E69F00",
    "test": "#D55E00",
    "speaker": "#0072B2",
    "paper": "#D55E00",
    "official": "#009E73",
    "gender": "#0072B2",
    "age": "#D55E00",
    "majority": "#8A8A8A",
    "not known": "#8A8A8A",
}
INK, MUTED, RULE = "#22262B", "#5B636D", "#D9D6CF"

STYLE = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws alike
    "axes.linewidth": 0.9,
    "xtick.major.width": 0.9,
    "ytick.major.width": 0.9,
    "figure.figsize": (7.5, 3.6),
    "figure.dpi": 96,
    "figure.constrained_layout.use": True,
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9AA0A6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",
    "svg.hashsalt": "voice",
    "svg.fonttype": "none",  # text stays text: a tenth of the bytes, and it can be searched
}


def use_style() -> None:
    """Set the one matplotlib style of this project; call it once in a notebook's set-up cell.

    The inline backend of a notebook is kept; elsewhere the Agg backend is chosen, which needs no screen.
    """
    import matplotlib
    import matplotlib.style

    if "inline" not in str(matplotlib.get_backend(auto_select=False)):
        matplotlib.use("agg")
    matplotlib.style.use("seaborn-v0_8-ticks")  # seaborn's theme as matplotlib ships it: no second to import seaborn
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": matplotlib.cycler(color=PALETTE)})


def colours_for(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its colour: the fixed one where the project knows the name, else the next unused one."""
    names = list(dict.fromkeys(names))
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in PALETTE if colour not in taken] or PALETTE
    unknown = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or free[unknown.index(name) % len(free)] for name in names}


def new_axes(ax: Axes | None, width: float = 7.5, height: float = 3.6) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    import matplotlib.pyplot as plt

    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]
