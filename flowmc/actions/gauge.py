r"""The Wilson gauge action for U(1) and SU(N) in two or more dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN, U1, Group, parse_group
from flowmc.terms import LoopWeights, Plaquettes, Term

__all__ = ["Wilson"]

# Not attributes: those that are tables of numbers are part of what tells actions apart.
_WEIGHTS: WeakKeyDictionary[Wilson, LoopWeights] = WeakKeyDictionary()


class Wilson(Action):
    r"""The Wilson plaquette action.

    .. math:: S = -\frac{\beta}{N} \sum_{x} \sum_{\mu<\nu} \mathrm{Re\,tr}\,P_{\mu\nu}(x)

    for SU(N), and :math:`S = -\beta \sum \cos\theta_P` for U(1).  It equals the other usual form
    :math:`\beta \sum (1 - \tfrac1N \mathrm{Re\,tr} P)` minus the constant
    :math:`\beta V d(d-1)/2`.  The measure is Haar (U(1): prod dtheta).

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2, each >= 2.
        beta: inverse coupling.
    """

    name = "wilson"
    title = "Wilson action"

    def __init__(self, group: str | Group, lattice: Sequence[int], *, beta: float) -> None:
        self.group = parse_group(group) if isinstance(group, str) else group
        if not isinstance(self.group, (U1, SUN)):
            raise ValueError(f"the Wilson action is defined for U(1) and SU(N), not {group}")
        self.lattice = tuple(int(extent) for extent in lattice)
        if len(self.lattice) < 2 or min(self.lattice) < 2:
            raise ValueError(
                f"a gauge theory needs at least two directions of extent >= 2, got "
                f"{list(self.lattice)}"
            )
        self.beta = float(beta)
        self.parameters = {"beta": self.beta}

    def at(self, **couplings: float) -> Wilson:
        unknown = set(couplings) - {"beta"}
        if unknown:
            raise ValueError(f"the Wilson action has the coupling beta, not {sorted(unknown)}")
        return Wilson(self.group, self.lattice, beta=couplings.get("beta", self.beta))

    def plaquette_weights(self) -> Tensor | None:
        """Return the weight of every plaquette, float64 ``(d(d-1)/2, *L)``, planes in order.

        None, the default, stands for 1 everywhere.  Both engines read them.
        """
        return None

    def as_data(self) -> tuple[Term, ...] | None:
        if self not in _WEIGHTS:
            table = self.plaquette_weights()
            if table is None:
                return (Plaquettes(self.group, self.beta),)
            _WEIGHTS[self] = LoopWeights(table)
        return (Plaquettes(self.group, self.beta, _WEIGHTS[self]),)
