"""Draw charts as SVG to stand in a page, with the page's variables as colours and the page's font."""

import functools
import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune.core.types import Json

P = ParamSpec("P")
CONFIDENCE_BINS, LENGTH_BINS = 10, 8
# Stand-ins while drawing: what they are is for the page to say, by day and by night.
INK, QUIET, LINE, FIRST, SECOND, THIRD, FOURTH = COLOURS = [f"#f0f00{i}" for i in range(7)]
NAMES = ("--ink", "--quiet", "--line", "--first", "--second", "--third", "--fourth")
VARIABLES = dict(zip(COLOURS, NAMES, strict=True))
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",  # names inside are otherwise random
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": QUIET,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
DASHED: Json = {"color": QUIET, "linestyle": (0, (2, 2)), "linewidth": 1}


class Bin(NamedTuple):
    """A bin of rows of like confidence."""

    confidence: float  # mean, 0 to 1
    score: float  # mean, 0 to 100
    rows: int


def drawing(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, Markup]:
    """Return a function that draws on axes as one that returns the SVG."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Markup:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(5.4, 3.0))
            draw(figure.subplots(), *args, **kwargs)
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = file.getvalue()
        text = text[text.index("<svg") :]
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
        text = re.sub(r' id="\w+_\d+"', "", text)  # the same in every drawing, and nothing refers to them
        return Markup(re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2))

    return drawn


@drawing
def curves(axes: Axes, lines: dict[str, Sequence[tuple[float, float]]], best_step: int) -> None:
    """Draw a line through the (step, value) points of each name, and mark the best step."""
    for (name, points), colour in zip(lines.items(), itertools.cycle((FIRST, SECOND, THIRD, FOURTH)), strict=False):
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", label=name)
    axes.axvline(best_step, **DASHED, label="best model")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


@drawing
def reliability(axes: Axes, bins: Sequence[Bin], metric: str) -> None:
    axes.plot([0, 1], [0, 100], **DASHED, label="calibrated")
    axes.plot([b.confidence for b in bins], [b.score for b in bins], color=FIRST, marker="o", label="this model")
    for b in bins:
        _count(axes, b.confidence, b.score, b.rows)
    axes.set(xlim=(0, 1.03), xlabel="confidence")
    _percent(axes, metric)
    axes.legend(loc="upper left")


@drawing
def histogram(axes: Axes, confidences: np.ndarray) -> None:
    axes.hist(confidences, bins=CONFIDENCE_BINS, range=(0, 1), color=FIRST, rwidth=0.86)
    axes.set(xlim=(0, 1), xlabel="confidence", ylabel="rows")


@drawing
def by_length(axes: Axes, lengths: np.ndarray, scores: np.ndarray, metric: str) -> None:
    """Draw the mean score in bins of length that hold about as many rows each."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1], method="nearest"))
    which = np.searchsorted(edges, lengths, side="right")
    names = []
    for place, b in enumerate(np.unique(which)):
        inside, mean = lengths[which == b], scores[which == b].mean()
        axes.bar(place, mean, color=FIRST, width=0.72)
        _count(axes, place, mean, len(inside))
        names.append("–".join(f"{length:.0f}" for length in sorted({inside.min(), inside.max()})))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("words")
    _percent(axes, metric)


def _count(axes: Axes, x: float, y: float, rows: int) -> None:
    at: Json = {"textcoords": "offset points", "ha": "center", "color": QUIET, "fontsize": 7.5}
    axes.annotate(f"{rows:,}", (x, y), (0, 5), **at)


def _percent(axes: Axes, metric: str) -> None:
    axes.set(ylim=(0, 112), yticks=range(0, 101, 25), ylabel=f"mean {metric}")
