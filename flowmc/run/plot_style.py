"""How all plots of ``report.html`` look: palette, figures, SVG text with letters as paths.

One palette for all (Okabe and Ito, told apart by all common kinds of colour vision): blue is data,
orange-red what was estimated from it, grey what does not count.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "RED",
    "SERIES",
    "SHADE",
    "SKY",
    "legend_above",
    "new_figure",
    "svg_text",
]

BLUE, RED, GREEN, ORANGE, SKY, PURPLE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
)
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
INK, GREY, SHADE = "#222222", "#8a8a8a", "#ececec"
WIDTH = 11.0  # inches; the page is as wide, so that 9 points look like 9 points

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.formatter.useoffset": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "flowmc",  # the same data give the same bytes
}


@contextmanager
def new_figure(height: float, widths: Sequence[float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure of panels side by side, of the page's width and a height in inches."""
    # From the defaults: a user's own matplotlibrc must not spoil the page.
    parameters: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        matplotlib.rcParams.update(
            {key: value for key, value in parameters.items() if not key.startswith("backend")}
        )
        figure = Figure(
            figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.03)
        )
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)
        yield figure, list(axes[0])


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG text; the same data give the same bytes."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def legend_above(axes: Axes) -> None:
    """Put the legend into the space above a panel."""
    legend = axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    # It may reach over the neighbour, which has nothing there.
    legend.set_in_layout(False)
