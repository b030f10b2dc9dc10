"""Plots of ``flowmc free-energy``: works both ways, estimates, the line, the protocol."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flowmc.free_energy.outcome import Outcome, ProcessSummary
from flowmc.reports.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    RED,
    FigureLayout,
    drawn_twice,
    legend_above,
    outline,
    svg_text,
    titled_rows,
    with_errors,
)

__all__ = ["estimates_plot", "line_plot", "protocol_plot", "work_plot"]


@drawn_twice
def work_plot(
    layout: FigureLayout,
    forward: NDArray,
    reverse: NDArray | None,
    shift: float | None,
    exact: float | None,
) -> str:
    """Return the distributions of W from the start and of -W from the target.

    Args:
        layout: of the panels.
        forward, reverse: works; infinite ones are left out.
        shift: the estimated free-energy difference, or None.
        exact: the same in closed form, or None.
    """
    with layout.figure(3.2, (1.0,)) as (figure, (axes,)):
        forward = forward[np.isfinite(forward)]
        parts = [forward]
        if reverse is not None:
            parts.append(-np.ravel(reverse)[np.isfinite(np.ravel(reverse))])
        # One outlier of a bad flow would squeeze everything else into one bin.
        low = min(float(np.quantile(part, 0.001)) for part in parts)
        high = max(float(np.quantile(part, 0.999)) for part in parts)
        margin = 0.03 * (high - low) or 1.0
        smallest = min(len(part) for part in parts)
        count = int(np.clip(smallest**0.5, 12, 80))
        bins = np.linspace(low - margin, high + margin, count).tolist()
        names = ("W from the start", "−W from the target")
        for part, colour, name in zip(parts, (BLUE, ORANGE), names, strict=False):
            outline(axes, part, bins, colour, name)
        if exact is not None:
            axes.axvline(exact, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="exact ΔF")
        if shift is not None:
            axes.axvline(shift, color=RED, linewidth=1.2, label="ΔF, Bennett")
        axes.set_xlabel("work")
        axes.set_ylabel("density")
        legend_above(figure, axes, layout)
        return svg_text(figure)


@drawn_twice
def estimates_plot(layout: FigureLayout, outcome: Outcome) -> str:
    """Return all estimates with their errors, bounds as open symbols, and the exact value."""
    rows = len(outcome.estimates)
    with layout.figure(0.9 + 0.32 * rows, (1.0,), narrow_height=0.9 + 0.5 * rows) as (
        figure,
        (axes,),
    ):
        for row, named in enumerate(outcome.estimates):
            one = named.estimate
            colour = BLUE if one.bound == "none" else RED
            axes.errorbar(
                one.value,
                row,
                xerr=one.error if np.isfinite(one.error) else 0.0,
                fmt="o",
                capsize=3,
                markersize=5,
                color=colour,
                markerfacecolor=colour if one.bound == "none" else PAPER,
            )
        if outcome.exact is not None:
            axes.axvline(outcome.exact, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.annotate(
                "exact",
                (outcome.exact, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                textcoords="offset points",
                color=INK,
            )
        titled_rows(axes, layout, [named.title for named in outcome.estimates])
        axes.set_xlabel("ln(Z / Z start)" if outcome.is_ratio else "ln Z")
        return svg_text(figure)


@drawn_twice
def line_plot(layout: FigureLayout, outcome: Outcome) -> str:
    """Return ln Z along the line of couplings, and its error."""
    name = next(iter(outcome.line[0][0]))
    couplings = np.array([point[name] for point, _, _ in outcome.line])
    values = np.array([one.value for _, one, _ in outcome.line])
    errors = np.array([one.error for _, one, _ in outcome.line])
    with layout.figure(3.0, (1.6, 1.0)) as (figure, (left, right)):
        with_errors(left, couplings, values, errors, BLUE, fmt="o-")
        left.set_xlabel(name)
        left.set_ylabel("ln(Z / Z start)" if outcome.is_ratio else "ln Z")
        right.plot(couplings, errors, "o-", markersize=4, color=GREEN)
        right.set_ylim(bottom=0)
        right.set_xlabel(name)
        right.set_ylabel("error of ln Z")
        return svg_text(figure)


@drawn_twice
def protocol_plot(layout: FigureLayout, process: ProcessSummary) -> str:
    """Return mean work and acceptance of every step."""
    steps = np.arange(1, len(process.step_work) + 1)
    marker = "o" if len(steps) <= 60 else ""
    with layout.figure(2.8, (1.0, 1.0)) as (figure, (left, right)):
        left.plot(steps, process.step_work, marker=marker, markersize=3.5, color=BLUE)
        left.axhline(0, color=GREY, linewidth=0.8)
        left.set_xlabel("step")
        left.set_ylabel("mean work")
        right.plot(steps, process.acceptance, marker=marker, markersize=3.5, color=GREEN)
        right.set_ylim(0, 1.03)
        right.set_xlabel("step")
        right.set_ylabel("acceptance of the updates")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return svg_text(figure)
