r"""The Schroedinger functional: gauge actions between two time slices that are held fixed.

M. Luescher, R. Narayanan, P. Weisz and U. Wolff, Nucl. Phys. B384 (1992) 168, hep-lat/9207009; with
rectangles S. Aoki, R. Frezzotti and P. Weisz, hep-lat/9808007.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.improved import ImprovedGauge
from flowmc.fields import FixedLinks
from flowmc.groups import SUN, Group
from flowmc.loops import Word

__all__ = ["SchroedingerFunctional"]


class SchroedingerFunctional(ImprovedGauge):
    r"""Plaquettes and rectangles on the time slices 0 to T, with fixed links in space on both ends.

    .. math:: S = -\frac{\beta}{N} \sum_x \Big[ (1 - 8 c_1) \sum_P w_P\, \mathrm{Re\,tr}\,P(x)
              + c_1 \sum_R w_R\, \mathrm{Re\,tr}\,R(x) \Big], \qquad T = L_{d-1} - 1,

    with all loops that fit in between the slices.  Plaquettes in time on a boundary have the weight
    :math:`c_t`, rectangles with two links on a boundary ``c_t_rectangle``; 3/2 makes the classical
    field below exact at :math:`c_t = 1`, "choice B" of hep-lat/9808007.  Loops in space on the
    boundaries are constants.  The fixed links are those of an Abelian field,

    .. math:: U_k(t = 0) = \exp\frac{i}{L_k}\mathrm{diag}(\phi_1, \dots, \phi_N), \qquad
              U_k(t = T) = \exp\frac{i}{L_k}\mathrm{diag}(\phi'_1, \dots, \phi'_N),

    with :math:`\phi = ` ``phases`` :math:`+\,\eta\,v` and :math:`\phi' = ` ``end_phases``
    :math:`-\,\eta\,v`; v is (1, -1/2, -1/2) for SU(3), (-1, 1) for SU(2), 1 for U(1) and
    (1, -1/(N-1), ...) for others, so that :math:`\partial S / \partial\eta` is the derivative that
    defines the running coupling (hep-lat/9207009, hep-lat/9309005).

    ``cold`` is the classical field between the boundaries, :math:`V_0 = 1` and
    :math:`V_k(t) = \exp\frac{i}{L_k T}[(T - t)\,\phi + t\,\phi']`.

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2; the last is the number of time slices T + 1, >= 3.
        beta: inverse coupling.
        c1: coefficient of the rectangles; 0 is Wilson's action.
        eta: moves the boundary phases.
        c_t: weight of plaquettes in time that touch a boundary.
        c_t_rectangle: weight of rectangles with two links on a boundary.
        phases: of the first slice at :math:`\eta = 0`, one number for U(1), N numbers of sum zero
            for SU(N); by default zero.
        end_phases: of the last slice.

    Raises:
        ValueError: for values out of range.
    """

    name = "schroedinger_functional"
    title = "Schrödinger functional"

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        beta: float,
        c1: float = 0.0,
        eta: float = 0.0,
        c_t: float = 1.0,
        c_t_rectangle: float = 1.5,
        phases: Sequence[float] | None = None,
        end_phases: Sequence[float] | None = None,
    ) -> None:
        super().__init__(group, lattice, beta=beta, c1=c1, time_boundary="open")
        if self.lattice[-1] < 3:
            raise ValueError(
                f"lattice = {list(self.lattice)}: of fewer than three time slices none is left "
                "between the boundaries"
            )
        self.c_t, self.c_t_rectangle, self.eta = float(c_t), float(c_t_rectangle), float(eta)
        if not all(map(math.isfinite, (self.c_t, self.c_t_rectangle, self.eta))):
            raise ValueError("eta, c_t and c_t_rectangle are finite numbers")
        self.parameters = {"beta": self.beta, "c1": self.c1, "eta": self.eta, "c_t": self.c_t}
        # No coupling: without rectangles nothing depends on it.
        self.settings: dict[str, Any] = {}
        if self.c_t_rectangle != 1.5:
            self.settings["c_t_rectangle"] = self.c_t_rectangle
        self.phases = self._checked("phases", phases)
        self.end_phases = self._checked("end_phases", end_phases)

    def _checked(self, key: str, phases: Sequence[float] | None) -> tuple[float, ...]:
        number = len(self._direction)
        if phases is None:
            return (0.0,) * number
        found = tuple(map(float, phases))
        if len(found) != number or not all(map(math.isfinite, found)):
            raise ValueError(f"{key} = {list(phases)}: {self.group.name} has {number} phases")
        if number > 1 and abs(sum(found)) > 1e-12 * (1 + max(map(abs, found))):
            raise ValueError(f"{key} = {list(phases)}: should add up to zero, not to {sum(found)}")
        self.settings[key] = list(found)
        return found

    @property
    def _direction(self) -> tuple[float, ...]:
        """How the phases of the first slice depend on eta."""
        if not isinstance(self.group, SUN):
            return (1.0,)
        n = self.group.n
        return (-1.0, 1.0) if n == 2 else (1.0, *[-1 / (n - 1)] * (n - 1))

    @property
    def boundary_phases(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The phases of the first and of the last slice."""
        pairs = list(zip(self.phases, self.end_phases, self._direction, strict=True))
        return (
            tuple(phase + self.eta * v for phase, _, v in pairs),
            tuple(phase - self.eta * v for _, phase, v in pairs),
        )

    @property
    def fixed_links(self) -> FixedLinks:  # type: ignore[override]
        return _fixed_links(self.lattice, isinstance(self.group, SUN), *self.boundary_phases)

    def cold(
        self, chains: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        field = super().cold(chains, dtype, device)
        classical = _classical(self.lattice, isinstance(self.group, SUN), *self.boundary_phases)
        return classical.to(field).expand_as(field).clone()

    def _open_weight(self, word: Word) -> Tensor:
        weight, time = super()._open_weight(word), self.dimensions
        heights = list(itertools.accumulate((step == time) - (step == -time) for step in word))
        low, high = min(0, *heights), max(0, *heights)
        if high - low != 1:
            return weight
        in_space = (len(word) - 2) // 2
        at_boundary = self.c_t if in_space == 1 else self.c_t_rectangle
        begins = torch.arange(self.lattice[-1])
        touches = (begins + low == 0) | (begins + high == self.lattice[-1] - 1)
        return torch.where(touches, at_boundary * weight, weight)


def _classical(
    lattice: tuple[int, ...],
    is_matrix: bool,
    start: tuple[float, ...],
    end: tuple[float, ...],
) -> Tensor:
    """Return the classical field ``(d, *L, *element)``."""
    times = torch.arange(lattice[-1], dtype=torch.float64)[:, None] / (lattice[-1] - 1)
    first, last = (torch.tensor(phases, dtype=torch.float64) for phases in (start, end))
    angles = (1 - times) * first + times * last
    links = [angles / extent for extent in lattice[:-1]]
    links.append(torch.zeros_like(angles))
    field = torch.stack(links).reshape(len(lattice), *[1] * (len(lattice) - 1), *angles.shape)
    field = field.expand(len(lattice), *lattice, angles.shape[1])
    return torch.diag_embed(torch.exp(1j * field)) if is_matrix else field[..., 0]


@functools.lru_cache(maxsize=64)
def _fixed_links(
    lattice: tuple[int, ...],
    is_matrix: bool,
    start: tuple[float, ...],
    end: tuple[float, ...],
) -> FixedLinks:
    where = torch.zeros((len(lattice), *lattice), dtype=torch.bool)
    where[:-1, ..., 0] = where[:-1, ..., -1] = True
    return FixedLinks(where, _classical(lattice, is_matrix, start, end).contiguous())
