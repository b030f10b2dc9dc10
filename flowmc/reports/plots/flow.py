"""The plots of the gradient flow in ``report.html``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.scale import REFERENCE
from flowmc.reports.analysis.flow_summary import FlowSummary
from flowmc.reports.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    RED,
    TAU_INT,
    FigureLayout,
    drawn_twice,
    svg_text,
    with_errors,
)

__all__ = ["flow_plot"]

COLOURS = {"clover": BLUE, "plaquette": GREEN}


@drawn_twice
def flow_plot(layout: FigureLayout, flow: FlowSummary, measure_every: int) -> str:
    """Return :math:`t^2 E(t)` with its reference, and its autocorrelation along the flow.

    Args:
        layout: of the panels.
        flow: what is drawn, of the target.
        measure_every: updates between measurements.
    """
    with layout.figure(3.0, (2.4, 1.4)) as (figure, (energy, taus)):
        times = np.concatenate([[0.0], flow.flow_times])
        for name, estimates in flow.energies.items():
            mean, error = _curve(estimates)
            with_errors(energy, times, mean, error, COLOURS[name], fmt="o-", label=name)
        energy.set_xlim(0, 1.03 * times[-1])
        if flow.scales:
            energy.axhline(REFERENCE, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            energy.text(
                times[-1] * 1.025, REFERENCE, f"{REFERENCE} ", va="bottom", ha="right", color=INK
            )
            t0 = flow.scales["clover"]["t0"][0]
            if t0 is not None:
                energy.axvspan(
                    t0.mean - t0.error, t0.mean + t0.error, color=RED, alpha=0.35, linewidth=0
                )
                energy.plot(t0.mean, REFERENCE, "o", color=RED, markersize=5, zorder=5)
                energy.set_title(f"t₀/a² = {t0}", color=RED)
        energy.set_ylim(bottom=0)
        energy.set_ylabel("t² ⟨E(t)⟩")
        energy.set_xlabel("flow time t/a²")
        energy.legend(loc="lower right")

        estimates = flow.energies["clover"]
        tau = np.array([estimate.tau_int for estimate in estimates]) * measure_every
        tau_error = np.array([estimate.tau_int_error for estimate in estimates]) * measure_every
        with_errors(taus, flow.flow_times, tau, tau_error, BLUE)
        taus.set_ylim(bottom=0)
        taus.set_xlim(0, 1.03 * times[-1])
        taus.set_ylabel(f"{TAU_INT} of E(t), clover  (updates)")
        taus.set_xlabel("flow time t/a²")
        return svg_text(figure)


def _curve(estimates: list[Estimate]) -> tuple[NDArray, NDArray]:
    """Return means and errors, with the exact 0 at t = 0 in front."""
    mean = np.array([0.0, *(estimate.mean for estimate in estimates)])
    return mean, np.array([0.0, *(estimate.error for estimate in estimates)])
