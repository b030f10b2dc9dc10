"""ln Z from driven processes: annealing and stochastic normalizing flows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import FreeEnergy, bennett, compare, jarzynski
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.flows.models import Model, as_model
from flowmc.flows.priors import EnsemblePrior
from flowmc.free_energy.flow import batches_of
from flowmc.free_energy.outcome import Named, Outcome, ProcessSummary
from flowmc.free_energy.rows import Row, Rows
from flowmc.free_energy.sources import (
    Chains,
    Configurations,
    Say,
    Source,
    configurations_of,
    quiet,
    target_rows,
)
from flowmc.free_energy.tunnelling import Tunnelling
from flowmc.nonequilibrium import Evolution, ExactStart, Process, StochasticFlow
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["by_process", "prior_of"]


@torch.no_grad()
def by_process(
    process: Process,
    start: Model | Source,
    *,
    start_action: Action | None = None,
    samples: int = 4096,
    batch: int = 1024,
    target: Source | None = None,
    seed: int = 0,
    rows: Rows | None = None,
    say: Say = quiet,
) -> Outcome:
    r"""Return :math:`\ln Z` of the last action of a process from the works that it takes.

    Jarzynski's estimate from the start, and with samples of the target that from there back and
    Bennett's of both (:mod:`flowmc.estimators.free_energy`).  Without flow layers the process is
    annealing, with layers a stochastic normalizing flow; train these before, with
    :class:`~flowmc.training.work.MeanWork`.

    Args:
        process: from the start to the target.
        start: a normalised prior, such as :class:`~flowmc.nonequilibrium.ExactStart`; or chains or
            configurations of ``start_action`` as in :func:`~flowmc.free_energy.flow.from_flow`, of
            each of which one process begins.  Where :math:`\ln Z` of that action is not known, the
            result is :math:`\ln Z / Z_0`.
        start_action: what ``start`` has configurations of.
        samples: processes from a prior.
        batch: of these at a time.
        target: samples of the target, from which processes run back; None for none.
        seed: of all random streams.
        rows: what has been measured before.
        say: called with a sentence when something begins.

    Raises:
        ConfigError: a start without its action, or configurations of another theory.
        DensityError: layers whose integrator is too coarse.
    """
    if samples < 2 or batch < 1:
        raise ConfigError(f"samples = {samples}, batch = {batch}: should be at least 2 and 1")
    rows = rows or Rows()
    prior, constant = prior_of(start, start_action, seed=seed, rows=rows, say=say)
    model, action = StochasticFlow(prior, process), process.target
    in_chains = isinstance(prior, EnsemblePrior)
    evolutions = _forward(model, None if in_chains else (samples, batch), seed, rows, say)
    joined = torch.stack if in_chains else torch.cat
    forward = _finite(joined([row["work"] for row in evolutions]))
    if not model.flow.log_density_is_exact:
        x, _ = model.prior.sample(DENSITY_SAMPLES, stream(seed, 0, "density error"))
        check_density(model.flow, x, -torch.from_numpy(forward).reshape(-1))
    reverse, tunnelling = None, None
    if target is not None:
        tunnelling = Tunnelling(action)
        reverse = _reverse(model, target, tunnelling, seed, rows, say)
    outcome = Outcome(
        [],
        None if constant is None else log_partition(action),
        is_ratio=constant is None,
        tunnelling=tunnelling,
    )
    best = _add_estimates(outcome, forward, reverse, constant or 0.0)
    # A normalised density: its constant is no work of the first step.
    normalisation = prior.log_z if isinstance(prior, ExactStart) else 0.0
    outcome.process = _summary(evolutions, forward, reverse, best, normalisation)
    return outcome.finished(rows.seconds)


def prior_of(
    start: Model | Source,
    start_action: Action | None,
    *,
    seed: int,
    rows: Rows,
    say: Say = quiet,
    purpose: str = "start",
) -> tuple[Model, float | None]:
    """Return where processes begin, and the exact ln Z that its density lacks (None: unknown).

    Chains are others for every purpose.

    Args:
        start, start_action, seed, rows, say: as for :func:`by_process`.
        purpose: "start", or what else the configurations are for; the name of their rows.

    Raises:
        ConfigError: as :func:`by_process`.
    """
    if isinstance(start, EnsemblePrior):
        raise ConfigError(
            "an EnsemblePrior knows its density up to a constant only, and nothing of the order of "
            "its configurations: give them as start, (measurements, chains, ...), with start_action"
        )
    if not isinstance(start, Chains | Configurations | Iterable):
        return as_model(start), 0.0
    if start_action is None:
        raise ConfigError(
            "processes that begin from configurations need their action: give start_action, or a "
            "prior as start"
        )
    of = "the start" if purpose == "start" else f"the start, for the {purpose}"
    if isinstance(start, Chains):
        say(f"{start.count} chains of {of}, {start_action!r}")
    rng = stream(seed, 0, f"chains of {of}")
    for x in configurations_of(start, start_action, purpose, rng, rows):
        rows.add(purpose, {"field": x})
    fields = [row["field"] for row in rows.rows(purpose)]
    return EnsemblePrior(torch.cat(fields), start_action), log_partition(start_action)


def _add_estimates(
    outcome: Outcome,
    forward: NDArray[np.float64],
    reverse: NDArray[np.float64] | None,
    shift: float,
) -> FreeEnergy:
    """Add what follows from the works; return the best estimate without the constant."""
    best = ahead = jarzynski(forward)
    back = None
    outcome.works["forward"] = forward
    if reverse is not None:
        outcome.works["reverse"] = reverse
        outcome.bridge = bridge = bennett(forward, reverse)
        ahead, back = compare(bridge.forward, bridge.reverse)
        best = bridge.estimate
        contradictions = [text for text in ahead.warnings if "standard deviations" in text]
        if contradictions and ahead.value > back.value:
            best = best.warned(contradictions[0], bound="both")
        parts = {"forward": bridge.forward_fluctuations, "reverse": bridge.reverse_fluctuations}
        title = "Bennett, both directions"
        outcome.estimates.append(Named("bridge", title, best.shifted(shift), parts))
    for key, title, estimate, ensemble in (
        ("jarzynski", "Jarzynski, from the start", ahead, "forward"),
        ("jarzynski_reverse", "Jarzynski, from the target", back, "reverse"),
    ):
        if estimate is not None:
            outcome.estimates.append(
                Named(key, title, estimate.shifted(shift), {ensemble: estimate.fluctuations})
            )
    return best


def _summary(
    evolutions: list[Row],
    forward: NDArray[np.float64],
    reverse: NDArray[np.float64] | None,
    best: FreeEnergy,
    normalisation: float,
) -> ProcessSummary:
    finite = forward[np.isfinite(forward)]
    sizes = np.array([len(row["work"]) for row in evolutions], dtype=float)
    step_work = np.average([row["step_work"].numpy() for row in evolutions], axis=0, weights=sizes)
    step_work[0] += normalisation
    return ProcessSummary(
        float(finite.mean()),
        float(finite.std()),
        float(finite.mean()) + best.value,
        float("nan") if reverse is None else float(reverse.mean()) - best.value,
        step_work,
        np.average([row["acceptance"].numpy() for row in evolutions], axis=0, weights=sizes),
    )


def _forward(
    model: StochasticFlow, draws: tuple[int, int] | None, seed: int, rows: Rows, say: Say
) -> list[Row]:
    """Return rows of evolutions.

    Args:
        model: the process with its prior.
        draws: number of draws of the prior, and of a batch; None for one evolution of each
            configuration of the start.
        seed, rows, say: as for :func:`by_process`.
    """
    found = rows.rows("forward")

    def add(evolution: Evolution) -> None:
        keys = ("work", "step_work", "acceptance")
        rows.add("forward", {key: getattr(evolution, key) for key in keys})

    if draws is None:
        # One evolution per configuration of the chains, in their order: for the Gamma method.
        parts = [row["field"] for row in rows.rows("start")]
        for index in range(len(found), len(parts)):
            say(f"forward processes, {index + 1} of {len(parts)}")
            x = parts[index]
            add(model.process(x, model.prior.log_prob(x), stream(seed, index, "forward process")))
        return found
    batches = batches_of(*draws)
    for index, size in batches[len(found) :]:
        say(f"forward processes, batch {index + 1} of {len(batches)}")
        add(model.evolve(size, stream(seed, index, "forward process")))
    return found


def _reverse(
    model: StochasticFlow, target: Source, tunnelling: Tunnelling, seed: int, rows: Rows, say: Say
) -> NDArray[np.float64]:
    """Return the works of processes back from samples of the target, (measurements, chains)."""

    def drive(y: Tensor, index: int) -> dict[str, Any]:
        work = model.reverse(y, stream(seed, index, "reverse process")).work
        return {"work": work, **tunnelling.measured(y)}

    found = target_rows(target, model.process.target, drive, seed=seed, rows=rows, say=say)
    for row in found:
        tunnelling.note(row)
    return _finite(torch.stack([row["work"] for row in found]))


def _finite(work: Tensor) -> NDArray[np.float64]:
    """A process that failed has no weight."""
    return work.nan_to_num(nan=np.inf, posinf=np.inf, neginf=-np.inf).numpy()
