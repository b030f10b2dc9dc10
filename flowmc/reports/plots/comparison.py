"""The plot of a comparison of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import NullLocator

from flowmc.reports.plots.style import (
    GREY,
    SERIES,
    FigureLayout,
    drawn_twice,
    label_decades,
    legend_above,
    svg_text,
    titled_rows,
)

__all__ = ["cost_plot"]


@drawn_twice
def cost_plot(
    layout: FigureLayout,
    table: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Sequence[str],
    names: Sequence[str],
) -> str:
    """Return the seconds per independent sample, a row for each observable, bounds as arrows.

    Args:
        layout: of the panel.
        table: entries of the runs by observable, as in the JSON document.
        titles: of the observables.
        names: of the runs.
    """
    height = 0.9 + (0.2 + 0.17 * len(names)) * len(table)
    with layout.figure(height, (1.0,), narrow_height=height + 0.2 * len(table)) as (
        figure,
        (axes,),
    ):
        known = []
        for run, name in enumerate(names):
            place = (run - (len(names) - 1) / 2) * 0.5 / len(names)
            for row, entries in enumerate(table.values()):
                entry = entries[run]
                seconds, error = entry["seconds_per_independent_sample"], entry["error"]
                if not math.isfinite(seconds):
                    continue
                known.append(seconds)
                bound = entry["is_lower_bound"]
                axes.errorbar(
                    seconds,
                    row + place,
                    xerr=None if bound else min(error, 0.9 * seconds),
                    fmt=">" if bound else "o",
                    markersize=5,
                    capsize=2.5,
                    color=SERIES[run % len(SERIES)],
                    label=name if row == 0 else None,
                )
        if known and max(known) > 4 * min(known):
            axes.set_xscale("log")
            label_decades(axes, "x")
        axes.yaxis.set_minor_locator(NullLocator())
        titled_rows(axes, layout, titles)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_xlabel("seconds per independent sample")
        legend_above(figure, axes, layout)
        return svg_text(figure)
