"""Kernels of other variables, applied to the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from flowmc.actions.transformed import TransformedAction
from flowmc.flows.models import FlowModel, Prior
from flowmc.kernels.base import Info, Kernel, State, apply, title_of, value_in_torch
from flowmc.random import Randomness
from flowmc.registry import ConfigError

__all__ = ["InVariables"]


class InVariables(Kernel):
    r"""Apply a kernel of z to the field :math:`\phi = f(z)`.

    ::

        kernel = InVariables(HMC(action.transformed(flow), steps=8))

    A step maps the field to z, moves z, and maps it back.  As the density of z is that of
    :class:`~flowmc.actions.transformed.TransformedAction`, the density of the field stays
    invariant.  A flow may have lost its inverse to rounding in parts of the space: a chain whose
    field does not come back from there and forth stays, and so does one that would end there
    (:meth:`~flowmc.flows.models.FlowModel.known_log_prob`), which keeps a reversible kernel
    reversible.

    Args:
        kernel: of one field, elementary, of a transformed action.

    Raises:
        ConfigError: for a kernel of another action.
    """

    def __init__(self, kernel: Kernel) -> None:
        own = getattr(kernel, "action", None)
        if not isinstance(own, TransformedAction):
            raise ConfigError(
                f"{title_of(kernel)} is no kernel of action.transformed(flow): there is nothing "
                "to map back"
            )
        self.kernel, self.action, self.flow = kernel, own.action, own.flow
        self.flow.eval().requires_grad_(False)
        self.name, self.title = kernel.name, f"{title_of(kernel)} in other variables"
        self.takes_streams, self.reports = kernel.takes_streams, kernel.reports
        self._model = FlowModel(_Flat(), self.flow)

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        self.kernel.init(self._z(field))
        return State(field, value_in_torch(self.action, field))

    @torch.no_grad()
    def step(self, state: State, rng: Randomness) -> tuple[State, Info]:
        field = state.field
        z = self._z(field)
        moved, info = apply(self.kernel, State(z), rng)
        zero = torch.zeros(state.chains, dtype=torch.float64, device=field.device)
        proposal, _ = self.flow.forward(moved.field, zero)
        is_known = self._is_known(field) & self._is_known(proposal)
        # Of a chain that the kernel left where it was, the field is not touched by rounding.
        has_moved = (moved.field != z).flatten(1).any(1) & is_known
        info = replace(info, is_accepted=info.is_accepted & is_known[:, None])
        if not bool(has_moved.any()):
            return state, info
        chosen = has_moved.reshape(-1, *[1] * (field.dim() - 1))
        return state.moved(torch.where(chosen, proposal, field)), info

    def _z(self, field: Tensor) -> Tensor:
        zero = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        return self.flow.inverse(field, zero)[0]

    def _is_known(self, field: Tensor) -> Tensor:
        return self._model.known_log_prob(field, self.action.group).isfinite()

    @property
    def adapts(self) -> bool:
        return self.kernel.adapts

    def adapt(self, info: Info, update: int) -> None:
        self.kernel.adapt(info, update)

    def tuning(self) -> dict[str, float]:
        return self.kernel.tuning()

    def set_tuning(self, values: Mapping[str, float]) -> None:
        self.kernel.set_tuning(values)


class _Flat(Prior):
    """The Haar measure, not normalised: then log q is the Jacobian alone."""

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        raise TypeError("a measure that is not normalised has no draws")

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
