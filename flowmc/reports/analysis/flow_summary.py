"""What a run directory says about the gradient flow: scales, and the charge of the flowed field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import Estimate, analyse
from flowmc.estimators.scale import REFERENCE, find_t0, find_w0

__all__ = ["FlowSummary", "charge_of_flow", "is_flow", "summarise_flow"]

DEFINITIONS = ("clover", "plaquette")  # the first columns of gradient_flow; then the charge


@dataclass
class FlowSummary:
    r"""One observable ``gradient_flow`` of a run.

    Attributes:
        flow_times: ``(points,)``.
        energies: :math:`t^2 E` by definition, one estimate per flow time, of the target.
        scales: by definition, then "t0" and "w0": one estimate per replica, None where the flow is
            too short.  Empty outside four dimensions.
        charge: name of the observable that holds the charge at the largest flow time, or None.
    """

    flow_times: NDArray[np.float64]
    energies: dict[str, list[Estimate]]
    scales: dict[str, dict[str, list[Estimate | None]]] = field(default_factory=dict)
    charge: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the JSON document; see docs/reports.md."""
        document: dict[str, Any] = {
            "flow_times": self.flow_times.tolist(),
            "t2_energy": {
                name: {
                    "mean": [estimate.mean for estimate in estimates],
                    "error": [estimate.error for estimate in estimates],
                    "tau_int": [estimate.tau_int for estimate in estimates],
                }
                for name, estimates in self.energies.items()
            },
            "reference": REFERENCE,
            "charge": self.charge,
        }
        for definition, scales in self.scales.items():
            suffix = "" if definition == "clover" else f"_{definition}"
            for name, replicas in scales.items():
                entries = [None if e is None else _entry(e) for e in replicas]
                document[name + suffix] = entries[0]
                if len(entries) > 1:
                    document.setdefault("replicas", [{} for _ in entries])
                    for own, entry in zip(document["replicas"], entries, strict=True):
                        own[name + suffix] = entry
        return document


def is_flow(name: str, values: NDArray) -> bool:
    """Return whether an observable is flowmc's ``gradient_flow``, by its label and shape."""
    return name.startswith("gradient_flow(") and values.ndim == 5 and values.shape[4] in (2, 3)


def summarise_flow(run: RecordedRun, name: str, warnings: list[str]) -> FlowSummary:
    """Analyse a ``gradient_flow`` observable; add to the warnings."""
    values = run.production.observables[name]
    replicas, points, columns = values.shape[2:]
    last = float(run.production.parameters.get(name, {}).get("flow_time", points))
    times = last * np.arange(1, points + 1) / points
    summary = FlowSummary(
        times,
        {
            definition: [analyse(values[:, :, 0, k, column]) for k in range(points)]
            for column, definition in enumerate(DEFINITIONS)
        },
    )
    if columns == 3:
        summary.charge = charge_of_flow(run, name)
    lattice = run.config.get("theory", {}).get("lattice") or []
    if len(lattice) != 4:
        return summary
    for column, definition in enumerate(DEFINITIONS):
        summary.scales[definition] = {
            label: [
                _scale(find, times, values[:, :, r, :, column], name, r or column, warnings)
                for r in range(replicas)
            ]
            for label, find in (("t0", find_t0), ("w0", find_w0))
        }
    t0 = summary.scales["clover"]["t0"][0]
    if t0 is not None and math.sqrt(8 * t0.mean) > min(lattice) / 2:
        warnings.append(
            f"{name}: the flow smooths over sqrt(8 t0) = {math.sqrt(8 * t0.mean):.2g} lattice "
            f"units, more than half of the extent {min(lattice)}: t0 is distorted by the volume"
        )
    return summary


def charge_of_flow(run: RecordedRun, name: str) -> str:
    """Return the name of the charge at the largest flow time: as if it were measured alone."""
    last = run.production.parameters.get(name, {}).get("flow_time", "last")
    return f"topological_charge(flow_time={last})"


def _scale(
    find: Callable[[NDArray, NDArray], Estimate],
    times: NDArray,
    values: NDArray,
    name: str,
    is_silent: int,
    warnings: list[str],
) -> Estimate | None:
    try:
        estimate = find(times, values)
    except ValueError as error:
        if not is_silent:
            warnings.append(f"{name}: {error}")
        return None
    if not is_silent:
        which = "t0" if find is find_t0 else "w0"
        warnings += [f"{name}, {which}: {text}" for text in estimate.warnings]
    return estimate


def _entry(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "error": estimate.error,
        "tau_int": estimate.tau_int,
        "tau_int_error": estimate.tau_int_error,
        "samples": estimate.samples,
        "is_lower_bound": estimate.is_bound,
    }
