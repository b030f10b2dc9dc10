"""A user's theory with exact answers, and a kernel, a flow and a prior for it, in plain torch."""

import math

import torch
from torch import nn

from flowmc.actions import Action
from flowmc.flows import Flow, Prior
from flowmc.kernels import Info, Kernel, State
from flowmc.lattice import sum_over_sites
from flowmc.random import stream

LATTICE = (3, 2)


class Springs(Action):
    """S = a/2 sum phi^2 in plain torch: ln Z = V/2 ln(2 pi / a)."""

    name = "springs"

    def __init__(self, lattice, a):
        self.lattice, self.parameters = tuple(lattice), {"a": a}

    def __call__(self, field):
        return 0.5 * self.parameters["a"] * sum_over_sites(field**2)

    def at(self, **couplings):
        return Springs(self.lattice, **{**self.parameters, **couplings})

    @property
    def log_z(self):
        return self.volume / 2 * math.log(2 * math.pi / self.parameters["a"])


class Redraw(Kernel):
    """Draw every other site anew: detailed balance, and memory of one step."""

    name = "redraw"

    def __init__(self, action):
        self.action = action

    def init(self, field):
        return State(field)

    def step(self, state, rng):
        fresh = torch.randn(state.field.shape, dtype=torch.float64, generator=rng)
        chosen = torch.rand(state.field.shape, generator=rng) < 0.5
        new = torch.where(chosen, fresh * self.action.parameters["a"] ** -0.5, state.field)
        return state.moved(new), Info(torch.ones(state.chains, 1, dtype=torch.bool))


class Unit(Prior):
    """Independent normal numbers."""

    def sample(self, n, rng):
        x = torch.randn((n, *LATTICE), dtype=torch.float64, generator=rng)
        return x, self.log_prob(x)

    def log_prob(self, x):
        return -0.5 * sum_over_sites(x**2) - math.prod(LATTICE) / 2 * math.log(2 * math.pi)


class Stretch(Flow):
    """y = e^s x."""

    def __init__(self, log_scale):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float64))

    def forward(self, x, log_density):
        return x * self.log_scale.exp(), log_density - math.prod(LATTICE) * self.log_scale

    def inverse(self, y, log_density):
        return y * (-self.log_scale).exp(), log_density + math.prod(LATTICE) * self.log_scale


def drawn(action, measurements=60, chains=8, seed=5):
    """Return independent configurations, ``(measurements, chains, ...)``."""
    shape = (measurements, chains, *action.lattice)
    noise = torch.randn(shape, dtype=torch.float64, generator=stream(seed, 0, "drawn"))
    return noise * action.parameters["a"] ** -0.5
