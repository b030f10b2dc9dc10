"""The plots in the page of a training: loss, effective sample size, weights, gradient by step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from flowmc.reports.analysis.training import OTHERS, TrainingRecord
from flowmc.reports.plots.style import (
    BLUE,
    GREY,
    RED,
    FigureLayout,
    drawn_twice,
    label_decades,
    svg_text,
)

__all__ = ["quality_plot", "steps_plot"]

SMOOTH = 50  # bins of a running median
FLAT = 20.0  # times the range of the last half, beyond which the beginning is cut off


@drawn_twice
def quality_plot(layout: FigureLayout, record: TrainingRecord) -> str:
    """Return loss, and effective sample size of the batches, by step."""
    with layout.figure(2.75, (1.0, 1.0)) as (figure, (loss, ess)):
        values = record.columns["loss"]
        _series(loss, record.steps, values)
        late = values[len(values) // 2 :]
        late = late[np.isfinite(late)]
        if late.size:
            # The first steps are far away from all that follows.
            low, high = np.nanmin(values), late.max()
            room = 0.1 * (high - low) or 1.0
            if np.nanmax(values) - low > FLAT * (high - low):
                loss.set_ylim(low - room, high + FLAT / 2 * room)
        loss.set_ylabel("loss")
        _series(ess, record.steps, record.columns["ess"])
        measured = record.measured.get("ess")
        if measured is not None:
            ess.axhline(measured, color=RED, linewidth=1.0)
            ess.set_title(f"measured: {measured:.3g}", color=RED)
        ess.set_ylim(0, 1.02)
        ess.set_ylabel("ESS of a batch")
        return svg_text(figure)


@drawn_twice
def steps_plot(layout: FigureLayout, record: TrainingRecord) -> str:
    """Return largest weight, norm of the gradient and learning rate by step, as far as known."""
    names = [name for name in OTHERS if np.isfinite(record.columns.get(name, np.nan)).any()]
    with layout.figure(2.3, (1.0,) * len(names)) as (figure, panels):
        for axes, name in zip(panels, names, strict=True):
            _series(axes, record.steps, record.columns[name])
            axes.set_ylabel(OTHERS[name])
            known = record.columns[name]
            known = known[np.isfinite(known) & (known > 0)]
            if known.size and known.max() > 10 * known.min():
                axes.set_yscale("log")
                label_decades(axes, "y")
            else:
                axes.set_ylim(bottom=0)
        return svg_text(figure)


def _series(axes: Axes, steps: NDArray, values: NDArray) -> None:
    """Draw every logged step, and the median over bins of many."""
    many = len(steps) > 4 * SMOOTH
    axes.plot(
        steps,
        values,
        color=BLUE,
        linewidth=0.6 if many else 1.1,
        alpha=0.45 if many else 1.0,
        marker="o" if len(steps) < 40 else "",
        markersize=2.5,
    )
    if many:
        bins = np.array_split(np.arange(len(steps)), SMOOTH)
        middle = [float(np.nanmedian(values[rows])) for rows in bins]
        axes.plot([steps[rows].mean() for rows in bins], middle, color=BLUE, linewidth=1.5)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_xlabel("step")
    axes.margins(x=0.01)
