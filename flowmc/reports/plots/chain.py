"""The plots of observables and kernels in ``report.html``, each as SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate, format_value, rho_error
from flowmc.reports.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    SERIES,
    SHADE,
    TAU_INT,
    FigureLayout,
    drawn_twice,
    label_decades,
    legend_above,
    outline,
    svg_text,
    with_errors,
    without_scale,
)

__all__ = [
    "energy_error_plot",
    "history_plot",
    "topological_charge_plot",
    "vector_plot",
    "weights_plot",
]

POINTS = 700  # of a line, beyond which it shows the extremes of bins
FEW_CHAINS = 4  # drawn one by one; of more, mean and band are drawn
SMOOTH = 60  # bins of the running mean of a chain
_BARS: dict[str, Any] = {"color": BLUE, "alpha": 0.85, "linewidth": 0}  # of a histogram
BAND_POINTS = 200  # lags at which the error of an autocorrelation function is drawn


@drawn_twice
def history_plot(
    layout: FigureLayout,
    label: str,
    production: tuple[NDArray, NDArray],
    thermalization: tuple[NDArray, NDArray],
    estimate: Estimate,
    measure_every: int,
) -> str:
    """Return history, histogram and autocorrelation function of one observable.

    Args:
        layout: of the panels.
        label: of the vertical axis.
        production: updates ``(rows,)``, counted from the start of production, and values
            ``(rows, chains)``.
        thermalization: likewise, with updates up to 0.
        estimate: of the production.
        measure_every: updates between measurements.
    """
    with layout.figure(2.75, (3.1, 0.62, 1.75), rows=[(0, 1), (2,)]) as (figure, panels):
        history, histogram, correlation = panels
        _history(history, production, thermalization)
        legend_above(figure, history, layout)
        history.axhspan(
            estimate.mean - estimate.error,
            estimate.mean + estimate.error,
            color=RED,
            alpha=0.35,
            linewidth=0,
            zorder=4,
        )
        history.axhline(estimate.mean, color=RED, linewidth=1.0, zorder=5)
        history.set_ylabel(label)
        values = production[1][np.isfinite(production[1])]
        low, high = _limits(history, values)
        counts, edges = np.histogram(values, np.linspace(low, high, 41))
        histogram.stairs(
            counts / max(1, counts.max()), edges, orientation="horizontal", fill=True, **_BARS
        )
        _without_counts(histogram)
        histogram.axhline(estimate.mean, color=RED, linewidth=1.0)
        histogram.sharey(history)
        histogram.tick_params(labelleft=False)
        _autocorrelation(correlation, estimate, measure_every)
        return svg_text(figure)


@drawn_twice
def topological_charge_plot(
    layout: FigureLayout,
    label: str,
    production: tuple[NDArray, NDArray],
    thermalization: tuple[NDArray, NDArray],
    estimate: Estimate,
    measure_every: int,
) -> str:
    """Return the charge as steps, its distribution, and its autocorrelation function.

    Args:
        layout, label, production, thermalization, estimate, measure_every: as for
            :func:`history_plot`.
    """
    lanes = min(production[1].shape[1], FEW_CHAINS)
    values = np.round(production[1][np.isfinite(production[1])])
    bound = max(1, int(np.abs(values).max()))
    height = max(2.75, 0.8 + 0.78 * lanes)
    rows, heights = [(0, 1), (2,)], (0.7 + 0.65 * lanes, 2.2)
    with layout.figure(
        height, (3.1, 0.62, 1.75), rows=rows, narrow_height=(max(2.2, heights[0]), heights[1])
    ) as (figure, axes):
        place = axes[0].get_subplotspec()
        assert place is not None
        axes[0].remove()
        # One above the other: several step lines in one frame cannot be told apart.
        grid = place.subgridspec(lanes, 1, hspace=0.0)
        for chain in range(lanes):
            lane = figure.add_subplot(grid[chain])
            for updates, charge, colour in [
                (*thermalization, GREY),
                (*production, BLUE),
            ]:
                if len(updates):
                    x, y = _thin(updates, charge[:, chain])
                    lane.step(x, y, where="post", color=colour, linewidth=0.8)
            lane.axhline(0, color=GREY, linewidth=0.5, zorder=0)
            _shade(lane, thermalization[0], production[0])
            lane.set_ylim(-bound - 0.6, bound + 0.6)
            lane.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4 if lanes > 1 else 8))
            lane.set_ylabel(label if lanes == 1 else f"chain {chain}")
            if chain < lanes - 1:
                lane.tick_params(labelbottom=False)
                lane.set_xlabel("")
        edges = np.arange(-bound - 0.5, bound + 1.5)
        counts = np.histogram(values, edges)[0]
        charges, thickness = 0.5 * (edges[:-1] + edges[1:]), 0.8 * np.diff(edges)
        axes[1].barh(charges, counts / max(1, counts.max()), height=thickness, **_BARS)
        _without_counts(axes[1])
        axes[1].set_ylim(-bound - 0.6, bound + 0.6)
        axes[1].yaxis.set_major_locator(MaxNLocator(integer=True))
        several = production[1].shape[1] > 1 and not layout.is_narrow
        axes[1].set_title("Q, all chains" if several else "Q")
        _autocorrelation(axes[2], estimate, measure_every)
        return svg_text(figure)


@drawn_twice
def vector_plot(
    layout: FigureLayout,
    label: str,
    components: Sequence[str],
    estimates: Sequence[Estimate],
    measure_every: int,
) -> str:
    """Return means, tau_int, and the slowest autocorrelation function of a vector observable.

    Args:
        layout: of the panels.
        label: of the vertical axis.
        components: their names.
        estimates: of the components.
        measure_every: updates between measurements.
    """
    with layout.figure(2.75, (2.0, 1.75, 1.75)) as (figure, (means, taus, correlation)):
        index = np.arange(len(estimates))
        mean = np.array([estimate.mean for estimate in estimates])
        error = np.array([estimate.error for estimate in estimates])
        with_errors(means, index, mean, error, BLUE)
        positive = bool((mean > 0).all())
        if positive and len(mean) > 2 and mean.max() > 10 * mean.min():
            means.set_yscale("log")
            label_decades(means, "y")
        means.set_ylabel(label)
        means.set_xlabel("component")
        tau = np.array([estimate.tau_int for estimate in estimates])
        tau_error = np.array([estimate.tau_int_error for estimate in estimates])
        with_errors(taus, index, tau, tau_error, BLUE)
        taus.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        taus.set_ylim(bottom=0)
        taus.set_ylabel(f"{TAU_INT}  (measurements)")
        taus.set_xlabel("component")
        for axes in (means, taus):
            if components == [str(place) for place in range(len(components))]:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            else:
                axes.set_xticks(index, components)
                axes.set_xlabel("")
            axes.margins(x=0.06 if len(components) > 3 else 0.3)
        if np.isfinite(tau).any():
            slowest = int(np.nanargmax(tau))
            _autocorrelation(correlation, estimates[slowest], measure_every)
            correlation.set_ylabel(f"ρ(t) of component {components[slowest]}")
        return svg_text(figure)


@drawn_twice
def energy_error_plot(
    layout: FigureLayout,
    name: str,
    updates: NDArray,
    energy_error: NDArray,
    accepted: NDArray,
    tried: NDArray,
) -> str:
    """Return the distribution of the energy errors of one HMC kernel and its acceptance in time.

    Args:
        layout: of the panels.
        name: of the kernel.
        updates: ``(rows,)``.
        energy_error: Delta H, ``(rows, chains)``.
        accepted, tried: proposals of each row, ``(rows, chains)``.
    """
    with layout.figure(2.4, (1.5, 3.0)) as (figure, (histogram, history)):
        finite = energy_error[np.isfinite(energy_error)]
        if finite.size:
            low, high = np.quantile(finite, [0.002, 0.998])
            pad = 0.1 * (high - low) or 1.0
            histogram.hist(
                finite,
                np.linspace(low - pad, high + pad, 51).tolist(),
                density=True,
                color=BLUE,
                alpha=0.85,
            )
            histogram.axvline(0, color=GREY, linewidth=0.8)
            mean = float(finite.mean())
            histogram.axvline(mean, color=RED, linewidth=1.2)
            histogram.set_title(f"⟨ΔH⟩ = {mean:.3g}", color=RED)
        histogram.set_xlabel(f"ΔH of {name}")
        without_scale(histogram)

        _acceptance(history, updates, accepted, tried)
        return svg_text(figure)


@drawn_twice
def weights_plot(
    layout: FigureLayout,
    name: str,
    updates: NDArray,
    proposals: NDArray,
    held: NDArray | None,
    accepted: NDArray,
    tried: NDArray,
) -> str:
    """Return the log-weights of a flow's proposals and of the chain, and the acceptance in time.

    Args:
        layout: of the panels.
        name: of the independence kernel.
        updates: ``(rows,)``.
        proposals: ln w of the recorded proposals, ``(rows, chains, proposals)``.
        held: ln w of the states of the chains, ``(rows, chains)``.
        accepted, tried: proposals of each row, ``(rows, chains)``.
    """
    with layout.figure(2.4, (1.5, 3.0)) as (figure, (histogram, history)):
        drawn = proposals[np.isfinite(proposals)]
        kept = np.empty(0) if held is None else held[np.isfinite(held)]
        if drawn.size:
            # Only differences matter: zero is ln of the mean weight.
            shift = float(drawn.max() + np.log(np.mean(np.exp(drawn - drawn.max()))))
            both = np.concatenate([drawn, kept]) - shift
            low, high = np.quantile(both, [0.005, 1.0])
            edges = np.linspace(low - 0.1, high + 0.1, 51).tolist()
            for values, colour, label in [
                (drawn, BLUE, "proposals of the flow"),
                (kept, RED, "states of the chain"),
            ]:
                if values.size:
                    outline(histogram, values - shift, edges, colour, label)
            legend_above(figure, histogram, layout)
        histogram.set_xlabel(f"ln w/⟨w⟩ of {name}")
        without_scale(histogram)
        _acceptance(history, updates, accepted, tried)
        return svg_text(figure)


def _acceptance(axes: Axes, updates: NDArray, accepted: NDArray, tried: NDArray) -> None:
    bins = np.array_split(np.arange(len(updates)), max(1, min(SMOOTH, len(updates) // 10)))
    proposals = np.array([tried[rows].sum() for rows in bins])
    rate = np.array([accepted[rows].sum() for rows in bins]) / np.where(
        proposals, proposals, np.nan
    )
    axes.plot([updates[rows].mean() for rows in bins], rate, color=BLUE, marker="o", markersize=2.5)
    if tried.sum():
        axes.axhline(accepted.sum() / tried.sum(), color=RED, linewidth=1.0)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("acceptance")
    axes.set_xlabel("update")
    axes.margins(x=0.01)


def _history(
    axes: Axes, production: tuple[NDArray, NDArray], thermalization: tuple[NDArray, NDArray]
) -> None:
    chains = production[1].shape[1]
    for updates, values, counts in [(*thermalization, False), (*production, True)]:
        if not len(updates):
            continue
        if chains <= FEW_CHAINS:
            for chain in range(chains):
                colour = SERIES[chain] if counts else GREY
                axes.plot(
                    *_thin(updates, values[:, chain]),
                    color=colour,
                    linewidth=0.6,
                    alpha=0.45 if counts else 0.8,
                )
                # What wanders slowly drowns in the noise of single measurements.
                if counts and len(updates) > 4 * SMOOTH:
                    bins = np.array_split(np.arange(len(updates)), SMOOTH)
                    axes.plot(
                        [updates[rows].mean() for rows in bins],
                        [values[rows, chain].mean() for rows in bins],
                        color=colour,
                        linewidth=1.4,
                        label=f"chain {chain}" if chains > 1 else None,
                    )
            continue
        colour = BLUE if counts else GREY
        rows = np.array_split(np.arange(len(updates)), min(len(updates), POINTS // 2))
        centre = [updates[row].mean() for row in rows]
        low, high = _band(values, len(rows))
        axes.fill_between(
            centre,
            low,
            high,
            color=colour,
            alpha=0.28,
            linewidth=0,
            label="16 to 84 % of the chains" if counts else None,
        )
        for chain in range(2):
            axes.plot(
                *_thin(updates, values[:, chain]),
                color=SERIES[1 + chain] if counts else GREY,
                linewidth=0.6,
                alpha=0.65,
                label=f"chain {chain}" if counts else None,
            )
        axes.plot(
            centre,
            [values[row].mean() for row in rows],
            color=colour,
            linewidth=1.3,
            label="mean of the chains" if counts else None,
        )
    _shade(axes, thermalization[0], production[0])


def _band(values: NDArray, bins: int) -> NDArray:
    """Return the quantiles 16 % and 84 % of the bins of ``numpy.array_split``, (2, bins)."""
    size, larger = divmod(len(values), bins)
    parts = [values[: larger * (size + 1)], values[larger * (size + 1) :]]
    return np.concatenate(
        [
            np.quantile(part.reshape(count, -1), [0.16, 0.84], axis=1)
            for part, count in zip(parts, (larger, bins - larger), strict=True)
            if count
        ],
        axis=1,
    )


def _shade(axes: Axes, thermalization: NDArray, production: NDArray) -> None:
    start = float(min(thermalization.min(), 0)) if len(thermalization) else 0.0
    end = float(production.max())
    if start < 0:
        axes.axvspan(start, 0, color=SHADE, linewidth=0, zorder=0)
    axes.set_xlim(start, max(end, start + 1))
    axes.set_xlabel("update")


def _limits(axes: Axes, values: NDArray) -> tuple[float, float]:
    """Set limits to what production needs: a long way of thermalisation would flatten it."""
    low, high = float(values.min()), float(values.max())
    pad = 0.08 * (high - low) or max(abs(high), 1.0) * 1e-3
    axes.set_ylim(low - 3 * pad, high + 2 * pad)
    return axes.get_ylim()


def _without_counts(axes: Axes) -> None:
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _autocorrelation(axes: Axes, estimate: Estimate, measure_every: int) -> None:
    rho = np.asarray(estimate.rho)
    shown = int(min(len(rho), max(12, 2.5 * estimate.window + 4)))
    lag = np.arange(shown)
    axes.axhline(0, color=GREY, linewidth=0.8)
    if estimate.window and shown > 1:
        axes.axvspan(0, estimate.window, color=ORANGE, alpha=0.13, linewidth=0)
        axes.axvline(estimate.window, color=RED, linewidth=1.0, linestyle=(0, (4, 3)))
        tau = format_value(estimate.tau_int, estimate.tau_int_error)
        sign = "≥" if estimate.is_bound else "="
        axes.set_title(f"{TAU_INT} {sign} {tau},  window {estimate.window}", color=RED)
    if shown > 1:
        drawn = np.unique(np.linspace(0, shown - 1, min(shown, BAND_POINTS)).astype(int))
        band = rho_error(rho, estimate.samples, estimate.window, drawn)
        low, high = rho[drawn] - band, rho[drawn] + band
        axes.fill_between(drawn, low, high, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(lag, rho[:shown], "o-", color=BLUE, markersize=2.6 if shown < 80 else 0)
    axes.set_xlim(0, max(shown - 1, 1))
    axes.set_ylim(min(-0.1, 1.1 * float(rho[:shown].min())), 1.05)
    unit = "measurements" if measure_every == 1 else f"measurements, {measure_every} updates each"
    axes.set_xlabel(f"lag t  ({unit})")
    axes.set_ylabel("autocorrelation ρ(t)")


def _thin(x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Keep the smallest and the largest value of each bin: extremes stay visible."""
    if len(x) <= 2 * POINTS:
        return x, y
    size = math.ceil(len(x) / POINTS)
    whole = len(x) // size * size
    blocks = np.where(np.isfinite(y[:whole]), y[:whole], 0.0).reshape(-1, size)
    first = np.arange(len(blocks)) * size
    chosen = np.sort(np.stack([first + blocks.argmin(1), first + blocks.argmax(1)], 1), axis=1)
    rows = chosen.reshape(-1)
    return x[rows], y[rows]
