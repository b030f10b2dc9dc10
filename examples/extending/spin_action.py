r"""A spin model of your own: group elements on the sites, in one file.

The principal chiral model,

.. math:: S = -\frac{\beta}{N} \sum_{x,\mu} \mathrm{Re\,tr}\, U_x^\dagger U_{x+\mu},

whose field is a matrix of SU(N) on every site; with N = 2 it is the O(4) model.  For U(1), with
:math:`-\beta \sum \cos(\theta_x - \theta_{x+\mu})`, it is the XY model.
``flowmc run examples/extending/spin_action.toml`` samples it.
"""

import torch

from flowmc.actions import Action
from flowmc.groups import U1, parse_group
from flowmc.lattice import shift, sum_over_sites
from flowmc.observables import observable


class Chiral(Action):
    """See above; the force comes by autograd.

    Args:
        group: "U(1)" or "SU(N)".
        lattice: extents.
        beta: inverse temperature.
    """

    name = "chiral"
    title = "principal chiral model"
    place = "sites"
    interaction_range = 1

    def __init__(self, group, lattice, *, beta: float) -> None:
        self.group = parse_group(group) if isinstance(group, str) else group
        self.lattice = tuple(lattice)
        self.beta = float(beta)
        self.parameters = {"beta": self.beta}

    def at(self, **couplings: float) -> "Chiral":
        return Chiral(self.group, self.lattice, **{**self.parameters, **couplings})

    def __call__(self, field):
        return -self.beta * self.volume * nearest(field, self)


@observable(title="Correlation of neighbours")
def nearest(field, action):
    """Return the sum over directions of Re tr U_x^+ U_y / N of neighbours, the mean of all sites.

    An observable, ``(chains,)``: what the derivative of ln Z with respect to beta is, over V.
    """
    total = 0.0
    for mu in range(action.dimensions):
        ahead = shift(field, mu)
        if isinstance(action.group, U1):
            product = torch.cos(field - ahead)
        else:
            # Re tr A^+ B is the real scalar product of the entries.
            both = torch.view_as_real(field) * torch.view_as_real(ahead)
            product = both.sum((-3, -2, -1)) / action.group.n
        total = total + sum_over_sites(product)
    return total / action.volume
