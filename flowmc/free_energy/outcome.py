"""What the measurement of a free energy returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from flowmc.estimators.free_energy import Bridge, FreeEnergy, ModeCoverage
from flowmc.free_energy.tunnelling import Tunnelling

__all__ = ["Named", "Outcome", "ProcessSummary"]

# What uses no configuration of the target is not touched by how these were made.
_WITHOUT_TARGET = ("q", "jarzynski")


@dataclass(frozen=True)
class Named:
    """One estimate of ln Z.

    Attributes:
        key: for scripts: "q", "p", "bridge", "jarzynski", "jarzynski_reverse", "chain".
        title: for people.
        estimate: with the constant of the start added.
        parts: fluctuations by ensemble, whose sum of means the estimate fluctuates by.
    """

    key: str
    title: str
    estimate: FreeEnergy
    parts: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessSummary:
    """What is known of a process beside its free energy.

    Attributes:
        mean_work, work_spread: of the forward work.
        dissipated, dissipated_reverse: :math:`<W> - dF` each way, NaN if not run.
        step_work, acceptance: by step, forward; without the constant of a normalised start.
    """

    mean_work: float
    work_spread: float
    dissipated: float
    dissipated_reverse: float
    step_work: NDArray[np.float64]
    acceptance: NDArray[np.float64]


@dataclass
class Outcome:
    """Everything measured.

    Attributes:
        estimates: the best first.
        exact: ln Z in closed form (of the ratio, if that is what is estimated), or None.
        is_ratio: the estimates are of ln(Z / Z_start), whose constant is not known.
        works: by name: works or minus log-weights, as measured.
        bridge: both directions, if there are.
        coverage: of the flow, if q and p were measured.
        line: for a chain: the coupling values and ln Z of every ensemble but the first, and its
            overlap with the one before.
        process: for annealing and stochastic flows.
        tunnelling: of the target's chains, if they can tunnel.
        trained: flow layers that were trained for the measurement.
        fingerprints: of a flow that was loaded for it.
        seconds: of the whole.
    """

    estimates: list[Named]
    exact: float | None
    is_ratio: bool = False
    works: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bridge: Bridge | None = None
    coverage: ModeCoverage | None = None
    line: list[tuple[dict[str, float], FreeEnergy, float]] = field(default_factory=list)
    process: ProcessSummary | None = None
    tunnelling: Tunnelling | None = None
    trained: nn.Module | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def best(self) -> Named:
        """The estimate to quote."""
        return self.estimates[0]

    @property
    def warnings(self) -> list[str]:
        """All warnings, each once, with the estimate it is about."""
        found: dict[str, None] = {}
        for named in self.estimates:
            for text in named.estimate.warnings:
                found.setdefault(text, None)
        return list(found)

    def finished(self, seconds: float) -> Outcome:
        """Note how long it took, and mark what rests on chains that did not tunnel."""
        self.seconds = seconds
        text = None if self.tunnelling is None else self.tunnelling.warning
        if text is not None:
            self.estimates = [
                named
                if named.key in _WITHOUT_TARGET
                else Named(
                    named.key, named.title, named.estimate.warned(text, bound="both"), named.parts
                )
                for named in self.estimates
            ]
        return self
