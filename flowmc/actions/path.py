r"""The path of a quantum-mechanical particle in a double well: a lattice of one dimension, time.

It is the smallest theory with everything that makes sampling hard, and it is solved by its
transfer matrix (:func:`flowmc.actions.solved.double_well`).
"""

from __future__ import annotations

from collections.abc import Sequence

from flowmc.actions.scalar import HoppingAction
from flowmc.registry import as_arguments, written

__all__ = ["DoubleWell"]


class DoubleWell(HoppingAction):
    r"""A particle on a periodic time lattice of spacing a, in a quartic potential.

    .. math:: S = \sum_t a \Big[ \frac{m_0}{2} \Big(\frac{x_{t+1} - x_t}{a}\Big)^2
              + \frac{m_0 \mu^2}{2} x_t^2 + \frac{\lambda}{4} x_t^4 \Big],

    with two wells at :math:`x = \pm\sqrt{-m_0\mu^2/\lambda}` for :math:`\mu^2 < 0`.  The measure is
    prod dx, without the factors :math:`\sqrt{m_0 / 2\pi a}` of the path integral.  In the hopping
    form :math:`k = m_0/2a` and the coefficients of :math:`x^2` and :math:`x^4` are
    :math:`m_0/a + a m_0\mu^2/2` and :math:`a\lambda/4`.  (With the kinetic term written without
    :math:`1/a^2`, as in some papers, the two agree at a = 1 only.)

    Args:
        lattice: one extent, the number of time slices, >= 2.
        m0: mass, > 0.
        mu2: squared frequency; negative for two wells.
        lam: quartic coupling, >= 0 (spelled ``lambda`` in configuration files).
        spacing: lattice spacing a, > 0.

    Raises:
        ValueError: for another number of extents, and for couplings without a normalisable density.
    """

    name = "double_well"
    title = "double well, path of a particle"

    def __init__(
        self,
        lattice: Sequence[int],
        *,
        m0: float,
        mu2: float = -1.0,
        lam: float = 1.0,
        spacing: float = 1.0,
    ) -> None:
        self._set_lattice(lattice)
        if len(self.lattice) != 1:
            raise ValueError(
                f"double_well is a path in time: lattice needs one extent, got {list(self.lattice)}"
            )
        if not (m0 > 0 and spacing > 0):
            raise ValueError(
                f"double_well needs m0 > 0 and spacing > 0, got m0 = {m0}, spacing = {spacing}"
            )
        if lam < 0 or (lam == 0 and mu2 <= 0):
            raise ValueError(
                f"double_well needs lambda > 0, or lambda = 0 and mu2 > 0 (the harmonic "
                f"oscillator), to be normalisable, got lambda = {lam}, mu2 = {mu2}"
            )
        self.m0, self.mu2 = float(m0), float(mu2)
        self.lam, self.spacing = float(lam), float(spacing)
        self.k = self.m0 / (2 * self.spacing)
        self.a = self.m0 / self.spacing + self.spacing * self.m0 * self.mu2 / 2
        self.quartic = self.spacing * self.lam / 4
        self.parameters = written(
            {"m0": self.m0, "mu2": self.mu2, "lam": self.lam, "spacing": self.spacing}
        )

    def at(self, **couplings: float) -> DoubleWell:
        merged = {**self.parameters, **couplings}
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(
                f"double_well has the couplings {list(self.parameters)}, not {sorted(unknown)}"
            )
        return DoubleWell(self.lattice, **as_arguments(merged))
