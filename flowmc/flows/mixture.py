r"""Mixtures over a symmetry of the target: what a flow knows of one mode, it knows of all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.models import FlowModel
from flowmc.groups import Group
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["SignMixture", "check_even_action"]


class SignMixture(FlowModel):
    r"""A sampler and its mirror image under :math:`\phi \to -\phi`, half and half.

    .. math:: q_{\mathrm{mix}}(x) = \tfrac12 \big[ q(x) + q(-x) \big]

    exactly, with q that of the prior and the flow; a draw is flipped with probability 1/2.  Where
    the target breaks the symmetry spontaneously, a flow of one well so covers both (symmetry
    averaging; modes that a flow misses are what arXiv:2302.14082 measures).  It serves any flow;
    an odd flow of a symmetric prior is its own mirror image and gains nothing.

    The density of a draw takes the inverse flow at its mirror image.

    Args:
        prior: where z is drawn.
        flow: the map f.
    """

    has_map = False
    is_mirrored = True

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x, log_q = super().sample(n, rng)
        uniform = torch.rand(n, dtype=torch.float64, device=rng.device, generator=rng)
        sign = torch.where(uniform < 0.5, -1.0, 1.0).to(x.dtype)
        # The mixture is even: the flip does not change it.
        log_mixture = torch.logaddexp(log_q, super().log_prob(-x)) - math.log(2)
        return x * sign.reshape(-1, *[1] * (x.dim() - 1)), log_mixture

    def log_prob(self, x: Tensor) -> Tensor:
        sides = super().log_prob(torch.cat([x, -x])).chunk(2)
        return torch.logaddexp(*sides) - math.log(2)

    def known_log_prob(self, x: Tensor, group: Group) -> Tensor:
        sides = FlowModel(self.prior, self.flow).known_log_prob(torch.cat([x, -x]), group).chunk(2)
        return torch.logaddexp(*sides) - math.log(2)


def check_even_action(action: Action) -> None:
    """Raise ``ConfigError`` unless the action is of a scalar field, with S(-phi) = S(phi)."""
    if not action.is_scalar:
        raise ConfigError(f"a sign_flip mixture is for scalar fields, but the theory is {action!r}")
    field = action.hot(4, stream(0, 0, "check of a symmetry"))
    if not torch.allclose(action(-field), action(field), rtol=1e-9, atol=1e-9):
        raise ConfigError(f"a sign_flip mixture needs S(-phi) = S(phi), which {action!r} breaks")
