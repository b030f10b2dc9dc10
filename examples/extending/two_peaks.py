r"""A prior and an observable of your own, in one file.

The prior draws every site from two normal distributions around +a and -a,

.. math:: \ln r(\phi) = \sum_x \ln \frac{e^{-(\phi_x - a)^2 / 2\sigma^2}
          + e^{-(\phi_x + a)^2 / 2\sigma^2}}{2 \sigma \sqrt{2\pi}},

which is nearer to phi^4 with a negative m^2 than one normal distribution is.  The observable is the
share of the sites with phi > 0.  ``flowmc train examples/extending/two_peaks_train.toml`` uses the
prior, ``flowmc run examples/extending/two_peaks.toml`` both.
"""

import math

import torch

from flowmc.flows.priors import ScalarPrior
from flowmc.lattice import sum_over_sites
from flowmc.observables import observable


class TwoPeaks(ScalarPrior):
    """See above.

    Args:
        action: of a scalar field; gives the lattice.
        distance: a, of a peak from zero.
        width: sigma, > 0.
    """

    def __init__(self, action, *, distance: float = 0.5, width: float = 0.5) -> None:
        super().__init__(action)
        if not width > 0:
            raise ValueError(f"the peaks need width > 0, got {width}")
        self.distance, self.width = distance, width

    def sample(self, n, rng):
        draws = {"dtype": torch.float64, "device": rng.device, "generator": rng}
        noise = torch.randn((n, *self.lattice), **draws)
        side = 2 * (torch.rand((n, *self.lattice), **draws) < 0.5).double() - 1
        # In the precision of the model, whose density is that of the rounded field.
        x = (self.distance * side + self.width * noise).to(self.dtype)
        return x, self.log_prob(x)

    def log_prob(self, x):
        peaks = [((x.double() - a) / self.width).square() for a in (self.distance, -self.distance)]
        site = torch.logsumexp(torch.stack(peaks) / -2, 0)
        return sum_over_sites(site - math.log(2 * self.width * math.sqrt(2 * math.pi)))


@observable(title="share of positive sites")
def positive(field, action):
    """Return the share of the sites with phi > 0, ``(chains,)``."""
    return sum_over_sites((field > 0).double()) / action.volume
