r"""An action in other variables: :math:`\phi = f(z)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowmc.actions.base import Action, at_couplings
from flowmc.fields import FieldSpace
from flowmc.groups import pairing

if TYPE_CHECKING:
    from flowmc.flows.base import Flow

__all__ = ["TransformedAction"]


class TransformedAction(Action):
    r"""The action of z with :math:`\phi = f(z)`, for a flow f:

    .. math:: S_z(z) = S(f(z)) - \ln\left|\det \frac{\partial f}{\partial z}\right| .

    Where f takes simple variables to the target, HMC moves z with larger steps (M. Luescher,
    arXiv:0907.5491); :class:`~flowmc.kernels.InVariables` maps its fields back.

    Args:
        action: S; its force is its own, that of the Jacobian comes by autograd.
        flow: f, of which only the forward map is used.

    Raises:
        ValueError: for a flow whose density is not that of its map, and for auxiliary fields.
    """

    name = "transformed"

    def __init__(self, action: Action, flow: Flow) -> None:
        if not flow.log_density_is_exact:
            raise ValueError(
                f"{type(flow).__name__} has no exact Jacobian (log_density_is_exact = False): HMC "
                "in its variables would sample another density"
            )
        if action.has_auxiliaries:
            raise ValueError(f"{action!r} has auxiliary fields: transform the action at these")
        self.action, self.flow = action, flow
        self.group, self.lattice = action.group, action.lattice
        self.parameters, self.settings = action.parameters, action.settings

    @property
    def space(self) -> FieldSpace:
        return self.action.space

    def __call__(self, field: Tensor) -> Tensor:
        y, minus_jacobian = self._pushed(field)
        return self.action(y) + minus_jacobian

    def force(self, field: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = field.detach().requires_grad_(True)
            y, minus_jacobian = self._pushed(leaf)
            pulled = pairing(self.group, self.action.force(y.detach()), y) + minus_jacobian.sum()
            (euclidean,) = torch.autograd.grad(pulled, leaf)
        return self.group.gradient_from_euclidean(field, euclidean)

    def at(self, **couplings: float) -> TransformedAction:
        moved = at_couplings(self.action, couplings)
        return TransformedAction(moved, self.flow.at(moved))

    def on_lattice(self, lattice: Sequence[int]) -> TransformedAction:
        raise ValueError("an action in the variables of a flow is one of the flow's lattice")

    def _pushed(self, field: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        return self.flow.forward(field, zero)
