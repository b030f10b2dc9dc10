"""The forward Kullback-Leibler divergence on configurations of the target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowmc.flows.models import FlowModel
from flowmc.parallel import Communicator
from flowmc.training.density import ModelDensity, is_trainable
from flowmc.training.ensemble import Ensemble
from flowmc.training.objectives.base import Batch, SamplerObjective, nothing
from flowmc.training.stored import StoredConfigurations

__all__ = ["ForwardKL"]


class ForwardKL(SamplerObjective):
    r"""The forward Kullback-Leibler divergence up to ln Z, on configurations of the target.

    .. math:: L = -\langle \ln q(x) + S(x) \rangle_{x \sim p} = \mathrm{KL}(p \| q) + \ln Z .

    It is large where the flow misses a mode of the target that the configurations have, which the
    reverse divergence never sees (Nicoli et al., arXiv:2302.14082).  The entropy
    :math:`\langle S \rangle_p` does not depend on the flow; with it the loss is bounded below by
    ln Z, as the reverse one is by -ln Z.  Two unbiased estimates of the gradient:

    ``"score"``, maximum likelihood: :math:`-\langle \partial_\theta \ln q_\theta(x) \rangle_p`.

    ``"path"``: the flow pulls p back to :math:`\tilde p_\theta(z) = p(f(z))\, e^{J(z)}`, and
    :math:`\mathrm{KL}(p \| q) = \mathrm{KL}(\tilde p_\theta \| r)` is a reverse divergence.
    Dropping its score, :math:`\langle \partial_\theta \ln \tilde p_\theta(z) \rangle = 0` at fixed
    z (Vaitl, Nicoli, Nakajima, Kessel, arXiv:2207.08219), leaves

    .. math:: \partial_\theta L = \Big\langle \partial_x \big[\ln q(x) + S(x)\big]
              \cdot \partial_\theta f_\theta(z) \Big\rangle_{x \sim p,\; z = f^{-1}(x)} ,

    the form of the reverse path gradient at other fields.  It vanishes configuration by
    configuration where q = p, and costs no more than the score.

    The log-weights of the batches are :math:`\ln q + S`: their effective sample size is that of
    the configurations, reweighted to the flow, and drops when the flow misses a mode.

    Args:
        model: prior and flow.
        ensemble: configurations of the target.
        gradient: "path" or "score".

    Raises:
        ValueError: for an unknown gradient, and for a path gradient with a trainable prior.
    """

    def __init__(
        self,
        model: FlowModel,
        ensemble: Ensemble | StoredConfigurations,
        *,
        gradient: Literal["path", "score"] = "path",
    ) -> None:
        super().__init__(model, ensemble.action)
        if gradient not in ("path", "score"):
            raise ValueError(f"unknown gradient {gradient!r}: use 'path' or 'score'")
        if gradient == "path" and is_trainable(model):
            raise ValueError(
                "path gradients need a prior without trainable parameters; freeze them or use "
                "gradient = 'score'"
            )
        self.ensemble, self.gradient = ensemble, gradient
        self.density = ModelDensity(model, ensemble.action.group)

    def distribute(self, communicator: Communicator) -> None:
        super().distribute(communicator)
        self.density.distribute(communicator)
        self.ensemble.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        # A sample belongs to the rank where its chain lives, and no field has to travel.
        x, rows = self.ensemble.draw_share(n)
        if not len(x):
            self.density.skip()
            return nothing(rows)
        with torch.no_grad():
            zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            z, change = self.model.flow.inverse(x, zero)
        at = self.density.at(z)
        with torch.no_grad():
            # The change is NaN where an iterative inverse did not converge.
            log_q = at.log_q.detach() + 0 * change
            log_weights = -self.action(x) - log_q
        if self.gradient == "path":
            surrogate = at.path(self.action.force(x)) / n
        else:
            surrogate = at.score(torch.full_like(log_q, -1 / n))
        return Batch(surrogate, log_weights.sum() / n, -log_weights, rows)

    def state_dict(self) -> dict[str, Tensor]:
        return self.ensemble.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.ensemble.load_state_dict(tensors)
