"""How all plots of ``report.html`` look: palette, layouts for wide and narrow pages, SVG text.

One palette for all (Okabe and Ito, told apart by all common kinds of colour vision): blue is data,
orange-red what was estimated from it, grey what does not count.  In the SVG text a colour of the
palette is a variable of the page's style sheet, which has other values for a dark screen, and
letters are letters, in the page's own typeface.

Every plot is drawn twice, for a wide page with its panels side by side, and for a narrow one with
one below the other: a wide plot scaled down to a telephone cannot be read.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "RED",
    "SERIES",
    "SHADE",
    "SKY",
    "SMALL",
    "TAU_INT",
    "Drawing",
    "FigureLayout",
    "drawn_twice",
    "label_decades",
    "legend_above",
    "outline",
    "titled_rows",
    "with_errors",
    "without_scale",
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
INK, GREY, SHADE, PAPER = "#222222", "#8a8a8a", "#ececec", "#fefefe"
_VARIABLES = {
    BLUE: "blue",
    RED: "red",
    GREEN: "green",
    ORANGE: "orange",
    SKY: "sky",
    PURPLE: "purple",
    INK: "ink",
    GREY: "grey",
    SHADE: "shade",
    PAPER: "paper",
}

# Inches.  At 96 pixels each, the content of the page on a wide screen and on a telephone: there
# 9 points look like 9 points.
WIDE, NARROW = 11.0, 3.72
SMALL = 8.0  # points, for what has little room; never less
# Without mathematical typesetting, whose small letters a telephone cannot show; see _lowered.
TAU_INT = "τᵢₙₜ"

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
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "flowmc",  # the same data give the same bytes
}

Parameters = ParamSpec("Parameters")


@dataclass(frozen=True)
class Drawing:
    """One plot as SVG text, for a wide and for a narrow page."""

    wide: str
    narrow: str


@dataclass(frozen=True)
class FigureLayout:
    """How the panels of a plot are arranged."""

    is_narrow: bool

    @contextmanager
    def figure(
        self,
        height: float,
        widths: Sequence[float],
        *,
        rows: Sequence[Sequence[int]] | None = None,
        narrow_height: float | Sequence[float] | None = None,
    ) -> Iterator[tuple[Figure, list[Axes]]]:
        """Open a figure and its panels.

        Args:
            height: of a wide page's figure, in inches.
            widths: of the panels on a wide page, relative to each other.
            rows: on a narrow page, the panels of each row; by default every panel is one.
            narrow_height: of every row of a narrow page, or of each, in inches.
        """
        # From the defaults: a user's own matplotlibrc must not spoil the page.
        parameters: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE}
        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
            matplotlib.rcParams.update(
                {key: value for key, value in parameters.items() if not key.startswith("backend")}
            )
            if not self.is_narrow:
                rows = [range(len(widths))]
            elif rows is None:
                rows = [[panel] for panel in range(len(widths))]
            heights = (narrow_height or min(height, 2.3)) if self.is_narrow else height
            if not isinstance(heights, Sequence):
                heights = [heights] * len(rows)
            figure = Figure(
                figsize=(NARROW if self.is_narrow else WIDE, sum(heights)),
                layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.05 if self.is_narrow else 0.03),
            )
            FigureCanvasSVG(figure)
            grid = figure.add_gridspec(len(rows), 1, height_ratios=heights)
            axes: dict[int, Axes] = {}
            for place, panels in enumerate(rows):
                ratios = [widths[panel] for panel in panels]
                row = grid[place].subgridspec(1, len(panels), width_ratios=ratios)
                axes |= {p: figure.add_subplot(row[i]) for i, p in enumerate(panels)}
            yield figure, [axes[panel] for panel in sorted(axes)]


def drawn_twice(
    plot: Callable[Concatenate[FigureLayout, Parameters], str],
) -> Callable[Parameters, Drawing]:
    """Make a plot that is given its layout into one that is drawn for both."""

    @functools.wraps(plot)
    def both(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Drawing:
        return Drawing(
            plot(FigureLayout(False), *args, **kwargs), plot(FigureLayout(True), *args, **kwargs)
        )

    return both


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG text to stand in a page; the same data give the same bytes."""
    # Once each: savefig would lay out and draw twice, which is most of the time.
    engine, canvas = figure.get_layout_engine(), figure.canvas
    assert engine is not None and isinstance(canvas, FigureCanvasSVG)
    engine.execute(figure)
    figure.set_layout_engine("none")
    buffer = io.StringIO()
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # The size is the page's business, and a style sheet in here would be the whole page's.
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour.lower(), f"var(--{name})")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(rf"{TAU_INT}([^<]*)", _lowered, text)
    # All drawings of a page share their identifiers' name space.
    own = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", text)


def legend_above(figure: Figure, axes: Axes, layout: FigureLayout) -> None:
    """Put the legend of a panel into a line of its own at the top of the figure."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=_columns(labels, NARROW if layout.is_narrow else WIDE),
            borderaxespad=0.1,
            columnspacing=1.0,
            handlelength=1.4,
        )


def with_errors(
    axes: Axes, places: ArrayLike, values: ArrayLike, errors: ArrayLike, colour: str, **more: Any
) -> None:
    """Draw values as points, with their errors as far as these are known."""
    known = np.nan_to_num(np.asarray(errors, dtype=float), posinf=0.0)
    look = {"fmt": "o", "markersize": 4, "linewidth": 1.0, "capsize": 2.5, **more}
    axes.errorbar(places, values, known, color=colour, **look)


def outline(axes: Axes, values: NDArray, bins: Any, colour: str, label: str) -> None:
    """Draw a distribution, filled lightly, so that another can lie upon it."""
    axes.hist(
        values,
        bins,
        density=True,
        histtype="stepfilled",
        facecolor=(*to_rgb(colour), 0.25),
        edgecolor=colour,
        label=label,
    )


def without_scale(axes: Axes) -> None:
    """Leave out the vertical axis of a density."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def titled_rows(axes: Axes, layout: FigureLayout, titles: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of a panel, from above."""
    if layout.is_narrow:
        # Beside the axis they would take all the room there is.
        axes.set_yticks([])
        place = axes.get_yaxis_transform()
        for row, title in enumerate(titles):
            axes.text(0.01, row - 0.22, title, transform=place, va="bottom")
    else:
        axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.75)


def label_decades(axes: Axes, which: str) -> None:
    """Write the numbers of a logarithmic axis ("x" or "y") without exponents set above the line."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _lowered(match: re.Match[str]) -> str:
    """Return tau_int with letters that are smaller and lower, but not as small as the glyphs."""
    lowered = f'<tspan dy="2" style="font-size: {SMALL:g}px">int</tspan>'
    return f'τ{lowered}<tspan dy="-2">{match[1]}</tspan>'


def _columns(labels: Sequence[str], width: float) -> int:
    """Return how many entries of a legend have room beside each other."""
    longest = max(map(len, labels))
    # A letter of 9 points is 0.075 inches wide, handle and gaps are 0.4.
    return max(1, min(4, len(labels), int(width / (0.075 * longest + 0.4))))
