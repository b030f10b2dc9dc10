"""Configurations of the target from disk, arranged for the Gamma method."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.regeneration import open_seeds
from flowmc.ensembles.stored import EnsembleTable, StoredEnsemble, selection_text
from flowmc.free_energy.progress import Progress
from flowmc.registry import ConfigError

__all__ = ["StoredConfigurations"]


class StoredConfigurations:
    """Configurations on disk: the n-th of every replica, ``(replicas, ...)``, for n = 0, 1, ...

    Args:
        table: ``[ensemble]``.
        base: directory of the configuration file.
        action: the theory.
        say: shows a sentence to the user.
        progress: is told which files these are.
    """

    def __init__(
        self,
        table: EnsembleTable,
        base: Path,
        action: Action,
        say: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.table, self.base, self.action = table, base, action
        self.say, self.progress = say, progress

    def after(self, count: int) -> Iterator[Tensor]:
        """Yield the configurations without the first ``count`` of every replica.

        Raises:
            ConfigError: replicas of different length, or numbers that are not equidistant: neither
                makes a series whose autocorrelation can be taken.
            FormatError, OSError: a file cannot be read.
        """
        ensemble = self.table.open(self.base, open_seeds)
        self.progress.identify("[ensemble] of files", _digest(ensemble))
        self.say(f"{selection_text(ensemble)} of {ensemble.name}")
        _check_series(ensemble)
        replicas = len(ensemble.history.numbers)
        length, members = len(ensemble) // replicas, ensemble.members
        for place in range(count, length):
            row = StoredEnsemble(ensemble.name, members[place::length])
            for batch in row.batches(self.action, len(row)):
                yield batch.field


def _check_series(ensemble: StoredEnsemble) -> None:
    """Raise ConfigError unless all replicas are series of one length with equal steps."""
    numbers = ensemble.history.numbers
    lengths = {name: len(of_replica) for name, of_replica in numbers.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{length} of {name}" for name, length in lengths.items())
        raise ConfigError(
            f"[ensemble]: the replicas differ in number of configurations ({text}): choose first "
            "and last so that they do not"
        )
    for name, of_replica in numbers.items():
        steps = np.diff(of_replica)
        if len(set(steps.tolist())) > 1:
            hole = int(of_replica[1:][steps != steps[0]][0])
            raise ConfigError(
                f"[ensemble]: the numbers of replica {name} are not equidistant (before {hole}): "
                "their autocorrelation is not defined; choose first, last or every"
            )


def _digest(ensemble: StoredEnsemble) -> str:
    """Return a digest of names, numbers and sizes of the files: their content may be terabytes."""
    digest = hashlib.sha256()
    for one in ensemble.members:
        made = one.made
        # What is made again has a checksum at hand.
        size = made.maker.checksum(made.row, made.chain) if made else os.path.getsize(one.path)
        text = f"{one.replica}\n{one.number}\n{one.inner}\n{size}\n"
        digest.update(text.encode())
    return digest.hexdigest()
