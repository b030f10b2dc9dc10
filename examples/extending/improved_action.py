r"""A gauge action of your own: plaquettes and rectangles, in one file.

.. math:: S = -\frac{\beta}{N} \sum_x \Big[ (1 - 8 c_1) \sum \mathrm{Re\,tr}\,P
              + c_1 \sum \mathrm{Re\,tr}\,R \Big]

with all plaquettes P and planar 2x1 rectangles R, each once.  :math:`c_1 = -1/12` is the tree-level
improved action of M. Luescher and P. Weisz (Commun. Math. Phys. 97 (1985) 59), -0.331 that of
Y. Iwasaki (UTHEP-118, 1983).  ``flowmc run examples/extending/improved_action.toml`` samples it.

The words of the loops say all: the force comes by autograd, and all of it runs in plain torch.
"""

from flowmc.actions import Wilson
from flowmc.actions.loops import SHAPES, images, loop_trace
from flowmc.lattice import sum_over_sites


class Improved(Wilson):
    """See above.

    Args:
        group: "U(1)" or "SU(N)".
        lattice: extents.
        beta: inverse coupling.
        c1: coefficient of the rectangles.
    """

    name = "improved"

    def __init__(self, group, lattice, *, beta: float, c1: float = -1 / 12) -> None:
        super().__init__(group, lattice, beta=beta)
        self.c1 = float(c1)
        self.parameters = {"beta": self.beta, "c1": self.c1}

    def at(self, **couplings: float) -> "Improved":
        return Improved(self.group, self.lattice, **{**self.parameters, **couplings})

    def on_lattice(self, lattice) -> "Improved":
        return Improved(self.group, lattice, **self.parameters)

    def __call__(self, field):
        total = 0.0
        for shape, weight in (("plaquette", 1 - 8 * self.c1), ("rectangle", self.c1)):
            trace = loop_trace(field, images(SHAPES[shape], self.dimensions), self.group)
            total = total + weight * sum_over_sites(trace)
        # U(1) has N = 1, and loop_trace gives its cosines.
        return -self.beta / getattr(self.group, "n", 1) * total
