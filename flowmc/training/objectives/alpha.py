"""The alpha = 2 divergence, estimated by annealed importance sampling from the flow."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.models import FlowModel
from flowmc.groups import pairing
from flowmc.kernels import HMC
from flowmc.nonequilibrium import Process
from flowmc.parallel import Communicator
from flowmc.parallel.distribution import shares
from flowmc.random import stream
from flowmc.training.adjoint import frozen
from flowmc.training.density import ModelDensity
from flowmc.training.objectives.base import Batch, SamplerObjective, nothing

__all__ = ["AlphaTwo", "LatentBridge"]

# Samples that are annealed as one batch with a random stream of their own, for any number of ranks.
_SMALLEST_GROUP, _MOST_GROUPS = 32, 16
# Of the leapfrog step in the latent space, whose natural unit is that of the prior.
_FIRST_STEP_SIZE, _TARGET_ACCEPTANCE, _GAIN = 0.2, 0.65, 0.1


class LatentBridge(Action):
    r"""The action of :math:`q^{1 - 2\beta} p^{2\beta}` in the coordinates z of the prior.

    With :math:`\ln q(f(z)) = \ln r(z) - J(z)` and the measure :math:`dx = e^J dz`,

    .. math:: S_\beta(z) = 2\beta\, \big[S(f(z)) - J(z)\big] - (1 - 2\beta) \ln r(z),

    from the prior at beta = 0, past the target's own at 1/2, to that of :math:`p^2 / q` at 1.  It
    takes the flow forward only.

    Args:
        model: prior and flow.
        action: S.
        beta: in [0, 1].
    """

    name = "latent_bridge"

    def __init__(self, model: FlowModel, action: Action, beta: float) -> None:
        self.model, self.action, self.beta = model, action, float(beta)
        self.group, self.lattice = action.group, action.lattice
        self.parameters = {"beta": self.beta}

    def __call__(self, field: Tensor) -> Tensor:
        y, change = self._pushed(field)
        target = self.action(y) + change
        return 2 * self.beta * target - (1 - 2 * self.beta) * self.model.prior.log_prob(field)

    def force(self, field: Tensor) -> Tensor:
        with frozen(self.model), torch.enable_grad():
            leaf = field.detach().requires_grad_(True)
            y, change = self._pushed(leaf)
            pulled = pairing(self.group, self.action.force(y.detach()), y) + change.sum()
            prior = self.model.prior.log_prob(leaf).sum()
            total = 2 * self.beta * pulled - (1 - 2 * self.beta) * prior
            (euclidean,) = torch.autograd.grad(total, leaf)
        return self.group.gradient_from_euclidean(field, euclidean)

    def _pushed(self, field: Tensor) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        return self.model.flow.forward(field, zero)


class AlphaTwo(SamplerObjective):
    r"""The Rényi divergence of order two, up to 2 ln Z.

    .. math:: L = \ln \int \frac{e^{-2S}}{q} = D_2(p \| q) + 2 \ln Z, \qquad
              D_2(p \| q) = \ln \int \frac{p^2}{q} = -\ln \mathrm{ESS} ,

    so that this is the effective sample size itself, and 1/q makes every mode count.  Its gradient,

    .. math:: \partial_\theta L = -\langle \partial_\theta \ln q_\theta(x) \rangle_{x \sim p^2/q} ,

    needs samples of :math:`p^2 / q`, where the flow is too small.  They come from the flow's own by
    annealed importance sampling (flow annealed importance sampling bootstrap: L.I. Midgley,
    V. Stimper, G.N.C. Simm, B. Schölkopf, J.M. Hernández-Lobato, arXiv:2208.01893): along
    :math:`q^{1 - 2\beta} p^{2\beta}`, beta = 1/N ... 1, the action changes, then HMC with leapfrog
    steps moves the fields, and the work W gives each a weight :math:`e^{-W}`
    (:class:`~flowmc.nonequilibrium.Process`).  HMC runs in the coordinates of the prior
    (:class:`LatentBridge`), where an almost perfect flow makes every direction alike; the paper
    moves x.  Its buffer of earlier samples is left out.

    The gradient, with weights divided by their sum, has a bias of the order of the inverse batch
    size, as has the loss.  Where q = p all weights are equal, but the gradient is zero in the mean
    only.  The size of the leapfrog steps follows the acceptance of earlier batches.

    The log-weights of the batches are those of the flow's samples before the annealing.

    Args:
        model: prior and flow.
        action: the target.
        annealing_steps: N, >= 1, one trajectory each.
        leapfrog_steps: of a trajectory, >= 1; the derivative of flow and action is taken at each.

    Raises:
        ValueError: for values out of range, and for a mixture.
    """

    def __init__(
        self,
        model: FlowModel,
        action: Action,
        *,
        annealing_steps: int = 4,
        leapfrog_steps: int = 4,
    ) -> None:
        super().__init__(model, action)
        if not model.has_map:
            raise ValueError(
                "alpha_two anneals in the coordinates of the prior, which a mixture does not have: "
                "train the flow without the mixture, or by another objective"
            )
        for key, value in (
            ("annealing_steps", annealing_steps),
            ("leapfrog_steps", leapfrog_steps),
        ):
            if value < 1:
                raise ValueError(f"{key} = {value}: must be at least 1")
        self.annealing_steps, self.leapfrog_steps = annealing_steps, leapfrog_steps
        self.density = ModelDensity(model, action.group)
        self._log_step_size = math.log(_FIRST_STEP_SIZE)

    @property
    def bridges(self) -> list[LatentBridge]:
        """The actions of the annealing, to the target of the present batch."""
        steps = self.annealing_steps
        return [LatentBridge(self.model, self.action, (n + 1) / steps) for n in range(steps)]

    @property
    def step_size(self) -> float:
        """Length of a leapfrog step."""
        return math.exp(self._log_step_size)

    def distribute(self, communicator: Communicator) -> None:
        super().distribute(communicator)
        self.density.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        with torch.no_grad():
            start, log_prior = self.model.prior.sample(n, rng)
        key = int(torch.randint(2**62, (), device=rng.device, generator=rng))
        rows, field, minus_work = self._anneal(start, log_prior.detach(), key)
        # ln of the sum of all weights, on all ranks.
        largest = max(minus_work.nan_to_num(nan=-math.inf).tolist(), default=-math.inf)
        shift = float(self.communicator.maximum(np.array([largest]))[0])
        weights = (minus_work - shift).exp()
        total = float(self.communicator.sum(np.array([float(weights.sum())]))[0])
        if not len(rows):
            self.density.skip()
            return nothing(rows)
        surrogate = -self.density.at(field).score(weights / total)
        # Ranks add up their losses.
        loss = (shift + math.log(total / n)) * len(rows) / n if total > 0 else math.nan
        with torch.no_grad():
            x, log_q = self.model.flow.forward(start[rows], log_prior.detach()[rows])
            log_weights = -self.action(x) - log_q
        return Batch(surrogate, torch.tensor(loss, dtype=torch.float64), log_weights, rows)

    def _anneal(self, start: Tensor, log_prior: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return this rank's rows, their annealed z, and minus their work."""
        trajectory = self.step_size * self.leapfrog_steps
        bridges = self.bridges
        process = Process(
            bridges,
            [
                [
                    HMC(
                        bridge,
                        trajectory=trajectory,
                        steps=self.leapfrog_steps,
                        integrator="leapfrog",
                        check_reversibility=0.0,
                    )
                ]
                for bridge in bridges
            ],
        )
        n = len(start)
        groups = torch.arange(n).split(max(_SMALLEST_GROUP, math.ceil(n / _MOST_GROUPS)))
        owners = shares(len(groups), self.communicator.size)
        rows, fields, works = [torch.empty(0, dtype=torch.int64)], [start[:0]], [log_prior[:0]]
        accepted = 0.0
        for number, (group, owner) in enumerate(zip(groups, owners, strict=True)):
            if owner != self.communicator.rank:
                continue
            own = stream(key, number, "annealing", start.device)
            evolution = process(start[group], log_prior[group], own)
            rows.append(group)
            fields.append(evolution.field)
            works.append(-evolution.work)
            accepted += float(evolution.acceptance.mean()) * len(group)
        self._adapt(float(self.communicator.sum(np.array([accepted]))[0]) / n)
        return torch.cat(rows), torch.cat(fields), torch.cat(works)

    def _adapt(self, acceptance: float) -> None:
        if math.isfinite(acceptance):
            self._log_step_size += _GAIN * (acceptance - _TARGET_ACCEPTANCE)

    def state_dict(self) -> dict[str, Tensor]:
        return {"log_step_size": torch.tensor([self._log_step_size], dtype=torch.float64)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self._log_step_size = float(tensors["log_step_size"])
