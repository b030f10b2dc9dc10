r"""A gauge action of your own: plaquettes and rectangles, in one file.

.. math:: S = -\frac{\beta}{N} \sum_x \Big[ (1 - 8 c_1) \sum \mathrm{Re\,tr}\,P
              + c_1 \sum \mathrm{Re\,tr}\,R \Big]

with all plaquettes P and planar 2x1 rectangles R, each once.  :math:`c_1 = -1/12` is the tree-level
improved action of M. Luescher and P. Weisz (Commun. Math. Phys. 97 (1985) 59), -0.331 that of
Y. Iwasaki (UTHEP-118, 1983).  ``flowmc run examples/extending/improved_action.toml`` samples it.

Plaquettes and loops are words of flowmc's vocabulary: from them come value and force, in torch and
in compiled code.  (flowmc has this action itself, ``action = "improved"``, with more keys.)
"""

from flowmc.actions import Wilson
from flowmc.loops import SHAPES, images
from flowmc.terms import Loops, Plaquettes


class Improved(Wilson):
    """See above.

    Args:
        group: "U(1)" or "SU(N)".
        lattice: extents.
        beta: inverse coupling.
        c1: coefficient of the rectangles.
    """

    name = "with_rectangles"
    title = "gauge action with rectangles"

    def __init__(self, group, lattice, *, beta: float, c1: float = -1 / 12) -> None:
        super().__init__(group, lattice, beta=beta)
        self.c1 = float(c1)
        self.parameters = {"beta": self.beta, "c1": self.c1}

    def at(self, **couplings: float) -> "Improved":
        return Improved(self.group, self.lattice, **{**self.parameters, **couplings})

    def as_data(self):
        rectangles = images(SHAPES["rectangle"], self.dimensions)
        return (
            Plaquettes(self.group, self.beta * (1 - 8 * self.c1)),
            Loops(self.group, rectangles, self.beta * self.c1),
        )
