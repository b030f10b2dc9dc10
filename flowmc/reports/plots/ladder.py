"""The plots of a ladder in ``report.html``: walkers, exchanges, transport, tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.ladder import positions
from flowmc.reports.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    RED,
    SERIES,
    SHADE,
    SMALL,
    TAU_INT,
    FigureLayout,
    drawn_twice,
    label_decades,
    svg_text,
)

__all__ = ["ladder_plot", "transport_plot", "tuning_plot"]

WALKER_ROWS = 140  # rows of walkers that can still be told apart
NUMBERS_IN_CELLS = 10  # replicas up to which the transition matrix shows its numbers
NAMED_REPLICAS = 14  # ... and up to which every replica has its name on an axis


@drawn_twice
def ladder_plot(
    layout: FigureLayout,
    updates: NDArray,
    walkers: NDArray,
    pairs: Sequence[Mapping[str, Any]],
    up_fraction: Sequence[float],
    expected: Sequence[float] | None,
    names: Sequence[str],
) -> str:
    """Return the swap diagram: walker paths, swap rate of each pair, share of walkers going up.

    Args:
        layout: of the panels.
        updates: ``(rows,)``.
        walkers: of one chain, ``(rows, replicas)``, which walker sits at replica r.
        pairs: as in the JSON document under exchange.
        up_fraction: of each replica, the share of walkers that last were at the target.
        expected: the same from the swap rates alone; None if they are not known.
        names: of the replicas, the target first.
    """
    replicas = walkers.shape[1]
    height = min(6.5, 1.5 + 0.55 * replicas)
    with layout.figure(height, (3.1, 1.2, 1.2), narrow_height=height) as (figure, panels):
        paths, rates, flow = panels
        shown = min(len(updates), WALKER_ROWS if replicas <= 9 else 9 * WALKER_ROWS // replicas)
        recent = slice(-shown, None)
        position = positions(walkers[recent])
        colours = (
            SERIES
            if replicas <= len(SERIES)
            else [matplotlib.colormaps["viridis"](w / (replicas - 1)) for w in range(replicas)]
        )
        for walker in range(replicas):
            paths.plot(
                updates[recent],
                position[:, walker],
                color=colours[walker],
                linewidth=max(0.9, 2.6 - 0.15 * replicas),
                solid_joinstyle="round",
                alpha=0.9,
            )
        title = f"Paths of the {replicas} walkers of chain 0"
        paths.set_title(title if layout.is_narrow else f"{title}, last {shown} measurements", pad=8)
        paths.set_yticks(range(replicas), names)
        paths.set_ylim(replicas - 0.6, -0.4)
        paths.margins(x=0.01)
        paths.set_xlabel("update")
        paths.grid(axis="y", color=SHADE, linewidth=1.0, zorder=0)

        for entry in pairs:
            if entry["acceptance"] is None:
                continue
            centre = entry["pair"] + 0.5
            rates.barh(centre, entry["acceptance"], height=0.42, color=BLUE)
            digits = 0 if entry["acceptance"] >= 0.1 else 1
            # Beside the bar, or inside where there is no room beside it.
            is_long = max(entry["acceptance"], entry["erfc_estimate"] or 0) > 0.75
            rates.text(
                0.03 if is_long else 1.0,
                centre,
                f"{entry['acceptance']:.{digits}%}",
                va="center",
                ha="left" if is_long else "right",
                color="white" if is_long and entry["acceptance"] > 0.3 else INK,
                fontsize=9.0 if replicas <= NAMED_REPLICAS else SMALL,
            )
            if entry["erfc_estimate"] is not None:
                rates.plot(entry["erfc_estimate"], centre, "D", color=RED, markersize=4)
        rates.set_xlim(0, 1)
        rates.set_title("Swap rate  (◆ Gaussian works)", pad=8)
        rates.set_xlabel("accepted exchanges")

        if expected is not None:
            flow.plot(expected, range(replicas), color=GREY, linestyle=(0, (4, 3)), linewidth=0.9)
        flow.plot(up_fraction, range(replicas), "o-", color=GREEN, markersize=5)
        flow.set_xlim(-0.05, 1.05)
        flow.set_title("Going up  (- - from swap rates)", pad=8)
        flow.set_xlabel("share of walkers")
        for axes in (rates, flow):
            axes.sharey(paths)
            axes.tick_params(labelleft=layout.is_narrow)
            axes.grid(axis="y", color=SHADE, linewidth=1.0, zorder=0)
            axes.set_axisbelow(True)
        return svg_text(figure)


@drawn_twice
def transport_plot(
    layout: FigureLayout,
    matrix: Sequence[Sequence[float]] | None,
    diffusivity: Sequence[float],
    estimates: Sequence[Estimate],
    observable: str,
    names: Sequence[str],
    measure_every: int,
) -> str:
    """Return transitions of walkers between rows, local diffusivity, and tau_int by replica.

    Args:
        layout: of the panels.
        matrix: probability of a walker at replica r to be at s one row later, ``(r, s)``.
        diffusivity: of each pair, in replicas squared per update.
        estimates: of one observable, one per replica.
        observable: its name.
        names: of the replicas, the target first.
        measure_every: updates between rows.
    """
    replicas = len(names)
    height = min(6.0, 1.4 + 0.4 * replicas)
    with layout.figure(height, (1.6, 1.2, 1.4), narrow_height=height) as (figure, panels):
        transitions, local, taus = panels
        _replica_axis(transitions, names)
        if matrix is not None:
            _transitions(transitions, np.asarray(matrix), measure_every)

        values = np.asarray(diffusivity, dtype=float)
        finite = np.isfinite(values)
        centres = np.arange(replicas - 1) + 0.5
        local.barh(centres[finite], values[finite], height=0.42, color=GREEN)
        largest = float(values[finite].max()) if finite.any() else 1.0
        for centre, value in zip(centres, values, strict=True):
            # As many decimals for each: 0.20 beside 0.19.
            number = f"{value:.2f}" if largest >= 0.1 else f"{value:.2g}"
            text = f" {number}" if math.isfinite(value) else " not known"
            place = value if math.isfinite(value) else 0.0
            if replicas <= NAMED_REPLICAS:
                local.text(place, centre, text, va="center", color=INK)
        local.set_xlim(0, 1.3 * largest)
        local.set_title("Local diffusivity of walkers", pad=8)
        local.set_xlabel("replicas² per update")

        tau = np.array([estimate.tau_int for estimate in estimates]) * measure_every
        error = np.array([estimate.tau_int_error for estimate in estimates]) * measure_every
        for bound, marker, colour, label in (
            (False, "o", BLUE, "estimate"),
            (True, ">", RED, "lower bound"),
        ):
            chosen = np.array([e.is_bound == bound for e in estimates]) & np.isfinite(tau)
            if chosen.any():
                taus.errorbar(
                    tau[chosen],
                    np.arange(replicas)[chosen],
                    xerr=None if bound else np.minimum(error, 0.9 * tau)[chosen],
                    fmt=marker,
                    markersize=5,
                    color=colour,
                    capsize=2.5,
                    label=label,
                )
        known = tau[np.isfinite(tau)]
        if known.size and known.max() > 4 * known.min():
            taus.set_xscale("log")
            label_decades(taus, "x")
        elif known.size:
            taus.set_xlim(0, 1.25 * float(np.max(known + np.nan_to_num(error[np.isfinite(tau)]))))
        taus.set_title(f"{TAU_INT} of {observable}", pad=8)
        taus.set_xlabel("updates")
        if any(estimate.is_bound for estimate in estimates) and known.size:
            taus.legend(loc="best")
        for axes in (local, taus):
            axes.sharey(transitions)
            axes.tick_params(labelleft=layout.is_narrow)
            axes.grid(axis="y", color=SHADE, linewidth=1.0, zorder=0)
            axes.set_axisbelow(True)
        return svg_text(figure)


@drawn_twice
def tuning_plot(layout: FigureLayout, name: str, updates: NDArray, couplings: NDArray) -> str:
    """Return how a coupling of all replicas was tuned during thermalisation.

    Args:
        layout: of the panels.
        name: of the coupling.
        updates: ``(rows,)``, counted up to the start of production.
        couplings: ``(rows, replicas)``.
    """
    with layout.figure(2.4, (1.0,)) as (figure, (axes,)):
        replicas = couplings.shape[1]
        for replica in range(replicas):
            axes.plot(
                updates,
                couplings[:, replica],
                color=RED if replica == 0 else BLUE,
                linewidth=1.2,
            )
        axes.set_title(f"{name} of all replicas, the target in orange")
        axes.set_ylabel(name)
        axes.set_xlabel("update before production")
        axes.margins(x=0.01)
        return svg_text(figure)


def _transitions(axes: Axes, matrix: NDArray, measure_every: int) -> None:
    replicas = len(matrix)
    for (row, column), value in np.ndenumerate(matrix):
        # Transparent, so that it is right on a dark page too.
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, color=BLUE, alpha=value, linewidth=0)
        axes.add_patch(cell)
        if value and replicas <= NUMBERS_IN_CELLS:
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if value > 0.55 else INK,
            )
    axes.set_xlim(-0.5, replicas - 0.5)
    if replicas <= NAMED_REPLICAS:
        axes.set_xticks(range(replicas))
    axes.set_xlabel("to replica")
    when = "one update" if measure_every == 1 else f"{measure_every} updates"
    axes.set_title(f"Where walkers are {when} later", pad=8)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _replica_axis(axes: Axes, names: Sequence[str]) -> None:
    """Name the replicas along the vertical axis, the target on top."""
    replicas = len(names)
    axes.set_ylim(replicas - 0.5, -0.5)
    if replicas <= NAMED_REPLICAS:
        axes.set_yticks(range(replicas), names)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
