"""Configurations of the target from disk, arranged for the Gamma method."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from flowmc.ensembles.stored import StoredEnsemble, selection_text
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.progress import Progress
from flowmc.registry import ConfigError

__all__ = ["stored_configurations"]


def stored_configurations(
    config: FreeEnergyConfig, say: Callable[[str], None], progress: Progress, name: str
) -> Iterator[Tensor]:
    """Yield the n-th configuration of every replica, ``(replicas, ...)``, for n = 0, 1, ...

    Those that already have a row of that name are left out.

    Raises:
        ConfigError: replicas of different length, or numbers that are not equidistant: neither
            makes a series whose autocorrelation can be taken.
        FormatError, OSError: a file cannot be read.
    """
    table = config.ensemble
    assert table is not None
    ensemble = table.open(config.base)
    progress.identify("[ensemble] of files", _digest(ensemble))
    say(f"{selection_text(ensemble)} of {ensemble.name}")
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
    length, members = next(iter(lengths.values())), ensemble.members
    for place in range(len(progress.rows(name)), length):
        row = StoredEnsemble(ensemble.name, members[place::length])
        for batch in row.batches(config.action, len(row)):
            yield batch.field


def _digest(ensemble: StoredEnsemble) -> str:
    """Return a digest of names, numbers and sizes of the files: their content may be terabytes."""
    digest = hashlib.sha256()
    for one in ensemble.members:
        text = f"{one.replica}\n{one.number}\n{one.inner}\n{os.path.getsize(one.path)}\n"
        digest.update(text.encode())
    return digest.hexdigest()
