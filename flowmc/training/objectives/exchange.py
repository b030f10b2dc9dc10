r"""Divergences of a flow between two theories."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowmc.flows.base import Flow
from flowmc.groups import pairing
from flowmc.parallel import Communicator
from flowmc.training.adjoint import PushedForce
from flowmc.training.ensemble import Ensemble
from flowmc.training.objectives.base import Batch, Objective, nothing

__all__ = ["ExchangeKL"]


class ExchangeKL(Objective):
    r"""The divergences that decide the swap rate of a replica exchange with a flow (T-REX).

    For a flow f from the theory a to the theory b, with :math:`J_f = \ln|\det \partial f|`,

    .. math::
        w_F &= S_b(f(x_a)) - J_f(x_a) - S_a(x_a), \\
        w_R &= S_a(f^{-1}(x_b)) + J_f(f^{-1}(x_b)) - S_b(x_b).

    ``"forward"`` minimises :math:`\langle w_F \rangle_a = \mathrm{KL}(a_f \| b) + \ln Z_a / Z_b`
    (mode seeking).  ``"symmetric"`` minimises the Jeffreys divergence of the swap,
    :math:`\langle w_F \rangle_a + \langle w_R \rangle_b`: zero for a perfect flow, and covering
    every mode of both.

    The gradient of :math:`\langle w_R \rangle_b = -\langle \ln q \rangle_b + \mathrm{const}`, with
    :math:`q = e^{-S_a}` pushed through f, is taken at :math:`x = f^{-1}(y)` from one evaluation of
    the *forward* map.  Differentiating :math:`f_\theta(x) = y` at fixed y,

    .. math::
        \partial_\theta w_R = \partial_\theta J_f(x) - v \cdot \partial_\theta f_\theta(x), \qquad
        (\partial_x f)^T v = \partial_x \big[ S_a(x) + J_f(x) \big] ,

    with v from :class:`~flowmc.training.adjoint.PushedForce`, so that no derivative of the inverse
    is needed (it may be an iteration).

    Args:
        flow: the map from a to b.
        ensemble_a: configurations of :math:`e^{-S_a}`.
        ensemble_b: configurations of :math:`e^{-S_b}`.
        direction: "forward" or "symmetric".
    """

    def __init__(
        self,
        flow: Flow,
        ensemble_a: Ensemble,
        ensemble_b: Ensemble,
        *,
        direction: Literal["forward", "symmetric"] = "symmetric",
    ) -> None:
        if direction not in ("forward", "symmetric"):
            raise ValueError(f"unknown direction {direction!r}: use 'forward' or 'symmetric'")
        self.flow, self.direction = flow, direction
        self.ensembles = {"from": ensemble_a, "to": ensemble_b}
        self.action_a, self.action_b = ensemble_a.action, ensemble_b.action
        self._pushed_force = PushedForce(flow, self.action_a.group)

    @property
    def module(self) -> Flow:
        return self.flow

    def distribute(self, communicator: Communicator) -> None:
        self._pushed_force.communicator = communicator
        for ensemble in self.ensembles.values():
            ensemble.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        # A sample belongs to the rank where its chain lives, and no field has to travel.
        x, rows = self.ensembles["from"].draw_share(n)
        batch = nothing(rows)
        surrogate, loss, work = batch.surrogate, batch.loss, batch.log_weights
        if len(x):
            surrogate, work = self.forward_work(x, n)
            loss = work.sum() / n
        if self.direction == "symmetric":
            y, _ = self.ensembles["to"].draw_share(n)
            if len(y):
                reverse, reverse_work = self.reverse_work(y, n)
                surrogate = surrogate + reverse
                loss = loss + reverse_work.sum() / n
            else:
                self._pushed_force.agree()
        return Batch(surrogate, loss, -work, rows)

    def forward_work(self, x: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the surrogate of the mean of w_F, and w_F ``(n,)`` without a graph.

        ``total`` is the size of the whole batch if ``x`` is a share of it.
        """
        n = total or x.shape[0]
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        y, log_density = self.flow.forward(x, zero)
        fixed = y.detach()
        with torch.no_grad():
            work = self.action_b(fixed) + log_density.detach() - self.action_a(x)
            force = self.action_b.force(fixed)
        surrogate = log_density.sum() / n + pairing(self.action_b.group, force, y) / n
        return surrogate, work

    def reverse_work(self, y: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the surrogate of the mean of w_R, and w_R ``(n,)`` without a graph.

        ``total`` is the size of the whole batch if ``y`` is a share of it.
        """
        n = total or y.shape[0]
        zero = torch.zeros(y.shape[0], dtype=torch.float64, device=y.device)
        with torch.no_grad():
            start, inverse_density = self.flow.inverse(y, zero)
            # The density of the inverse pass is NaN where the inverse did not converge.
            work = self.action_a(start) + inverse_density - self.action_b(y)
            force = self.action_a.force(start)
        x = start.requires_grad_(True)
        image, log_density, v = self._pushed_force.forward(x, zero, force)
        # log_density is -J_f.
        surrogate = -log_density.sum() / n - pairing(self.action_a.group, v, image) / n
        return surrogate, work

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        ensemble = self.ensembles["from"]
        if self.flow.log_density_is_exact:
            return torch.zeros(min(n, ensemble.chains), dtype=torch.float64)
        return self.flow.density_error(ensemble.field[:n])

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": tensor
            for name, ensemble in self.ensembles.items()
            for key, tensor in ensemble.state_dict().items()
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        for name, ensemble in self.ensembles.items():
            prefix = f"{name}/"
            ensemble.load_state_dict(
                {
                    key.removeprefix(prefix): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(prefix)
                }
            )
