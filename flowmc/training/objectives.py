r"""What a training minimises: one class per objective.

An objective draws a batch and returns a :class:`Batch`, whose ``surrogate`` is a scalar with the
right *gradient* and whose ``loss`` has the right *value*; the two differ because derivatives of
actions come from their analytic forces and because path gradients drop a term of mean zero.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, FlowModel
from flowmc.training.adjoint import pairing, pull_back, solve_linear
from flowmc.training.ensemble import Ensemble

__all__ = ["Batch", "ExchangeKL", "Objective", "ReverseKL"]


@dataclass(frozen=True)
class Batch:
    """One batch of an objective.

    Attributes:
        surrogate: scalar with a graph; its gradient is the estimate of the loss' gradient.
        loss: scalar, the estimate of the loss.
        log_weights: ``(n,)`` float64, the log-weights of the flow's output (minus the work of an
            exchange flow), up to a constant.
    """

    surrogate: Tensor
    loss: Tensor
    log_weights: Tensor


class Objective(ABC):
    """A loss of a flow, estimated from random batches."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What is trained."""

    @abstractmethod
    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        """Draw a batch of ``n`` and return its losses, with a graph to the weights."""

    @abstractmethod
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the error of the flow's log-density on ``n`` samples; zeros if it is exact."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed training needs beside weights and optimiser, as tensors."""
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

    which vanishes sample by sample where q = p.  It needs :math:`\partial_x \ln q` from the inverse
    flow, hence about twice the time per step, and a flow whose inverse autograd can differentiate.

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

    @property
    def module(self) -> FlowModel:
        return self.model

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        group = self.action.group
        x, log_q = self.model.sample(n, rng)
        fixed = x.detach()
        with torch.no_grad():
            log_weights = -self.action(fixed) - log_q.detach()
            gradient = self.action.force(fixed)
        if self.gradient == "path":
            gradient = gradient + self.log_density_gradient(fixed)
            surrogate = pairing(group, gradient, x) / n
        else:
            surrogate = log_q.mean() + pairing(group, gradient, x) / n
        return Batch(surrogate, -log_weights.mean(), log_weights)

    def log_density_gradient(self, x: Tensor) -> Tensor:
        """Return the algebra gradient of log q at fixed ``x``, shaped like the field.

        Raises:
            ValueError: if autograd cannot differentiate the inverse flow.
        """
        leaf = x.detach().requires_grad_(True)
        with frozen(self.model), torch.enable_grad():
            log_q = self.model.log_prob(leaf)
            if log_q.grad_fn is None:
                raise ValueError(
                    f"{type(self.model.flow).__name__} has an inverse without derivatives, so it "
                    "has no path gradient: use gradient = 'reparametrised'"
                )
            (euclidean,) = torch.autograd.grad(log_q.sum(), leaf)
        return self.action.group.gradient_from_euclidean(leaf.detach(), euclidean)

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

    so no derivative of the inverse is needed (it may be an iteration).  The linear system is solved
    by GMRES with backward passes through f; where autograd can differentiate the inverse, that
    gives the starting vector and one pass confirms it.

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

    @property
    def module(self) -> Flow:
        return self.flow

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        surrogate, work = self.forward_work(self.ensembles["from"].draw(n))
        loss = work.mean()
        if self.direction == "symmetric":
            reverse, reverse_work = self.reverse_work(self.ensembles["to"].draw(n))
            surrogate = surrogate + reverse
            loss = loss + reverse_work.mean()
        return Batch(surrogate, loss, -work)

    def forward_work(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the surrogate of the mean of w_F, and w_F ``(n,)`` without a graph."""
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        y, log_density = self.flow.forward(x, zero)
        fixed = y.detach()
        with torch.no_grad():
            work = self.action_b(fixed) + log_density.detach() - self.action_a(x)
            force = self.action_b.force(fixed)
        surrogate = log_density.mean() + pairing(self.action_b.group, force, y) / x.shape[0]
        return surrogate, work

    def reverse_work(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the surrogate of the mean of w_R, and w_R ``(n,)`` without a graph."""
        group, n = self.action_a.group, y.shape[0]
        zero = torch.zeros(n, dtype=torch.float64, device=y.device)
        with torch.no_grad():
            start, inverse_density = self.flow.inverse(y, zero)
            force = self.action_a.force(start)
        x = start.detach().requires_grad_(True)
        image, log_density = self.flow.forward(x, zero)
        (euclidean,) = torch.autograd.grad(log_density.sum(), x, retain_graph=True)
        # log_density is -J_f.
        right_side = force - group.gradient_from_euclidean(start, euclidean)
        v = self._solve(group, x, image, right_side, y)
        surrogate = -log_density.mean() - pairing(group, v, image) / n
        with torch.no_grad():
            # The density of the inverse pass is NaN where the inverse did not converge.
            work = self.action_a(start) + inverse_density - self.action_b(y)
        return surrogate, work

    def _solve(self, group, x: Tensor, image: Tensor, right_side: Tensor, y: Tensor) -> Tensor:
        n = y.shape[0]

        def flat(algebra: Tensor) -> Tensor:
            return group.algebra_to_coordinates(algebra).reshape(n, -1).to(torch.float64)

        shape = group.algebra_to_coordinates(right_side).shape
        real = right_side.real.dtype

        def unflat(vector: Tensor) -> Tensor:
            return group.coordinates_to_algebra(vector.reshape(shape).to(real))

        precise = real == torch.float64
        guess = self._inverse_gradient(group, y, x.detach())
        solution = solve_linear(
            lambda vector: flat(pull_back(group, x, image, unflat(vector))),
            flat(right_side),
            flat(right_side if guess is None else guess),
            tolerance=1e-9 if precise else 1e-4,
        )
        return unflat(solution)

    def _inverse_gradient(self, group, y: Tensor, x: Tensor) -> Tensor | None:
        """Return minus the gradient of ln q at y by autograd through the inverse, if it has one."""
        leaf = y.detach().requires_grad_(True)
        zero = torch.zeros(y.shape[0], dtype=torch.float64, device=y.device)
        with frozen(self.flow), torch.enable_grad():
            back, change = self.flow.inverse(leaf, zero)
            if back.grad_fn is None or change.grad_fn is None:
                return None
            total = change.sum() + pairing(group, self.action_a.force(x), back)
            (euclidean,) = torch.autograd.grad(total, leaf)
        return group.gradient_from_euclidean(leaf.detach(), euclidean)

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        return self.flow.density_error(self.ensembles["from"].field[:n])

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


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Build graphs without the weights of ``module``: only inputs are differentiated."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
