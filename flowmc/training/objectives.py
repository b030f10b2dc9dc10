r"""What a training minimises: one class per objective.

An objective draws a batch and returns a :class:`Batch`, whose ``surrogate`` is a scalar with the
right *gradient* and whose ``loss`` has the right *value*; the two differ because derivatives of
actions come from their analytic forces and because path gradients drop a term of mean zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, FlowModel
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.adjoint import PushedForce, pairing
from flowmc.training.ensemble import Ensemble

__all__ = ["Batch", "ExchangeKL", "Objective", "ReverseKL"]


@dataclass(frozen=True)
class Batch:
    """One batch of an objective, or one rank's share of it.

    Surrogate and loss of a share are sums over its samples divided by the size of the whole batch,
    so that the sums over ranks are those of the batch.

    Attributes:
        surrogate: scalar with a graph; its gradient is the estimate of the loss' gradient.  (A
            share without samples has a zero without a graph.)
        loss: scalar, the estimate of the loss.
        log_weights: ``(n,)`` float64, the log-weights of the flow's output (minus the work of an
            exchange flow), up to a constant; ``(own,)`` for a share.
        rows: places of the share's samples in the batch, ``(own,)`` int64; None for a whole batch.
    """

    surrogate: Tensor
    loss: Tensor
    log_weights: Tensor
    rows: Tensor | None = None


class Objective(ABC):
    """A loss of a flow, estimated from random batches."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What is trained."""

    @abstractmethod
    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        """Draw a batch of ``n`` and return its losses, with a graph to the weights.

        After :meth:`distribute` with several ranks, this rank's share of the batch; ``rng`` is in
        the same state on all of them.
        """

    def distribute(self, communicator: Communicator) -> None:
        """Share the batches of :meth:`evaluate` among ranks from now on.

        Raises:
            ConfigError: if an objective cannot do that and there are several ranks.
        """
        if communicator.size > 1:
            raise ConfigError(
                f"{type(self).__name__} does not say how to share its batches among "
                f"{communicator.size} ranks: train on one rank, or implement distribute()"
            )

    @abstractmethod
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the error of the flow's log-density on ``n`` samples; zeros if it is exact."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed training needs beside weights and optimiser, as tensors.

        Called on all ranks; that of rank 0 is kept, and must not depend on their number.
        """
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """Continue from :meth:`state_dict`."""


class ReverseKL(Objective):
    r"""The reverse Kullback-Leibler divergence up to ln Z, for samplers.

    .. math:: L = \langle \ln q(x) + S(x) \rangle_{x \sim q} = \mathrm{KL}(q \| p) - \ln Z

    (Albergo, Kanwar, Shanahan, arXiv:1904.12072).  Two unbiased estimates of its gradient:

    ``"reparametrised"`` differentiates the batch mean, with :math:`x = f_\theta(z)`.

    ``"path"`` drops the term :math:`\langle \partial_\theta \ln q_\theta \rangle = 0` at fixed x
    (Roeder, Wu, Duvenaud, arXiv:1703.09194; for flows Vaitl et al., arXiv:2207.08219):

    .. math:: \partial_\theta L = \Big\langle \partial_x \big[\ln q(x) + S(x)\big]_{x = f(z)}
              \cdot \partial_\theta f_\theta(z) \Big\rangle ,

    which vanishes sample by sample where q = p.  It needs :math:`\partial_x \ln q`, from a backward
    pass through the inverse flow (:class:`~flowmc.training.adjoint.PushedForce`), and takes about
    twice the time per step.

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
        if gradient not in ("reparametrised", "path"):
            raise ValueError(f"unknown gradient {gradient!r}: use 'reparametrised' or 'path'")
        prior = model.prior
        trainable = isinstance(prior, nn.Module) and any(
            p.requires_grad for p in prior.parameters()
        )
        if gradient == "path" and trainable:
            raise ValueError(
                "path gradients need a prior without trainable parameters; freeze them or use "
                "gradient = 'reparametrised'"
            )
        self.model, self.action, self.gradient = model, action, gradient
        self.communicator = Communicator()
        self._pushed_force = PushedForce(model.flow, action.group)

    @property
    def module(self) -> FlowModel:
        return self.model

    def distribute(self, communicator: Communicator) -> None:
        self.communicator = self._pushed_force.communicator = communicator

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        if self.gradient == "path":
            return self._evaluate_path(n, rng)
        if self.communicator.size == 1:
            (x, log_q), rows = self.model.sample(n, rng), None
        else:
            # Every rank draws the whole batch, so that it does not depend on their number.
            z, log_prior = self.model.prior.sample(n, rng)
            rows = self._rows(n)
            if not len(rows):
                return _nothing(rows)
            x, log_q = self.model.flow.forward(z[rows], log_prior[rows])
        log_weights, force = self._target(x.detach(), log_q.detach())
        surrogate = log_q.sum() / n + pairing(self.action.group, force, x) / n
        return Batch(surrogate, -log_weights.sum() / n, log_weights, rows)

    def _rows(self, n: int) -> Tensor:
        """Return the samples of this rank: neighbours, as many on every rank as possible."""
        size, rest = divmod(n, self.communicator.size)
        rank = self.communicator.rank
        first = rank * size + min(rank, rest)
        return torch.arange(first, first + size + (rank < rest))

    def _evaluate_path(self, n: int, rng: torch.Generator) -> Batch:
        group, prior, rows = self.action.group, self.model.prior, None
        with torch.no_grad():
            start, log_prior = prior.sample(n, rng)
        if self.communicator.size > 1:
            rows = self._rows(n)
            if not len(rows):
                self._pushed_force.agree()
                return _nothing(rows)
            start, log_prior = start[rows], log_prior[rows]
        z = start.requires_grad_(True)
        with torch.enable_grad():
            (euclidean,) = torch.autograd.grad(-prior.log_prob(z).sum(), z)
        prior_force = group.gradient_from_euclidean(start.detach(), euclidean)
        x, log_q = self.model.flow.forward(z, log_prior)
        log_weights, force = self._target(x.detach(), log_q.detach())
        gradient = force - self._pushed_force(z, x, log_q, prior_force)
        return Batch(pairing(group, gradient, x) / n, -log_weights.sum() / n, log_weights, rows)

    @torch.no_grad()
    def _target(self, x: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        return -self.action(x) - log_q, self.action.force(x)

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        z, _ = self.model.prior.sample(n, rng)
        return self.model.flow.density_error(z)


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
        batch = _nothing(rows)
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
        image, log_density = self.flow.forward(x, zero)
        v = self._pushed_force(x, image, log_density, force)
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


def _nothing(rows: Tensor) -> Batch:
    """Return the share of a rank that has no samples."""
    zero = torch.zeros((), dtype=torch.float64)
    return Batch(zero, zero, zero.new_empty(0), rows)
