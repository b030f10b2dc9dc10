r"""Local flow updates: blocks of the lattice proposed by a flow, given what surrounds them."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.local.blocks import Block, Tiling
from flowmc.flows.local.models import LocalFlowModel, block_action_difference
from flowmc.kernels.base import Info, Kernel, State, action_of, value_in_torch
from flowmc.kernels.reporting import Reported
from flowmc.lattice import sum_over_sites
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["LocalFlow"]


class LocalFlow(Kernel):
    r"""Metropolis with proposals for many blocks at once, each conditioned on its surroundings.

    A step shifts a tiling of the lattice at random (the same shift for all chains of a batch).  For
    every block B of it a flow proposes :math:`\phi'_B \sim q(\cdot | \phi_{\partial B})`, which is
    accepted with probability

    .. math:: \min\Big(1, \frac{e^{-S(\phi'_B, \phi_{\partial B})}\, q(\phi_B | \phi_{\partial B})}
              {e^{-S(\phi_B, \phi_{\partial B})}\, q(\phi'_B | \phi_{\partial B})}\Big) .

    The collars between the blocks are frozen, so the blocks are independent given the rest: each
    accepts or rejects for itself, and the acceptance does not depend on the volume, as that of
    proposals for the whole lattice does (it falls like the ESS, exponentially).  This is Metropolis
    within Gibbs; for lattice flows compare the domain decomposition of arXiv:2402.12176.

    A step moves at most the share ``blocks * sites / V`` of the field.  The kernel is reversible,
    since shift and decisions do not depend on what the blocks hold.

    Args:
        action: the target; its :attr:`~flowmc.actions.Action.interaction_range` is the width of
            the collars.
        local_model: draws the blocks.

    Raises:
        ConfigError: for a model of another range, and (by :meth:`init`) for an action whose
            differences do not come from the patches: it is not the same everywhere, or reaches
            farther than it says.

    ``info.is_accepted`` is ``(chains, blocks)``; ``info.values`` holds per chain
    ``acceptance_probability``, the mean over blocks; ``divergence``, the mean of minus the
    logarithm of the ratio above, which estimates :math:`\mathrm{KL}(q|p) + \mathrm{KL}(p|q)` of
    the conditional densities; and ``non_finite``, the number of proposals rejected because their
    ratio was not finite.
    """

    name = "local_flow"
    title = "local flow"
    reports = (
        Reported("acceptance_probability", "acceptance probability", in_report=False),
        Reported("divergence", "divergence"),
        Reported("non_finite", "proposals not finite", reduce="sum", in_report=False),
    )

    def __init__(self, action: Action, local_model: LocalFlowModel) -> None:
        self.action = action
        self.model = local_model.eval().requires_grad_(False)
        self.block = local_model.block
        expected = Block.of(action, self.block.extents)
        if expected != self.block:
            raise ConfigError(
                f"the flow was trained for a collar of width {self.block.reach}, but the action "
                f"reaches {expected.reach}: train one for this action"
            )
        self.tiling = Tiling(action.lattice, self.block)
        self.patch_action = action.on_lattice(self.block.patch)

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        self._check_locality(field.device)
        return State(field, value_in_torch(self.action, field))

    @torch.no_grad()
    def step(self, state: State, rng: torch.Generator) -> tuple[State, Info]:
        chains, count = state.chains, self.tiling.count
        index = self.tiling.patches(self.tiling.draw_shift(rng))
        flat = state.field.flatten(1)
        patch = flat[:, index.flatten()].reshape(chains * count, *self.block.patch)
        old = self.block.take(patch)
        new, log_q_new = self.model.sample(patch, rng)
        log_q_old = self.model.log_prob(old, patch)
        change = block_action_difference(self.patch_action, self.block, new, patch)
        log_ratio = (log_q_old - log_q_new - change).reshape(chains, count)
        finite = torch.isfinite(log_ratio)
        if not bool(finite.all()):
            # Either a proposal, which is rejected, or the current field, which must not pass.
            action_of(self.action, State(state.field))
        log_ratio = torch.where(finite, log_ratio, -torch.inf)
        uniform = torch.rand((chains, count), dtype=torch.float64, device=rng.device, generator=rng)
        is_accepted = uniform.log() < log_ratio
        blocks = (-1, count * self.block.sites)
        kept = torch.where(is_accepted.reshape(-1, 1), new.flatten(1), old.flatten(1))
        sites = index[:, self.block.inside.to(index.device)].flatten()
        field = flat.index_copy(1, sites, kept.reshape(blocks)).reshape(state.field.shape)
        return state.moved(field), Info(
            is_accepted,
            {
                "acceptance_probability": sum_over_sites(log_ratio.clamp(max=0).exp()) / count,
                # NaN where no proposal of a chain is finite.
                "divergence": -sum_over_sites(torch.where(finite, log_ratio, 0.0)) / finite.sum(1),
                "non_finite": (~finite).sum(1),
            },
        )

    @torch.no_grad()
    def _check_locality(self, device: torch.device) -> None:
        """Compare differences of the action on the lattice with those on patches.

        All blocks of a few tilings of a random field move at once: the fields of the chains, such
        as those of a cold start, may hide a coupling, and so may one block.
        """
        rng = stream(0, 0, "check of locality", device)
        field = self.action.hot(1, rng, torch.float64)
        flat, before = field.flatten(1), self.action(field)
        for _ in range(3):
            index = self.tiling.patches(self.tiling.draw_shift(rng)).to(device)
            patch = flat[:, index.flatten()].reshape(self.tiling.count, *self.block.patch)
            old = self.block.take(patch)
            noise = torch.rand(old.shape, dtype=torch.float64, device=device, generator=rng)
            new = 0.5 * old + noise - 0.25
            sites = index[:, self.block.inside.to(device)].flatten()
            after = self.action(flat.index_copy(1, sites, new.reshape(1, -1)).reshape(field.shape))
            local = block_action_difference(self.patch_action, self.block, new, patch)
            whole, scale = after - before, before.abs() + after.abs() + local.abs().sum() + 1
            if not bool(((whole - local.sum()).abs() <= 1e-9 * scale).all()):
                raise ConfigError(
                    "local updates need an action that is the same everywhere and reaches "
                    f"{self.block.reach} site(s) at most, which {self.action!r} is not: its change "
                    f"in {self.tiling.count} block(s) is {float(whole):g}, that of the blocks' "
                    f"patches {float(local.sum()):g}"
                )
