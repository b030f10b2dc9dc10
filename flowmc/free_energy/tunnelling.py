"""Whether chains move between the wells or topological sectors of their theory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.estimators.autocorrelation import MINIMUM_HOPS, count_hops
from flowmc.groups import U1
from flowmc.lattice import sum_over_sites
from flowmc.observables import topological_charge

__all__ = ["Tunnelling"]


class Tunnelling:
    """Counts changes of the sign of a scalar field's mean, or of a topological charge.

    Scalar fields count if S(-phi) = S(phi); charges in two-dimensional U(1).  Other theories have
    nothing here that tunnels.

    Args:
        action: what the chains sample.
    """

    def __init__(self, action: Action) -> None:
        self.action = action
        self.what: str | None = None
        self._series: list[np.ndarray] = []
        if action.is_scalar:
            probe = torch.linspace(-1, 1, action.volume, dtype=torch.float64) + 0.1
            field = probe.reshape(1, *action.lattice)
            is_even = torch.allclose(action(field), action(-field), rtol=1e-9, atol=1e-9)
            self.what = "sign of the mean field" if is_even else None
        elif action.is_gauge and isinstance(action.group, U1) and action.dimensions == 2:
            self.what = "topological charge"

    def measured(self, field: Tensor) -> dict[str, Tensor]:
        """Return what is to be noted of the configurations of all chains at one measurement."""
        if self.what is None:
            return {}
        if self.action.is_gauge:
            return {"well": topological_charge(field, self.action)}
        return {"well": torch.sign(sum_over_sites(field))}

    def note(self, row: Mapping[str, Tensor]) -> None:
        """Note what :meth:`measured` has returned, the measurements in their order."""
        if self.what is not None:
            self._series.append(row["well"].cpu().numpy())

    def look(self, field: Tensor) -> None:
        """Note the configurations of all chains at one measurement."""
        self.note(self.measured(field))

    @property
    def count(self) -> int | None:
        """How often any chain changed from one measurement to the next; None: nothing tunnels."""
        if self.what is None or not self._series:
            return None
        return count_hops(np.stack(self._series))

    @property
    def warning(self) -> str | None:
        """A sentence if the chains tunnelled too rarely."""
        count = self.count
        if count is None or count >= MINIMUM_HOPS:
            return None
        measurements, chains = np.stack(self._series).shape
        remedy = (
            'add a [[update]] with kernel = "sign_flip", which this even action allows'
            if not self.action.is_gauge
            else "run longer chains, or take the estimate from the start alone"
        )
        return (
            f"the {self.what} changed {count} times in {measurements} configurations of {chains} "
            f"chains (at least {MINIMUM_HOPS} needed): how the chains are spread over the "
            f"{'sectors' if self.action.is_gauge else 'wells'} is an accident of their start; "
            f"{remedy}"
        )
