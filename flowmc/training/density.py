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

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmc.flows.models import FlowModel
from flowmc.groups import Group, pairing
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.adjoint import PushedForce

__all__ = ["DensityAt", "MixtureAt", "ModelDensity", "is_trainable"]


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
        shaped = _rows(coefficients, self.force)
        return (coefficients * self.log_q).sum() + pairing(
            self.group, shaped * self.force, self.field
        )

    def path(self, force: Tensor) -> Tensor:
        r"""Return a scalar with the gradient :math:`\sum_i (F_i - v_i) \cdot \partial_\theta f`.

        Args:
            force: F, an algebra gradient like the field.
        """
        return pairing(self.group, force - self.force, self.field)


@dataclass(frozen=True)
class MixtureAt:
    r"""The density of a mirrored model at the fields :math:`x_i = f(z_i)`.

    That is one whose :math:`q_{\mathrm{mix}}` is the mean of q at x and -x
    (:class:`~flowmc.flows.SignMixture`).

    With the shares :math:`\pi_\pm(x) = q(\pm x) / (2\, q_{\mathrm{mix}}(x))`,

    .. math:: \partial_\theta \ln q_{\mathrm{mix}}(x) = \sum_\pm \pi_\pm\,
              \partial_\theta \ln q(\pm x) .

    Attributes:
        sides: the density of the flow at x and at -x.
        shares: both pi, ``(2, n)`` float64.
    """

    sides: tuple[DensityAt, DensityAt]
    shares: Tensor

    @property
    def field(self) -> Tensor:
        """The fields x."""
        return self.sides[0].field

    @property
    def log_q(self) -> Tensor:
        """The log-density of the mixture, ``(n,)`` float64, without a graph."""
        logs = torch.stack([side.log_q.detach() for side in self.sides])
        return torch.logsumexp(logs, 0) - math.log(2)

    @property
    def force(self) -> Tensor:
        """The algebra gradient of minus that, like the field; without a graph."""
        plus, minus = (
            _rows(share, side.force) * side.force
            for share, side in zip(self.shares, self.sides, strict=True)
        )
        return plus - minus

    def score(self, coefficients: Tensor) -> Tensor:
        r"""Return a scalar with the gradient of :math:`\sum_i c_i \ln q_{\mathrm{mix}}(x_i)`."""
        plus, minus = (
            side.score(coefficients * share)
            for share, side in zip(self.shares, self.sides, strict=True)
        )
        return plus + minus

    def path(self, force: Tensor) -> Tensor:
        r"""Return a scalar with the gradient of the path, averaged over the sides.

        .. math:: \sum_i \sum_\pm \pm \pi_\pm(x_i)\, (F_i - v_i) \cdot
                  \partial_\theta f_\theta(z^\pm_i), \qquad f(z^\pm) = \pm x ,

        with v the force of the mixture, for an even target.  Averaging over the side that a field
        of :math:`q_{\mathrm{mix}}` may have come from changes no mean.  On fields of p it is the
        path gradient of the flow to :math:`2 p(y) \pi_+(y)`, whose force is
        :math:`F + v_q - v` with the force :math:`v_q` of the flow's own density.
        """
        difference = force - self.force
        plus, minus = (
            pairing(side.group, _rows(share, difference) * difference, side.field)
            for share, side in zip(self.shares, self.sides, strict=True)
        )
        return plus - minus


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Return ``values (n,)`` in a shape and precision that multiplies ``like (n, ...)``."""
    return values.reshape(-1, *[1] * (like.dim() - 1)).to(like.real.dtype)


class ModelDensity:
    """Evaluates the density of a model where its prior's draws are mapped to.

    Args:
        model: prior and flow.
        group: of the fields' elements.

    Raises:
        ConfigError: for a model whose density is neither that of its map nor mirrored.
    """

    def __init__(self, model: FlowModel, group: Group) -> None:
        if not (model.has_map or model.is_mirrored):
            raise ConfigError(
                f"{type(model).__name__} has no map whose density is its own (has_map), and is no "
                "mirrored one (is_mirrored): this objective cannot differentiate its density"
            )
        self.model, self.group = model, group
        self.pushed_force = PushedForce(model.flow, group)

    def distribute(self, communicator: Communicator) -> None:
        """Let the ranks of a communicator decide together how derivatives are taken."""
        self.pushed_force.communicator = communicator

    def skip(self) -> None:
        """Take part in that decision on a rank without samples."""
        self.pushed_force.agree()

    def at(self, start: Tensor) -> DensityAt | MixtureAt:
        """Return the density at the images of ``start (n, ...)``, which are taken as constants."""
        # That of other couplings, where a conditional flow is trained for many.
        self.pushed_force.flow = self.model.flow
        own = self._of_flow(start)
        if not self.model.is_mirrored:
            return own
        zero = torch.zeros(len(start), dtype=torch.float64, device=start.device)
        with torch.no_grad():
            mirrored, change = self.model.flow.inverse(-own.field.detach(), zero)
            logs = torch.stack([own.log_q.detach(), self.model.prior.log_prob(mirrored) - change])
        return MixtureAt((own, self._of_flow(mirrored)), torch.softmax(logs, 0))

    def _of_flow(self, start: Tensor) -> DensityAt:
        prior = self.model.prior
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
            x, log_density, force = self.pushed_force.forward(
                z, torch.zeros_like(log_prior), prior_force
            )
            return DensityAt(self.group, x, log_prior + log_density, force)


def is_trainable(model: FlowModel) -> bool:
    """Return whether the prior of a model has weights to train."""
    prior = model.prior
    return isinstance(prior, nn.Module) and any(p.requires_grad for p in prior.parameters())
