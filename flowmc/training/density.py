r"""The log-density of a sampler at given fields, with its derivatives.

With :math:`x = f_\theta(z)` and :math:`\ln q(x) = \ln r(z) - J(z)`, differentiating
:math:`f_\theta(z) = x` at fixed x gives

.. math::
    \partial_\theta \ln q_\theta(x) = \partial_\theta \big[\ln r(z) - J(z)\big]_z
        + v \cdot \partial_\theta f_\theta(z), \qquad v = -\partial_x \ln q(x),

which takes one evaluation of the flow and its force v
(:class:`~flowmc.training.adjoint.PushedForce`), and nothing of the inverse: it may be an iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmc.flows.base import FlowModel
from flowmc.groups import Group
from flowmc.parallel import Communicator
from flowmc.training.adjoint import PushedForce, pairing

__all__ = ["DensityAt", "ModelDensity", "is_trainable"]


@dataclass(frozen=True)
class DensityAt:
    r"""The density of a model at the fields :math:`x_i = f(z_i)`.

    Attributes:
        group: of the fields' elements.
        field: x, ``(n, ...)``, with a graph to the weights at fixed z.
        log_q: ln q(x), ``(n,)`` float64, with a graph to the weights at fixed z.
        force: v, the algebra gradient of -ln q at x, like the field; without a graph.
    """

    group: Group
    field: Tensor
    log_q: Tensor
    force: Tensor

    def score(self, coefficients: Tensor) -> Tensor:
        r"""Return a scalar with the gradient of :math:`\sum_i c_i \ln q_\theta(x_i)` at fixed x.

        Its value means nothing.

        Args:
            coefficients: c, ``(n,)`` float64, constants.
        """
        shaped = coefficients.reshape(-1, *[1] * (self.force.dim() - 1)).to(self.force.real.dtype)
        return (coefficients * self.log_q).sum() + pairing(
            self.group, shaped * self.force, self.field
        )

    def path(self, force: Tensor) -> Tensor:
        r"""Return a scalar with the gradient :math:`\sum_i (F_i - v_i) \cdot \partial_\theta f`.

        Args:
            force: F, an algebra gradient like the field.
        """
        return pairing(self.group, force - self.force, self.field)


class ModelDensity:
    """Evaluates the density of a model where its prior's draws are mapped to.

    Args:
        model: prior and flow.
        group: of the fields' elements.
    """

    def __init__(self, model: FlowModel, group: Group) -> None:
        self.model, self.group = model, group
        self.pushed_force = PushedForce(model.flow, group)

    def distribute(self, communicator: Communicator) -> None:
        """Let the ranks of a communicator decide together how derivatives are taken."""
        self.pushed_force.communicator = communicator

    def skip(self) -> None:
        """Take part in that decision on a rank without samples."""
        self.pushed_force.agree()

    def at(self, start: Tensor) -> DensityAt:
        """Return the density at the images of ``start (n, ...)``, which are taken as constants."""
        prior, flow = self.model.prior, self.model.flow
        z = start.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            log_prior = prior.log_prob(z)
            prior_force = torch.zeros_like(start)
            # Where the prior is flat, as Haar's is, there is nothing to differentiate.
            if log_prior.requires_grad:
                (euclidean,) = torch.autograd.grad(-log_prior.sum(), z, allow_unused=True)
                if euclidean is not None:
                    prior_force = self.group.gradient_from_euclidean(start.detach(), euclidean)
            if is_trainable(self.model):
                log_prior = prior.log_prob(start.detach())
            else:
                log_prior = log_prior.detach()
            x, log_density = flow.forward(z, torch.zeros_like(log_prior))
            force = self.pushed_force(z, x, log_density, prior_force)
            return DensityAt(self.group, x, log_prior + log_density, force)


def is_trainable(model: FlowModel) -> bool:
    """Return whether the prior of a model has weights to train."""
    prior = model.prior
    return isinstance(prior, nn.Module) and any(p.requires_grad for p in prior.parameters())
