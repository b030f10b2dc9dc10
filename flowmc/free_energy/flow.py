"""ln Z from a flow's draws, from samples of the target, or from both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import (
    FreeEnergy,
    ModeCoverage,
    bennett,
    mode_coverage,
    p_estimator,
    q_estimator,
)
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.flows.models import Model, as_model
from flowmc.free_energy.outcome import Named, Outcome
from flowmc.free_energy.rows import Row, Rows
from flowmc.free_energy.sources import Say, Source, quiet, target_rows
from flowmc.free_energy.tunnelling import Tunnelling
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["batches_of", "from_flow"]


@torch.no_grad()
def from_flow(
    action: Action,
    model: Model | Any,
    *,
    samples: int = 4096,
    batch: int = 1024,
    target: Source | None = None,
    seed: int = 0,
    rows: Rows | None = None,
    say: Say = quiet,
) -> Outcome:
    r"""Return :math:`\ln Z` of an action from a model whose density is known.

    With weights :math:`w = e^{-S} / q`, draws of the model give :math:`\ln \langle w \rangle_q`
    ("q"), samples of the target :math:`-\ln \langle 1/w \rangle_p` ("p"), and both Bennett's
    estimate ("bridge") and the share of the target that the model covers
    (:mod:`flowmc.estimators.free_energy`).

    Args:
        action: the target.
        model: a :class:`~flowmc.flows.Model`, or what has its methods; for another theory in its
            range it is taken there (``at``).
        samples: draws of the model, 0 for none.
        batch: of these at a time.
        target: :class:`~flowmc.free_energy.sources.Chains` of the target, or its configurations: a
            tensor ``(measurements, chains, ...)`` or an iterable of ``(chains, ...)``.  None for
            draws of the model alone.
        seed: of all random streams.
        rows: what has been measured before.
        say: called with a sentence when something begins.

    Raises:
        ConfigError: nothing to measure with, or configurations of another theory.
        ValueError: the model was not made for this action.
        DensityError: a continuous flow whose integrator is too coarse.
    """
    if samples < 0 or samples == 1 or batch < 1 or (target is None and not samples):
        raise ConfigError(
            f"samples = {samples}, batch = {batch}: should be at least 2 and 1, or samples = 0 "
            "with configurations of the target"
        )
    model, rows = as_model(model).at(action), rows or Rows()
    outcome = Outcome([], log_partition(action))
    q = p = None
    if samples:
        say(f"drawing {samples} samples of the flow")
        q = _draws(action, model, samples, batch, seed, rows)
        outcome.works["forward"] = -q
    if target is not None:
        outcome.tunnelling = Tunnelling(action)
        p = _of_target(action, model, target, outcome.tunnelling, seed, rows, say)
        outcome.works["reverse"] = p
    _add_estimates(outcome, q, p)
    return outcome.finished(rows.seconds)


def _add_estimates(
    outcome: Outcome, q: NDArray[np.float64] | None, p: NDArray[np.float64] | None
) -> None:
    """Add what follows from the log-weights of draws and of samples of the target."""
    one_sided: tuple[FreeEnergy | None, FreeEnergy | None]
    if q is not None and p is not None:
        outcome.bridge = bridge = bennett(-q, p)
        outcome.coverage = mode_coverage(q, p)
        parts = {"flow": bridge.forward_fluctuations, "target": bridge.reverse_fluctuations}
        best = _contradicted(bridge.estimate, outcome.coverage)
        outcome.estimates.append(Named("bridge", "bridge between flow and target", best, parts))
        one_sided = outcome.coverage.log_z_q, outcome.coverage.log_z_p
    else:
        one_sided = (
            q_estimator(q) if q is not None else None,
            p_estimator(p) if p is not None else None,
        )
    for key, title, estimate, ensemble in (
        ("q", "q-estimator, draws of the flow", one_sided[0], "flow"),
        ("p", "p-estimator, samples of the target", one_sided[1], "target"),
    ):
        if estimate is not None:
            outcome.estimates.append(Named(key, title, estimate, {ensemble: estimate.fluctuations}))


def _contradicted(best: FreeEnergy, coverage: ModeCoverage) -> FreeEnergy:
    """Mark a bridge whose two ends contradict each other."""
    texts = [text for text in coverage.warnings if "standard deviations" in text]
    return best.warned(texts[0], bound="both") if texts else best


def _draws(
    action: Action, model: Model, samples: int, batch: int, seed: int, rows: Rows
) -> NDArray[np.float64]:
    """Return the log-weights of draws, ``(samples,)``."""
    found = rows.rows("draws")
    for index, size in batches_of(samples, batch)[len(found) :]:
        x, log_q = model.sample(size, stream(seed, index, "draws of the flow"))
        rows.add("draws", {"log_weight": -action(x) - log_q})
    logs = [row["log_weight"] for row in found]
    log_weights = torch.cat(logs).nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    if not model.log_density_is_exact:
        start = model.starts(min(DENSITY_SAMPLES, samples), stream(seed, 0, "density error"))
        check_density(model, start, log_weights)
    return log_weights.numpy()


def _of_target(
    action: Action,
    model: Model,
    target: Source,
    tunnelling: Tunnelling,
    seed: int,
    rows: Rows,
    say: Say,
) -> NDArray[np.float64]:
    """Return the log-weights of samples of the target, ``(measurements, chains)``."""

    def weigh(x: Tensor, index: int) -> Row:
        return {"log_weight": -action(x) - model.log_prob(x), **tunnelling.measured(x)}

    found = target_rows(target, action, weigh, seed=seed, rows=rows, say=say)
    for row in found:
        tunnelling.note(row)
    log_weights = torch.stack([row["log_weight"] for row in found])
    # A field that the flow cannot reach has the density 0 there.
    return log_weights.nan_to_num(nan=np.inf, posinf=np.inf, neginf=-np.inf).numpy()


def batches_of(samples: int, batch: int) -> list[tuple[int, int]]:
    """Return index and size of the batches of independent samples."""
    return [
        (index, min(batch, samples - first)) for index, first in enumerate(range(0, samples, batch))
    ]
