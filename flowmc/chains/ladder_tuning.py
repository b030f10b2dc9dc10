"""Ladders whose couplings are moved, during thermalization, until all pairs swap equally often."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from flowmc.actions.theory import check_couplings
from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.estimators.ladder import equalised
from flowmc.kernels import Info, OnReplica
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError

__all__ = ["LadderTuner", "check_tunable"]

# Fractions of the thermalization after which the ladder moves; the last half equilibrates.
_ROUNDS = (16, 8, 4, 2)


class LadderTuner:
    r"""Counts acceptance probabilities and moves the interior couplings of a ladder.

    The ladder as configured is a path, a piecewise linear function of the position
    :math:`0 \le s \le R - 1`; replica r moves along it to the position :math:`s_r` at which all
    pairs are expected to reject equally often (:func:`flowmc.estimators.ladder.equalised`).  The
    ends stay.  This happens four times, after 1/16, 1/8, 1/4 and 1/2 of the thermalization, and
    never after that.

    Args:
        config: as written, with the ladder it starts from.
        own: the replicas of this rank, by block.

    Attributes:
        positions: :math:`s_r` of every replica.
    """

    def __init__(self, config: RunConfig, own: Mapping[int, Iterable[int]]) -> None:
        assert config.ladder is not None
        self._config, self._own = config, own
        self._path = {name: np.array(value) for name, value in config.ladder.couplings.items()}
        replicas = len(config.ladder.actions)
        self.positions = [float(r) for r in range(replicas)]
        thermalization = config.run.thermalization
        self._rounds = {thermalization // part for part in _ROUNDS} - {0}
        self._reset()

    def _reset(self) -> None:
        shape = (self._config.chains.count, len(self.positions) - 1)
        self._probability, self._tried = np.zeros(shape), np.zeros(shape)

    def add(self, first: int, last: int, pair: int, info: Info) -> None:
        """Count the exchanges of one pair of one block of chains in one update."""
        if "work" not in info.values or not info.is_accepted.shape[1]:
            return
        work = info.values["work"].detach().cpu().numpy().reshape(last - first, -1)
        tried = info.is_accepted.shape[1]
        # Repeated exchanges come with works of both parities, NaN where the pair was not tried.
        probability = np.exp(-np.clip(np.where(np.isfinite(work), work, np.inf), 0, None))
        self._probability[first:last, pair] += probability.sum(1)
        self._tried[first:last, pair] += tried

    def is_due(self, update: int) -> bool:
        """Whether the ladder moves after this update."""
        return update in self._rounds

    def move(self, communicator: Communicator) -> dict[str, list[float]]:
        """Move the ladder; return the couplings of all replicas.  Collective."""
        probability, tried = self._everywhere(communicator)
        if tried.sum(0).all():
            rejection = 1 - probability.sum(0) / tried.sum(0)
            positions = equalised(self.positions, np.clip(rejection, 0, 1).tolist())
            self.positions = [round(position, 6) for position in positions]
        self._reset()
        return self.couplings()

    def couplings(self) -> dict[str, list[float]]:
        """Return the couplings of all replicas at their present positions."""
        nodes = np.arange(len(self.positions))
        found = {}
        for name, values in self._path.items():
            moved = np.interp(self.positions, nodes, values)
            # Six digits: enough for any ladder, and what people can type.
            found[name] = [float(f"{value:.6g}") for value in moved]
            found[name][0], found[name][-1] = float(values[0]), float(values[-1])
        return found

    def configured(self) -> RunConfig:
        """Return the configuration with the ladder at its present couplings."""
        ladder = self._config.ladder
        assert ladder is not None
        couplings = self.couplings()
        actions = [
            check_couplings(
                self._config.action, {k: v[r] for k, v in couplings.items()}, "[ladder]"
            )
            for r in range(len(self.positions))
        ]
        moved = dataclasses.replace(ladder, couplings=couplings, actions=actions)
        return dataclasses.replace(self._config, ladder=moved)

    def tuning(self) -> dict[str, float]:
        """Return the positions for the checkpoint."""
        return {f"ladder/{r}": position for r, position in enumerate(self.positions)}

    def set_tuning(self, values: Mapping[str, float]) -> None:
        """Restore what :meth:`tuning` returned."""
        if "ladder/0" in values:
            self.positions = [values[f"ladder/{r}"] for r in range(len(self.positions))]

    def pending(self, communicator: Communicator) -> dict[str, np.ndarray]:
        """Return the counts since the last move, for the checkpoint; collective."""
        probability, tried = self._everywhere(communicator)
        return {"ladder/probability": probability, "ladder/tried": tried}

    def restore(self, pending: Mapping[str, np.ndarray]) -> None:
        """Continue the counts of :meth:`pending`."""
        self._probability[...] = pending["ladder/probability"]
        self._tried[...] = pending["ladder/tried"]

    def _everywhere(self, communicator: Communicator) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts of all ranks; those of a pair are where its lower replica lives."""
        blocks = self._config.chains.blocks
        own = {}
        for block, replicas in self._own.items():
            chains = slice(*blocks[block])
            for r in replicas:
                if r < len(self.positions) - 1:
                    own[block, r] = self._probability[chains, r], self._tried[chains, r]
        probability, tried = np.zeros_like(self._probability), np.zeros_like(self._tried)
        for part in communicator.allgather(own):
            for (block, r), (sums, counts) in part.items():
                chains = slice(*blocks[block])
                probability[chains, r], tried[chains, r] = sums, counts
        return probability, tried


def check_tunable(config: RunConfig, assembly: Assembly) -> None:
    """Raise ConfigError if a flow is tied to a coupling that tuning would move."""
    last = len(assembly.actions) - 1
    for timed in assembly.timed.values():
        kernel = getattr(timed.kernel, "kernel", timed.kernel)
        for candidate in (timed.kernel, kernel):
            if isinstance(candidate, OnReplica) and 0 < candidate.replica < last:
                raise ConfigError(
                    f"[ladder]: tune = true moves replica {candidate.replica}, for whose couplings "
                    f"the flow of {candidate.name} was trained: use it at an end of the ladder, or "
                    "set tune = false"
                )
