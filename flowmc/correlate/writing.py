"""Correlated configurations on disk: the same replicas and numbers, and a weight for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flowmc_adapters import atomic_write
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.ensembles.naming import field_metadata
from flowmc.ensembles.stored import Member
from flowmc.estimators.history import History
from flowmc.io import write_field

__all__ = ["CorrelatedWriter", "write_weights"]


class CorrelatedWriter:
    """Writes ``NAME.NUMBER`` for one replica, ``REPLICA/NAME.NUMBER`` for several.

    Args:
        folder: of the target.
        name: of the ensemble.
        action: the theory of the target.
        flow: how the flow is named in the configuration.
        format: of the files.
        precision: 32 or 64; None for that of the fields.
        several: whether the ensemble has several replicas.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        action: Action,
        flow: str,
        *,
        format: str,
        precision: int | None,
        several: bool,
    ) -> None:
        self.folder, self.name, self.action, self.flow = folder, name, action, flow
        self.format, self.precision, self.several = format, precision, several

    def path(self, member: Member) -> Path:
        """Return the file of a configuration."""
        folder = self.folder / member.replica if self.several else self.folder
        return folder / f"{self.name}.{member.number}"

    def write(
        self, members: Sequence[Member], mapped: Tensor, log_weights: NDArray[np.float64]
    ) -> None:
        """Write mapped configurations with their log-weights in the metadata.

        Raises:
            OSError, FormatError: as :func:`flowmc.io.write_field`.
        """
        for i, member in enumerate(members):
            if not np.isfinite(log_weights[i]):
                continue  # a configuration without a density has weight zero, and no file
            write_field(
                self.path(member),
                mapped[i],
                self.action,
                format=self.format,
                precision=self.precision,
                metadata=self._metadata(member, float(log_weights[i])),
            )

    def _metadata(self, member: Member, log_weight: float) -> Mapping[str, str]:
        return {
            **{k: v for k, v in field_metadata(self.action, 0).items() if k != "FLOWMC_SEED"},
            "SEQUENCE_NUMBER": str(member.number),
            "FLOWMC_SOURCE": Path(member.path).name,
            "FLOWMC_FLOW": Path(self.flow).name,
            # An unweighted mean over these configurations is biased.
            "FLOWMC_LOG_WEIGHT": repr(log_weight),
        }


def write_weights(path: Path, history: History, log_weights: NDArray[np.float64]) -> None:
    """Write ``replica, number, log_weight`` and the weight over its mean as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["replica", "number", "log_weight", "weight"])
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.mean()
    parts = zip(
        history.numbers.items(), history.split(log_weights), history.split(weights), strict=True
    )
    for (replica, numbers), logs, relative in parts:
        for number, log_weight, weight in zip(numbers, logs, relative, strict=True):
            rows.writerow([replica, int(number), repr(float(log_weight)), repr(float(weight))])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
