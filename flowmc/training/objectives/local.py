r"""The divergence of a local flow from the conditional density of a block."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.local.blocks import Tiling
from flowmc.flows.local.models import LocalFlowModel, block_action_difference
from flowmc.parallel import Communicator
from flowmc.training.ensemble import Ensemble
from flowmc.training.objectives.base import Batch, Objective, nothing

__all__ = ["LocalKL"]


class LocalKL(Objective):
    r"""The Jeffreys divergence of the proposals for a block, averaged over surroundings.

    Configurations :math:`\phi` of the target come from HMC chains; each gives one patch at a random
    place.  With :math:`\phi'_B \sim q(\cdot | \phi_{\partial B})` and the logarithm of the
    Metropolis ratio

    .. math:: \ln r = -S(\phi'_B, \phi_{\partial B}) - \ln q(\phi'_B | \phi_{\partial B})
              + S(\phi_B, \phi_{\partial B}) + \ln q(\phi_B | \phi_{\partial B}) ,

    the loss is :math:`-\langle \ln r \rangle = \langle \mathrm{KL}(q | p) + \mathrm{KL}(p | q)
    \rangle_{\phi_{\partial B} \sim p}`: zero for exact heat baths, and for a Gaussian ln r the
    acceptance is :math:`\mathrm{erfc}(\sqrt{L} / 2)`.  The reverse part is differentiated through
    the proposals with the force of the action, the forward part is maximum likelihood of the block
    that is there.  The normalisation of the conditional density, a function of the surroundings
    that nobody knows, cancels between the two.

    The ``log_weights`` of a batch are the ln r.

    Args:
        local_model: draws the blocks.
        ensemble: configurations of the target, on any lattice on which the block fits.
    """

    def __init__(self, local_model: LocalFlowModel, ensemble: Ensemble) -> None:
        self.model, self.ensemble = local_model, ensemble
        self.block = local_model.block
        self.tiling = Tiling(ensemble.action.lattice, self.block)
        self.patch_action = ensemble.action.on_lattice(self.block.patch)

    @property
    def module(self) -> LocalFlowModel:
        return self.model

    def distribute(self, communicator: Communicator) -> None:
        self.ensemble.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        # Every rank draws places and noise of the whole batch, which does not depend on their
        # number; the samples are those of its chains.
        index = self.tiling.patches(self.tiling.draw_shift(rng, n))[:, 0]
        noise = self.model.noise(n, rng)
        field, rows = self.ensemble.draw_share(n)
        if not len(field):
            return nothing(rows)
        patch = field.flatten(1).gather(1, index[rows]).reshape(-1, *self.block.patch)
        old = self.block.take(patch)
        new, log_q_new = self.model.push(noise[rows], patch)
        log_q_old = self.model.log_prob(old, patch)
        with torch.no_grad():
            fixed = new.detach()
            change = block_action_difference(self.patch_action, self.block, fixed, patch)
            log_ratio = log_q_old.detach() - log_q_new.detach() - change
            force = self.block.take(self.patch_action.force(self.block.put(fixed, patch)))
        surrogate = (log_q_new.sum() + (force * new).double().sum() - log_q_old.sum()) / n
        return Batch(surrogate, -log_ratio.sum() / n, log_ratio, rows)

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.zeros(n, dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        return self.ensemble.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        self.ensemble.load_state_dict(tensors)
