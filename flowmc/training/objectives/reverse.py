"""The reverse Kullback-Leibler divergence with a differentiated action."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.models import FlowModel
from flowmc.groups import pairing
from flowmc.parallel import Communicator
from flowmc.training.density import ModelDensity, is_trainable
from flowmc.training.objectives.base import Batch, SamplerObjective, nothing

__all__ = ["ReverseKL"]


class ReverseKL(SamplerObjective):
    r"""The reverse Kullback-Leibler divergence up to ln Z, for samplers.

    .. math:: L = \langle \ln q(x) + S(x) \rangle_{x \sim q} = \mathrm{KL}(q \| p) - \ln Z

    (Albergo, Kanwar, Shanahan, arXiv:1904.12072).  Two unbiased estimates of its gradient:

    ``"reparametrised"`` differentiates the batch mean, with :math:`x = f_\theta(z)`.

    ``"path"`` drops the term :math:`\langle \partial_\theta \ln q_\theta \rangle = 0` at fixed x
    (Roeder, Wu, Duvenaud, arXiv:1703.09194; for flows Vaitl et al., arXiv:2207.08219):

    .. math:: \partial_\theta L = \Big\langle \partial_x \big[\ln q(x) + S(x)\big]_{x = f(z)}
              \cdot \partial_\theta f_\theta(z) \Big\rangle ,

    which vanishes sample by sample where q = p.  It needs :math:`\partial_x \ln q`, which a
    continuous flow carries along with the field (Vaitl et al., arXiv:2206.09016); others pass
    backwards through the inverse, and take about twice the time per step
    (:class:`~flowmc.training.adjoint.PushedForce`).

    A third one is an objective of its own, :class:`~flowmc.training.Reinforce`.

    Args:
        model: prior and flow.
        action: the target.
        gradient: "reparametrised" or "path".

    Raises:
        ValueError: for an unknown gradient, and for a path gradient with a trainable prior (its
            draws would depend on the weights through the prior as well).
    """

    def __init__(
        self,
        model: FlowModel,
        action: Action,
        *,
        gradient: Literal["reparametrised", "path"] = "reparametrised",
    ) -> None:
        super().__init__(model, action)
        if gradient not in ("reparametrised", "path"):
            raise ValueError(f"unknown gradient {gradient!r}: use 'reparametrised' or 'path'")
        if is_trainable(model) and (gradient == "path" or not model.has_map):
            raise ValueError(
                "path gradients, and all gradients of a mixture, need a prior without trainable "
                "parameters; freeze them or use gradient = 'reparametrised' without a mixture"
            )
        self.gradient = gradient
        self.density = ModelDensity(model, action.group)

    def distribute(self, communicator: Communicator) -> None:
        super().distribute(communicator)
        self.density.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        if self.gradient == "path" or not self.model.has_map:
            return self._evaluate_at(n, rng)
        if self.communicator.size == 1:
            (x, log_q), rows = self.model.sample(n, rng), None
        else:
            # Every rank draws the whole batch, so that it does not depend on their number.
            z, log_prior = self.model.prior.sample(n, rng)
            rows = self.own_rows(n)
            if not len(rows):
                return nothing(rows)
            x, log_q = self.model.flow.forward(z[rows], log_prior[rows])
        log_weights, force = self._target(x.detach(), log_q.detach())
        surrogate = log_q.sum() / n + pairing(self.action.group, force, x) / n
        return Batch(surrogate, -log_weights.sum() / n, log_weights, rows)

    def _evaluate_at(self, n: int, rng: torch.Generator) -> Batch:
        rows = None
        with torch.no_grad():
            start, _ = self.model.prior.sample(n, rng)
        if self.communicator.size > 1:
            rows = self.own_rows(n)
            if not len(rows):
                self.density.skip()
                return nothing(rows)
            start = start[rows]
        at = self.density.at(start)
        log_weights, force = self._target(at.field.detach(), at.log_q.detach())
        surrogate = at.path(force) / n
        if self.gradient == "reparametrised":
            # The derivative of ln q along the path and at fixed x: the second is the score.
            surrogate = surrogate + at.score(torch.full_like(log_weights, 1 / n))
        return Batch(surrogate, -log_weights.sum() / n, log_weights, rows)

    @torch.no_grad()
    def _target(self, x: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        return -self.action(x) - log_q, self.action.force(x)
