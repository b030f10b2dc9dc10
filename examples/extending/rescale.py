r"""A kernel of your own, with diagnostics of its own, in one file.

It multiplies a scalar field by one number: :math:`\phi' = e^s \phi` with s from N(0, width^2), and
the Metropolis test

.. math:: P = \min\big(1,\ e^{S(\phi) - S(\phi') + s V}\big),

in which :math:`e^{sV}` is the Jacobian of the map on V sites.
``flowmc run examples/extending/rescale.toml`` mixes it with HMC: what is declared in ``reports``
has its columns in ``measurements.h5`` and its lines in the report.
"""

import torch

from flowmc.kernels import Info, Kernel, Reported, State
from flowmc.kernels.base import action_of
from flowmc.registry import ConfigError


class Rescale(Kernel):
    """See above.

    Args:
        action: of a scalar field.
        width: standard deviation of s.
    """

    name = "rescale"
    title = "rescaling"
    reports = (
        Reported("work", "S(φ') − S(φ) − sV", in_report=False),
        Reported("factor", "factor of the field", reduce="mean"),
        Reported("largest_factor", "largest factor", reduce="max"),
    )

    def __init__(self, action, *, width: float = 0.05) -> None:
        if action.is_gauge:
            raise ConfigError(f"rescale is for scalar fields, but the theory is {action!r}")
        if not width > 0:
            raise ConfigError(f"rescale needs width > 0, got {width}")
        self.action, self.width = action, width

    def init(self, field):
        self.action.check_field(field)
        return State(field, self.action(field))

    @torch.no_grad()
    def step(self, state, rng):
        field, before = state.field, action_of(self.action, state)
        draws = {"dtype": torch.float64, "device": field.device, "generator": rng}
        s = self.width * torch.randn(state.chains, **draws)
        uniform = torch.rand(state.chains, **draws)
        proposal = field * s.exp().to(field.dtype).reshape(-1, *[1] * (field.dim() - 1))
        after = self.action(proposal)
        work = after - before - s * self.action.volume
        accepted = torch.isfinite(work) & (uniform.log() < -work)
        chosen = accepted.reshape(-1, *[1] * (field.dim() - 1))
        moved = state.moved(
            torch.where(chosen, proposal, field), torch.where(accepted, after, before)
        )
        factor = torch.where(accepted, s.exp(), 1.0)
        return moved, Info(
            accepted[:, None], {"work": work, "factor": factor, "largest_factor": factor}
        )
