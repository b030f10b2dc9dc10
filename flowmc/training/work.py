r"""Training of the flow layers in a stochastic normalizing flow."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.groups import pairing
from flowmc.nonequilibrium.model import StochasticFlow
from flowmc.training.objectives.base import Batch, Objective

__all__ = ["MeanWork"]


class MeanWork(Objective):
    r"""The mean work :math:`\langle W \rangle`, layer by layer.

    .. math:: \langle W \rangle = \mathrm{KL}(\text{path} \,\|\, \text{reversed path})
              - \ln Z_N / Z_0

    (arXiv:2002.06707, arXiv:2201.08862).  An accept/reject step has no derivative, so the updates
    between the layers are not differentiated: layer n sees the configurations that reach it as
    given, and its gradient is that of :math:`\langle S_n(f_n(x)) - J_n \rangle`, which is
    the divergence between its image and :math:`e^{-S_n}`.  That is the exact gradient of this
    layerwise loss, not of the mean work of the whole process: the effect of a layer on the work
    of later steps, which the updates in between wash out, is left out.

    Args:
        model: prior and process.
    """

    def __init__(self, model: StochasticFlow) -> None:
        self.model = model

    @property
    def module(self) -> torch.nn.Module:
        return self.model.process.flows

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        process = self.model.process
        layers: list[Tensor] = []

        def observe(index: int, y: Tensor, change: Tensor) -> None:
            action = process.actions[index]
            with torch.no_grad():
                force = action.force(y.detach())
            layers.append((change.sum() + pairing(action.group, force, y)) / n)

        x, log_prior = self.model.prior.sample(n, rng)
        evolution = process(x, log_prior, rng, observe)
        surrogate = torch.stack(layers).sum()
        return Batch(surrogate, evolution.work.mean(), -evolution.work)

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        x, _ = self.model.prior.sample(n, rng)
        return self.model.density_error(x)
