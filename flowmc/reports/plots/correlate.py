"""The plots in ``report.html`` of ``flowmc correlate``, each as SVG text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flowmc.estimators.history import History, Result
from flowmc.reports.plots.style import (
    BLUE,
    ORANGE,
    SERIES,
    FigureLayout,
    drawn_twice,
    legend_above,
    outline,
    svg_text,
    with_errors,
    without_scale,
)
from flowmc.reports.words import quantity_text

__all__ = [
    "Points",
    "bracket_plot",
    "change_plot",
    "couplings_plot",
    "steps_plot",
    "vectors_plot",
    "weights_plot",
]

Points = list[tuple[float, float, float]]

PANELS = 3  # per row
CURVES = len(SERIES)


@drawn_twice
def weights_plot(layout: FigureLayout, log_weights: Mapping[str, NDArray]) -> str:
    """Return histograms of ln W less its mean, one curve per set of weights."""
    with layout.figure(2.4, (1.0,)) as (figure, (axes,)):
        for color, (name, logs) in zip(SERIES, list(log_weights.items())[:CURVES], strict=False):
            finite = logs[np.isfinite(logs)]
            if finite.size:
                centred = finite - finite.mean()
                bins = min(60, max(10, round(math.sqrt(finite.size))))
                outline(axes, centred, bins, color, name)
        axes.set_xlabel("ln W less its mean")
        without_scale(axes)
        legend_above(figure, axes, layout)
        return svg_text(figure)


@drawn_twice
def bracket_plot(layout: FigureLayout, insertion: NDArray, bracket: NDArray) -> str:
    """Return histograms of -dS/dlambda and of B less their means: what vector fields take out."""
    with layout.figure(2.4, (1.0,)) as (figure, (axes,)):
        widest = insertion if insertion.std() > bracket.std() else bracket
        reach = float(np.abs(widest - widest.mean()).max()) or 1.0
        count = min(81, max(21, round(2 * math.sqrt(len(insertion)))))
        bins = np.linspace(-reach, reach, count).tolist()
        for color, name, values in (
            (SERIES[1], "−∂S/∂λ, plain reweighting", insertion),
            (SERIES[0], "B, with vector fields", bracket),
        ):
            label = f"{name}: σ = {values.std():.3g}"
            outline(axes, values - values.mean(), bins, color, label)
        axes.set_xlabel("less its mean")
        without_scale(axes)
        legend_above(figure, axes, layout)
        return svg_text(figure)


@drawn_twice
def steps_plot(
    layout: FigureLayout, table: Mapping[str, Mapping[str, Any]], results: Mapping[str, Result]
) -> str:
    """Return central differences against the squared step, three quantities side by side.

    Args:
        layout: of the panels.
        table: by quantity ``{steps, values, errors}``.
        results: the extrapolated values by quantity, drawn at zero.
    """
    names = list(table)[:PANELS]
    with layout.figure(2.6, (1.0,) * len(names)) as (figure, panels):
        for axes, name in zip(panels, names, strict=True):
            entry = table[name]
            squares = np.square(entry["steps"])
            with_errors(axes, squares, entry["values"], entry["errors"], BLUE)
            result = results[name]
            if len(squares) > 1:
                with_errors(axes, [0.0], [result.value], [result.error], ORANGE)
                axes.set_xlim(-0.04 * squares.max(), 1.06 * squares.max())
            axes.set_title(quantity_text(name))
            axes.set_xlabel("step²")
        return svg_text(figure)


@drawn_twice
def vectors_plot(layout: FigureLayout, vectors: Mapping[str, Mapping[int, Result]]) -> str:
    """Return the components of vectors, such as effective masses, three side by side."""
    names = list(vectors)[:PANELS]
    with layout.figure(2.4, (1.0,) * len(names)) as (figure, panels):
        for axes, name in zip(panels, names, strict=True):
            places = sorted(vectors[name])
            values = [vectors[name][place].value for place in places]
            errors = [vectors[name][place].error for place in places]
            with_errors(axes, places, values, errors, BLUE)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_title(quantity_text(name))
            axes.set_xlabel("t")
        return svg_text(figure)


@drawn_twice
def couplings_plot(
    layout: FigureLayout, coupling: str, own: Mapping[str, Points], combined: Mapping[str, Points]
) -> str:
    """Return observables against a coupling, three side by side.

    Args:
        layout: of the panels.
        coupling: its name.
        own: by observable the means of single ensembles, ``(coupling, value, error)``.
        combined: the same at the targets, from all ensembles.
    """
    names = list(own)[:PANELS]
    with layout.figure(2.6, (1.0,) * len(names)) as (figure, panels):
        for axes, name in zip(panels, names, strict=True):
            for points, color, label in (
                (own[name], BLUE, "single ensembles"),
                (combined[name], ORANGE, "all combined"),
            ):
                if points:
                    places, values, errors = zip(*points, strict=True)
                    with_errors(axes, places, values, errors, color, label=label)
            axes.set_title(quantity_text(name))
            axes.set_xlabel(coupling)
        legend_above(figure, panels[0], layout)
        return svg_text(figure)


@drawn_twice
def change_plot(
    layout: FigureLayout, name: str, history: History, contributions: NDArray, value: float
) -> str:
    """Return what every configuration contributes to a difference, by configuration number.

    Args:
        layout: of the panels.
        name: of the difference.
        history: of the configurations.
        contributions: ``(configurations,)``, of mean ``value``.
        value: the difference.
    """
    with layout.figure(2.2, (3.0, 0.7), rows=[(0, 1)]) as (figure, (axes, histogram)):
        offset = 0
        for numbers, part in zip(
            history.numbers.values(), history.split(contributions), strict=True
        ):
            # Replicas one behind the other.
            places = offset + (numbers - numbers[0])
            offset = int(places[-1]) + history.spacing
            axes.plot(places, part, ".", markersize=2.0, color=BLUE)
        histogram.hist(
            contributions, bins=40, orientation="horizontal", histtype="step", color=BLUE
        )
        axes.axhline(value, color=ORANGE, linewidth=1.0)
        axes.set_xlabel("configuration number, replicas in turn")
        axes.set_title(quantity_text(name))
        histogram.set_xticks([])
        histogram.tick_params(labelleft=False)
        return svg_text(figure)
