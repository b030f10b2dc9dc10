"""ln Z along a line of ensembles, by bridges between neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import ChainOfEnsembles, chain_of_ensembles
from flowmc.free_energy.outcome import Named, Outcome
from flowmc.free_energy.rows import Row, Rows
from flowmc.free_energy.sources import Chains, Say, Source, configurations_of, quiet
from flowmc.free_energy.tunnelling import Tunnelling
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["along_line"]


@torch.no_grad()
def along_line(
    actions: Sequence[Action],
    ensembles: Chains | Sequence[Source],
    *,
    seed: int = 0,
    rows: Rows | None = None,
    say: Say = quiet,
) -> Outcome:
    r"""Return :math:`\ln Z` of the last action from ensembles of all of them.

    Neighbours are joined by Bennett's estimate
    (:func:`~flowmc.estimators.free_energy.chain_of_ensembles`), and the exact :math:`\ln Z` of the
    first is added where it is known; else the result is :math:`\ln Z / Z_0`.

    Args:
        actions: at least two, such as those of :func:`~flowmc.nonequilibrium.line_of_actions`.
        ensembles: chains, with kernels as a function of the action, or for every action chains or
            configurations as in :func:`~flowmc.free_energy.flow.from_flow`.
        seed: of all random streams.
        rows: what has been measured before.
        say: called with a sentence when something begins.

    Raises:
        ConfigError: fewer than two actions, not one ensemble for each, or configurations of
            another theory.
    """
    line, rows = list(actions), rows or Rows()
    sources = [ensembles] * len(line) if isinstance(ensembles, Chains) else list(ensembles)
    if len(line) < 2 or len(sources) != len(line):
        raise ConfigError(
            "a line needs at least two actions and one ensemble for each, got "
            f"{len(line)} and {len(sources)}"
        )
    tunnelling = Tunnelling(line[-1])
    for index, action in enumerate(line):
        say(f"ensemble {index + 1} of {len(line)}: {action!r}")
        _measure(line, index, sources[index], tunnelling, seed, rows)
    measured = [rows.rows(_name(index)) for index in range(len(line))]
    for row in measured[-1]:
        tunnelling.note(row)
    forward = [_series(one, "up") for one in measured[:-1]]
    reverse = [_series(one, "down") for one in measured[1:]]
    found, constant = chain_of_ensembles(forward, reverse), log_partition(line[0])
    estimates = [one.shifted(constant or 0.0) for one in found.estimates]
    outcome = Outcome(
        [
            Named(
                "chain",
                "chain of ensembles, bridges between neighbours",
                estimates[-1],
                _fluctuations(found),
            )
        ],
        None if constant is None else log_partition(line[-1]),
        is_ratio=constant is None,
        tunnelling=tunnelling,
    )
    names = [name for name in line[0].parameters if _varies(line, name)]
    outcome.line = [
        ({name: action.parameters[name] for name in names}, estimate, bridge.overlap)
        for action, estimate, bridge in zip(line[1:], estimates, found.bridges, strict=True)
    ]
    if len(line) == 2:
        outcome.bridge = found.bridges[0]
    for index, (up_work, down_work) in enumerate(zip(forward, reverse, strict=True)):
        outcome.works[f"forward {index}"] = up_work
        outcome.works[f"reverse {index}"] = down_work
    return outcome.finished(rows.seconds)


def _measure(
    line: Sequence[Action],
    index: int,
    source: Source,
    tunnelling: Tunnelling,
    seed: int,
    rows: Rows,
) -> None:
    """Measure the works from one ensemble to its neighbours."""
    action, name = line[index], _name(index)
    rng = stream(seed, index, "chains of an ensemble")
    for x in configurations_of(source, action, name, rng, rows):
        own = action(x)
        row: dict[str, Tensor] = {}
        if index + 1 == len(line):
            row |= tunnelling.measured(x)
        else:
            row["up"] = line[index + 1](x) - own
        if index:
            row["down"] = line[index - 1](x) - own
        rows.add(name, row)


def _name(index: int) -> str:
    return f"ensemble {index}"


def _series(rows: Sequence[Row], key: str) -> NDArray:
    return torch.stack([row[key] for row in rows]).numpy()


def _fluctuations(found: ChainOfEnsembles) -> dict[str, NDArray]:
    """Return what ln Z of the last ensemble fluctuates by, by ensemble."""
    parts: dict[str, NDArray] = {"ensemble 0": found.bridges[0].forward_fluctuations}
    for index, bridge in enumerate(found.bridges):
        last = index + 1 == len(found.bridges)
        onward = 0.0 if last else found.bridges[index + 1].forward_fluctuations
        parts[f"ensemble {index + 1}"] = bridge.reverse_fluctuations + onward
    return parts


def _varies(line: Sequence[Action], name: str) -> bool:
    return len({action.parameters[name] for action in line}) > 1
