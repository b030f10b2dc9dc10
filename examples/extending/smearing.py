r"""A gauge flow layer of your own: masked smearing of U(1) links, in one file.

Links of one direction on one colour of the checkerboard are moved towards (or away from) their
staples, which do not contain any of them. A link :math:`\theta` with the sum of staples
:math:`\sum_s e^{i\alpha_s} = r\,e^{i\varphi}` goes to

.. math:: \theta' = \theta - \rho\, r \sin(\theta + \varphi), \qquad
          \frac{\partial\theta'}{\partial\theta} = 1 - \rho\, r \cos(\theta + \varphi),

one step of stout smearing (C. Morningstar and M. Peardon, hep-lat/0311018). It is invertible for
:math:`|\rho| r < 1`, and its inverse is the root of Kepler's equation. A sweep moves every link
once; every layer has one weight :math:`\rho`, trained:

    flowmc train examples/extending/smearing_train.toml --output runs/smearing.safetensors
    flowmc run examples/extending/smearing.toml --trust smearing
"""

import math

import torch
from torch import nn

from flowmc.flows import Flow
from flowmc.lattice import check_even, checkerboard, shift
from flowmc.registry import ConfigError


class Smearing(Flow):
    """See above.

    Args:
        action: of U(1) links, on a lattice with even extents.
        sweeps: how often every link is moved.
    """

    # One weight per layer, none per site.
    transfers_to_other_lattices = True

    def __init__(self, action, *, sweeps: int = 2) -> None:
        super().__init__()
        if action.group.name != "U(1)":
            raise ConfigError(f"smearing is for U(1) links, but the theory is {action!r}")
        check_even(action.lattice, "smearing")
        if sweeps < 1:
            raise ConfigError(f"smearing needs sweeps >= 1, got {sweeps}")
        self.dimensions = action.dimensions
        self.layers = [(mu, p) for mu in range(self.dimensions) for p in (0, 1)] * sweeps
        # rho = tanh(weight) / number of staples, so that rho r < 1; zero weights: the identity.
        self.weights = nn.Parameter(torch.zeros(len(self.layers)))
        colours = torch.stack([checkerboard(action.lattice, parity) for parity in (0, 1)])
        # No weights, and of this lattice: not in the file.
        self.register_buffer("colours", colours, persistent=False)

    def forward(self, x, log_density):
        for layer in range(len(self.layers)):
            mu, mask, size, phase = self.staples(x, layer)
            angle = x[:, mu] + phase
            x = replaced(x, mu, torch.where(mask, x[:, mu] - size * torch.sin(angle), x[:, mu]))
            log_density = log_density - log_slope(angle, size, mask)
        return x, log_density

    def inverse(self, y, log_density):
        for layer in reversed(range(len(self.layers))):
            mu, mask, size, phase = self.staples(y, layer)
            angle = solve_kepler(y[:, mu] + phase, size)
            y = replaced(y, mu, torch.where(mask, angle - phase, y[:, mu]))
            log_density = log_density + log_slope(angle, size, mask)
        return y, log_density

    def staples(self, links, layer):
        """Return direction and mask of a layer, rho r and the phase of its staples."""
        mu, parity = self.layers[layer]
        total = 0.0
        for nu in range(self.dimensions):
            if nu == mu:
                continue
            side, top = links[:, nu], links[:, mu]
            below = shift(side, nu, -1)
            upper = shift(side, mu) - shift(top, nu) - side
            lower = below - shift(below, mu) - shift(top, nu, -1)
            total = total + torch.polar(torch.ones_like(upper), upper)
            total = total + torch.polar(torch.ones_like(lower), lower)
        rho = torch.tanh(self.weights[layer]) / (2 * (self.dimensions - 1))
        return mu, self.colours[parity], rho * total.abs(), total.angle()


def replaced(links, mu, moved):
    """Return links with those of one direction replaced."""
    return torch.stack([moved if nu == mu else one for nu, one in enumerate(links.unbind(1))], 1)


def log_slope(angle, size, mask):
    """Return the logarithm of the Jacobian per chain, in double precision."""
    slope = torch.where(mask, torch.log1p(-size * torch.cos(angle)), 0.0)
    return slope.double().flatten(1).sum(1)


def solve_kepler(mean, eccentricity):
    """Return E with E - e sin E = M for |e| < 1: Newton's iteration, then once with gradients."""
    with torch.no_grad():
        # By periods, so that the start (J. Danby's) is on the right side of the root.
        turns = 2 * math.pi * torch.round(mean / (2 * math.pi))
        rest = mean - turns
        root = rest + 0.85 * eccentricity * torch.sign(torch.sin(rest))
        for _ in range(30):
            slope = 1 - eccentricity * torch.cos(root)
            root = root - (root - eccentricity * torch.sin(root) - rest) / slope
        root = root + turns
    slope = (1 - eccentricity * torch.cos(root)).detach()
    return root - (root - eccentricity * torch.sin(root) - mean) / slope
