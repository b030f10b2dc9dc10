r"""The global sign flip of a scalar field: the symmetry that chains in a broken phase lack."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.kernels.base import Info, Kernel, State, value_in_torch
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["SignFlip"]


class SignFlip(Kernel):
    r"""Send :math:`\phi \to -\phi` with probability 1/2, for actions with S(-phi) = S(phi).

    A symmetry of the target is a move that is always accepted.  HMC hardly ever makes it where two
    wells are deep; with it, samples are right between the wells, however long the chains.

    Args:
        action: a scalar action.

    Raises:
        ConfigError: for links, and (by :meth:`init`) for an action that is not even.
    """

    name = "sign_flip"
    title = "sign flip"

    def __init__(self, action: Action) -> None:
        if not action.is_scalar:
            raise ConfigError(f"sign_flip is for scalar fields, but the theory is {action!r}")
        self.action = action

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        self._check_even(field.device)
        return State(field, value_in_torch(self.action, field))

    @torch.no_grad()
    def _check_even(self, device: torch.device) -> None:
        """Compare S of random fields and their negatives, whatever the fields of the chains are.

        Fields such as those of a cold start have S(-phi) = S(phi) under any action.  The mean of
        the random ones is far from zero, so that odd terms do not average out over the sites.
        """
        rng = stream(0, 0, "check of a symmetry", device)
        generic = self.action.hot(2, rng, torch.float64)
        generic = generic + torch.tensor([0.7, -0.3], device=device).to(generic).reshape(
            -1, *[1] * (generic.dim() - 1)
        )
        value, flipped = self.action(generic), self.action(-generic)
        if not torch.allclose(flipped, value, rtol=1e-9, atol=1e-9):
            raise ConfigError(
                f"sign_flip needs S(-phi) = S(phi), which {self.action!r} breaks: of one field "
                f"they are {float(flipped[0]):.9g} and {float(value[0]):.9g}"
            )

    @torch.no_grad()
    def step(self, state: State, rng: torch.Generator) -> tuple[State, Info]:
        uniform = torch.rand(state.chains, dtype=torch.float64, device=rng.device, generator=rng)
        flip = uniform < 0.5
        sign = torch.where(flip, -1.0, 1.0).to(state.field.dtype)
        field = state.field * sign.reshape(-1, *[1] * (state.field.dim() - 1))
        return state.moved(field, state.action), Info(flip[:, None])
