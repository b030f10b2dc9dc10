r"""Gauge actions of plaquettes, rectangles and parallelograms, as production runs have them.

.. math:: S = -\frac{\beta}{N} \sum_{x} \Big[ c_0 \sum_P \mathrm{Re\,tr}\,P(x)
              + c_1 \sum_R \mathrm{Re\,tr}\,R(x) + c_3 \sum_G \mathrm{Re\,tr}\,G(x) \Big]

(U(1): cosines) with all plaquettes P, planar 2x1 rectangles R and parallelograms G, the loops
:math:`(\mu, \nu, \rho, -\mu, -\nu, -\rho)`, each once.  The numbering of the coefficients is that
of M. Luescher and P. Weisz, Commun. Math. Phys. 97 (1985) 59, whose bent rectangle, :math:`c_2`,
is left out everywhere.  With :math:`c_0 + 8 c_1 + 4 (d - 2) c_3 = 1` the coupling is the bare one,
:math:`\beta = 2N / g_0^2`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flowmc.actions.base import Action, PartOfAction
from flowmc.actions.defect import defect_box, defect_links
from flowmc.groups import SUN, U1, Group, parse_group
from flowmc.lattice import shift
from flowmc.loops import SHAPES, Word, images, plaquette_words
from flowmc.terms import Loops, LoopWeights, Plaquettes, Term

if TYPE_CHECKING:
    from flowmc.kernels.base import State

__all__ = ["DBW2", "ImprovedGauge", "Iwasaki", "LuescherWeisz", "Symanzik"]

# Not attributes: those that are tables of numbers are part of what tells actions apart.
_WEIGHTS: WeakKeyDictionary[ImprovedGauge, dict[tuple[Word, ...], LoopWeights]] = (
    WeakKeyDictionary()
)


class ImprovedGauge(Action):
    r"""Plaquettes, rectangles and parallelograms with any coefficients.

    See :mod:`flowmc.actions.improved` for S.  With :math:`c_1 = c_3 = 0` it is the Wilson action.
    A loop may have a weight, the product of what follows:

    - :math:`1/\xi` for loops in space and :math:`\xi` for those with links in the time direction,
      the last (``anisotropy``; S. Ejiri, K. Kanaya, Y. Namekawa and T. Umeda, hep-lat/0301029);
    - the coefficients of all its links, ``defect`` on the defect links and 1 elsewhere, which are
      those of :class:`~flowmc.actions.DefectWilson` (C. Bonanno, C. Bonati and M. D'Elia,
      arXiv:2012.14000);
    - with ``time_boundary = "open"``, 0 for loops that cross from the last time slice to the first,
      and half of :math:`c_G` for loops in space on these two slices (M. Luescher and S. Schaefer,
      arXiv:1105.4749; as openQCD's ``bc`` 0 has them).

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2, each >= 2.
        beta: inverse coupling.
        c1: coefficient of the rectangles.
        c3: coefficient of the parallelograms, for three or more dimensions.
        c0: coefficient of the plaquettes; by default 1 - 8 c1 - 4 (d - 2) c3.
        anisotropy: bare anisotropy :math:`\xi > 0`; without parallelograms.
        defect: coefficient of the defect links, finite and >= 0 (values above 1 are allowed).
        defect_axis: direction that the defect links have, the last by default; negative numbers
            count from the end.
        defect_extents: extents of the box of defect links in the other d - 1 directions, in their
            order, each from 1 to that of the lattice; by default those of the lattice.
        time_boundary: "periodic" or "open"; open without parallelograms.
        c_g: boundary coefficient :math:`c_G` of an open lattice.

    Raises:
        ValueError: for values out of range.
    """

    name = "improved"
    title = "improved gauge action"

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        beta: float,
        c1: float,
        c3: float = 0.0,
        c0: float | None = None,
        anisotropy: float = 1.0,
        defect: float = 1.0,
        defect_axis: int = -1,
        defect_extents: Sequence[int] | None = None,
        time_boundary: str = "periodic",
        c_g: float = 1.0,
    ) -> None:
        self.group = parse_group(group) if isinstance(group, str) else group
        if not isinstance(self.group, (U1, SUN)):
            raise ValueError(f"gauge actions are defined for U(1) and SU(N), not {group}")
        self.lattice = tuple(int(extent) for extent in lattice)
        if len(self.lattice) < 2 or min(self.lattice) < 2:
            raise ValueError(
                f"a gauge theory needs at least two directions of extent >= 2, got "
                f"{list(self.lattice)}"
            )
        self.beta, self.c1, self.c3 = float(beta), float(c1), float(c3)
        normalised = 1 - 8 * self.c1 - 4 * (self.dimensions - 2) * self.c3
        self.c0 = normalised if c0 is None else float(c0)
        self.anisotropy, self.defect = float(anisotropy), float(defect)
        if self.c3 and self.dimensions < 3:
            raise ValueError(f"c3 = {c3}: a parallelogram needs three directions")
        if not 0 < self.anisotropy < math.inf:
            raise ValueError(f"anisotropy = {anisotropy}: should be positive and finite")
        if self.c3 and self.anisotropy != 1:
            raise ValueError(
                f"anisotropy = {anisotropy}: is defined for plaquettes and rectangles, not with "
                "parallelograms (c3)"
            )
        if not (math.isfinite(self.defect) and self.defect >= 0):
            raise ValueError(
                f"defect = {defect} multiplies the coupling of links: take it finite and >= 0"
            )
        self.defect_axis, self.defect_extents = defect_box(
            self.lattice, defect_axis, defect_extents
        )
        self.parameters = self._own_parameters(c0)
        if not self.c3:
            self.parameters["anisotropy"] = self.anisotropy
        if time_boundary not in ("periodic", "open"):
            raise ValueError(f'time_boundary = {time_boundary!r}: should be "periodic" or "open"')
        self.has_open_time, self.c_g = time_boundary == "open", float(c_g)
        if not math.isfinite(self.c_g) or (not self.has_open_time and self.c_g != 1):
            raise ValueError(f'c_g = {c_g}: is a finite number and needs time_boundary = "open"')
        if self.has_open_time and self.c3:
            raise ValueError(
                "open boundaries are defined for plaquettes and rectangles, not with c3"
            )
        has_defect = not (self.has_open_time and self.defect_axis == self.dimensions - 1)
        if not has_defect and self.defect != 1:
            raise ValueError(
                f"defect = {defect}: in an open direction no links are there to be weakened; take "
                "another defect_axis"
            )
        if has_defect:
            self.parameters["defect"] = self.defect
        self.settings: dict[str, Any] = {}
        if self.has_open_time:
            self.settings["time_boundary"] = "open"
            # In two dimensions there are no loops in space.
            if self.dimensions > 2:
                self.parameters["c_g"] = self.c_g
        if self.defect_axis != self.dimensions - 1:
            self.settings["defect_axis"] = self.defect_axis
        if defect_extents is not None:
            self.settings["defect_extents"] = list(self.defect_extents)

    def _own_parameters(self, c0: float | None) -> dict[str, float]:
        """Return the couplings beside those that all these actions have."""
        own = {"beta": self.beta, "c1": self.c1}
        if self.c3:
            own["c3"] = self.c3
        if c0 is not None:
            own["c0"] = self.c0
        return own

    def at(self, **couplings: float) -> ImprovedGauge:
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(
                f"the {self.name} action has the couplings {', '.join(self.parameters)}, not "
                f"{', '.join(sorted(unknown))}"
            )
        keys: Any = {**self.parameters, **couplings, **self.settings}
        return type(self)(self.group, self.lattice, **keys)

    def as_data(self) -> tuple[Term, ...] | None:
        return tuple(self._terms().values())

    def _terms(self) -> dict[str, Term]:
        """Return the terms by the names that an integrator has for them."""
        plaquettes = plaquette_words(self.dimensions)
        terms: dict[str, Term] = {
            "plaquettes": Plaquettes(self.group, self.beta * self.c0, self._weights(plaquettes))
        }
        for number, shape in ((self.c1, "rectangle"), (self.c3, "parallelogram")):
            if number:
                words = images(SHAPES[shape], self.dimensions)
                weights = self._weights(words)
                terms[f"{shape}s"] = Loops(self.group, words, self.beta * number, weights)
        return terms

    def parts(self, state: State | None = None) -> dict[str, Action]:
        """Return plaquettes, rectangles and parallelograms, as far as they are there."""
        terms = tuple(self._terms().values())
        if self.compilable() != terms:
            # A subclass with terms or formulas of its own.
            return super().parts(state)
        return {name: PartOfAction(self, [term]) for name, term in self._terms().items()}

    def defect_links(self) -> Tensor:
        """Return which links are defect links, bool ``(d, *L)``."""
        return defect_links(self.lattice, self.defect_axis, self.defect_extents)

    def weight(self, word: Word) -> Tensor:
        """Return the weights of a loop, float64 ``(*L)`` by the site where the word begins."""
        # Time is the last direction.
        factor = self.anisotropy if self.dimensions in word else 1 / self.anisotropy
        weight = torch.full(self.lattice, factor, dtype=torch.float64)
        if self.has_open_time:
            weight = weight * self._open_weight(word)
        if self.defect == 1:
            return weight
        links = self.defect_links()[:, None].to(torch.int64)
        count, position = torch.zeros_like(links[0]), [0] * self.dimensions
        for step in word:
            mu = abs(step) - 1
            position[mu] -= step < 0
            there = links[mu]
            for nu, distance in enumerate(position):
                there = shift(there, nu, distance)
            count += there
            position[mu] += step > 0
        # 0 ** 0 is 1, as it must be.
        return weight * torch.tensor(self.defect, dtype=torch.float64) ** count[0]

    def _open_weight(self, word: Word) -> Tensor:
        """Return what open boundaries make of the weight of a loop, by its time, ``(T,)``."""
        extent, time = self.lattice[-1], self.dimensions
        heights = list(itertools.accumulate((step == time) - (step == -time) for step in word))
        weight = torch.ones(extent, dtype=torch.float64)
        if any(heights):
            begins = torch.arange(extent)
            return weight * (
                (begins + min(0, *heights) >= 0) & (begins + max(0, *heights) < extent)
            )
        weight[0] = weight[-1] = self.c_g / 2
        return weight

    def _weights(self, words: tuple[Word, ...]) -> LoopWeights | None:
        if self.anisotropy == 1 and self.defect == 1 and not self.has_open_time:
            return None
        known = _WEIGHTS.setdefault(self, {})
        if words not in known:
            known[words] = LoopWeights(torch.stack([self.weight(word) for word in words]))
        return known[words]


class _FixedCoefficients(ImprovedGauge):
    """An improved action whose coefficients its name says."""

    c1_of_name: float

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        beta: float,
        anisotropy: float = 1.0,
        defect: float = 1.0,
        defect_axis: int = -1,
        defect_extents: Sequence[int] | None = None,
        time_boundary: str = "periodic",
        c_g: float = 1.0,
    ) -> None:
        super().__init__(
            group,
            lattice,
            beta=beta,
            c1=self.c1_of_name,
            anisotropy=anisotropy,
            defect=defect,
            defect_axis=defect_axis,
            defect_extents=defect_extents,
            time_boundary=time_boundary,
            c_g=c_g,
        )

    def _own_parameters(self, c0: float | None) -> dict[str, float]:
        return {"beta": self.beta}


class Symanzik(_FixedCoefficients):
    r"""The tree-level improved action, :math:`c_1 = -1/12` and :math:`c_0 = 5/3`.

    P. Weisz, Nucl. Phys. B212 (1983) 1; M. Luescher and P. Weisz, Commun. Math. Phys. 97 (1985) 59.
    """

    name = "symanzik"
    title = "tree-level Symanzik action"
    c1_of_name = -1 / 12


class Iwasaki(_FixedCoefficients):
    r"""The action of Y. Iwasaki (UTHEP-118, 1983; arXiv:1111.7054), :math:`c_1 = -0.331`."""

    name = "iwasaki"
    title = "Iwasaki action"
    c1_of_name = -0.331


class DBW2(_FixedCoefficients):
    r"""The DBW2 action, :math:`c_1 = -1.4088`.

    T. Takaishi, Phys. Rev. D54 (1996) 1050; P. de Forcrand et al. (QCD-TARO), hep-lat/9911033.
    Some programs round otherwise (Grid: -1.4067): ``improved`` takes any :math:`c_1`.
    """

    name = "dbw2"
    title = "DBW2 action"
    c1_of_name = -1.4088


class LuescherWeisz(ImprovedGauge):
    r"""The tadpole-improved action of Luescher and Weisz at one loop, for SU(3) in four dimensions.

    With :math:`\ell = \ln u_0` and :math:`N_f` flavours of HISQ sea quarks

    .. math:: c_0 = 1, \quad
              c_1 = -\frac{1}{20 u_0^2} \big[ 1 - (0.6264 - 1.1746 N_f)\,\ell \big], \quad
              c_3 = \frac{1}{u_0^2} (0.0433 - 0.0156 N_f)\,\ell,

    so that beta is the coefficient of the plaquettes, :math:`10 / g_0^2` (M. Alford et al.,
    hep-lat/9507010; the quarks: A. Hart, G.M. von Hippel and R.R. Horgan, arXiv:0812.0503).  These
    are the rounded numbers of MILC's ``symanzik_1loop`` actions.  ``one_loop = false`` keeps the
    tree level, :math:`c_1 = -1/(20 u_0^2)` and :math:`c_3 = 0`, for any group and dimension.

    Args:
        group: "SU(3)"; at tree level any.
        lattice: extents; four of them, at tree level any number >= 2.
        beta: coefficient of the plaquettes.
        u0: mean link, > 0, such as the fourth root of the mean plaquette.
        flavors: number of flavours :math:`N_f \ge 0` of the one-loop terms.
        one_loop: whether these terms are there.
    Raises:
        ValueError: for values out of range.
    """

    name = "luescher_weisz"
    title = "Luescher-Weisz action"

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        beta: float,
        u0: float,
        flavors: int = 0,
        one_loop: bool = True,
        defect: float = 1.0,
        defect_axis: int = -1,
        defect_extents: Sequence[int] | None = None,
    ) -> None:
        if not 0 < u0 < math.inf:
            raise ValueError(f"u0 = {u0}: the mean link should be positive and finite")
        if flavors < 0 or (flavors and not one_loop):
            raise ValueError(
                f"flavors = {flavors}: should be >= 0, and 0 at tree level, where no quark enters"
            )
        name = group if isinstance(group, str) else group.name
        if one_loop and (name != "SU(3)" or len(lattice) != 4):
            raise ValueError(
                f"the one-loop coefficients are those of SU(3) in four dimensions, not of {name} "
                f"in {len(lattice)}: take one_loop = false, or the action 'improved'"
            )
        self.u0, self.flavors, self.one_loop = float(u0), int(flavors), bool(one_loop)
        log = math.log(self.u0) if one_loop else 0.0
        super().__init__(
            group,
            lattice,
            beta=beta,
            c0=1.0,
            c1=-(1 - (0.6264 - 1.1746 * flavors) * log) / (20 * self.u0**2),
            c3=(0.0433 - 0.0156 * flavors) * log / self.u0**2,
            defect=defect,
            defect_axis=defect_axis,
            defect_extents=defect_extents,
        )
        self.settings |= {"flavors": self.flavors, "one_loop": self.one_loop}

    def _own_parameters(self, c0: float | None) -> dict[str, float]:
        return {"beta": self.beta, "u0": self.u0}
