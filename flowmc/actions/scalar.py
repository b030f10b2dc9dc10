r"""Actions of a real scalar field: phi^4 in both usual parametrisations, and the free field.

All are members of one hopping form,

.. math:: S = \sum_x \Big[ -2k \sum_\mu \phi_x \phi_{x+\hat\mu} + a\,\phi_x^2
          + \lambda\,\phi_x^4 \Big],

with (k, a) below.  Beware when comparing papers: the kinetic term has *no* factor 1/2 in the
(m2, lambda) form of Albergo, Kanwar and Shanahan (arXiv:1904.12072), and the anvil papers
write beta = 2 kappa.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import Real
from flowmc.lattice import lattice_momenta_squared
from flowmc.registry import as_arguments, written
from flowmc.terms import Hopping, Term

__all__ = ["FreeScalar", "HoppingAction", "Phi4"]


class HoppingAction(Action):
    r"""The hopping form :math:`\sum_x [-2k \sum_\mu \phi\phi_\mu + a\phi^2 + \lambda\phi^4]`.

    Attributes:
        k: half the hopping coefficient.
        a: coefficient of phi^2.
        quartic: coefficient lambda of phi^4.
    """

    group = Real()
    interaction_range = 1
    k: float
    a: float
    quartic: float

    def _set_lattice(self, lattice: Sequence[int]) -> None:
        self.lattice = tuple(int(extent) for extent in lattice)
        if not self.lattice or min(self.lattice) < 2:
            raise ValueError(f"lattice extents must be at least 2, got {list(self.lattice)}")

    def as_data(self) -> tuple[Term, ...] | None:
        return (Hopping(self.k, self.a, self.quartic),)

    def hot(self, chains: int, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        r"""Draw independent sites from :math:`e^{-a\phi^2 - \lambda\phi^4}`, the limit k = 0.

        The scalar counterpart of Haar links.  Fields of an arbitrary width instead could be so
        far up the quartic potential that no trajectory from them is ever accepted.
        """
        # Inverse of the cumulative distribution on a grid; the tail left out is e^-50.
        scale = max(abs(self.a), 1e-3)
        edge = (50 / scale) ** 0.5 if self.quartic == 0 else 0.0
        if self.quartic:
            lowest = -min(self.a, 0.0) / (2 * self.quartic)
            depth = 50 + self.quartic * lowest**2
            edge = (lowest + (depth / self.quartic) ** 0.5) ** 0.5
        grid = torch.linspace(-edge, edge, 8193, dtype=torch.float64, device=rng.device)
        square = grid.square()
        exponent = -(self.a * square + self.quartic * square.square())
        density = (exponent - exponent.max()).exp()
        cumulative = torch.cumsum((density[1:] + density[:-1]) / 2, 0)
        cumulative = torch.cat([torch.zeros_like(cumulative[:1]), cumulative])
        uniform = cumulative[-1] * torch.rand(
            self.field_shape(chains), dtype=torch.float64, device=rng.device, generator=rng
        )
        right = torch.searchsorted(cumulative, uniform).clamp(1, len(grid) - 1)
        below, above = cumulative[right - 1], cumulative[right]
        share = ((uniform - below) / (above - below)).clamp(0, 1)
        return (grid[right - 1] + share * (grid[right] - grid[right - 1])).to(dtype)

    @property
    def vacuum(self) -> float:
        r"""The constant field of least action, >= 0: :math:`\phi^2 = (2kd - a) / 2\lambda` or 0."""
        depth = 2 * self.k * self.dimensions - self.a
        return (depth / (2 * self.quartic)) ** 0.5 if depth > 0 and self.quartic else 0.0


class Phi4(HoppingAction):
    r"""The phi^4 action on a periodic lattice of any dimension >= 1.

    Either with (m2, lambda),

    .. math:: S = \sum_x \Big[ \sum_\mu (\phi_{x+\mu} - \phi_x)^2 + m^2 \phi_x^2
              + \lambda \phi_x^4 \Big] \qquad (k = 1,\; a = 2d + m^2),

    (arXiv:1904.12072; no factors 1/2), or with (kappa, lambda),

    .. math:: S = \sum_x \Big[ -2\kappa \sum_\mu \phi_x \phi_{x+\mu} + (1 - 2\lambda) \phi_x^2
              + \lambda \phi_x^4 \Big] \qquad (k = \kappa,\; a = 1 - 2\lambda)

    (arXiv:2007.07115).  The measure is prod dphi.

    Args:
        lattice: extents, each >= 2.
        m2, kappa: exactly one of the two.
        lam: quartic coupling, >= 0 (spelled ``lambda`` in configuration files).

    Raises:
        ValueError: if both or none of m2 and kappa are given, or lam < 0.
    """

    name = "phi4"
    title = "φ⁴ theory"

    def __init__(
        self,
        lattice: Sequence[int],
        *,
        lam: float,
        m2: float | None = None,
        kappa: float | None = None,
    ) -> None:
        self._set_lattice(lattice)
        if (m2 is None) == (kappa is None):
            raise ValueError("phi4 needs exactly one of m2 and kappa beside lambda")
        if lam < 0:
            raise ValueError(f"phi4 needs lambda >= 0 for a bounded action, got {lam}")
        self.quartic = float(lam)
        if m2 is not None:
            self.k, self.a = 1.0, 2 * len(self.lattice) + float(m2)
            self.parameters = written({"m2": float(m2), "lam": float(lam)})
        else:
            assert kappa is not None
            self.k, self.a = float(kappa), 1 - 2 * float(lam)
            self.parameters = written({"kappa": float(kappa), "lam": float(lam)})
        if lam == 0 and self.a - 2 * abs(self.k) * len(self.lattice) <= 0:
            raise ValueError("without a quartic term this action is unbounded: raise m2")

    def at(self, **couplings: float) -> Phi4:
        merged = {**self.parameters, **couplings}
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(
                f"phi4 has the couplings {list(self.parameters)}, not {sorted(unknown)}"
            )
        return Phi4(self.lattice, **as_arguments(merged))


class FreeScalar(HoppingAction):
    r"""The free field, exactly solvable.

    :math:`S = \sum_x [\sum_\mu (\phi_{x+\mu} - \phi_x)^2 + m^2\phi_x^2]`.  In
    momentum space :math:`S = \frac1V \sum_p (\hat p^2 + m^2) |\tilde\phi_p|^2`, so each mode
    has :math:`\langle |\tilde\phi_p|^2 \rangle = V / (2 (\hat p^2 + m^2))`.

    Args:
        lattice: extents, each >= 2.
        m2: squared mass, > 0.
    """

    name = "free"
    title = "free scalar field"

    def __init__(self, lattice: Sequence[int], *, m2: float) -> None:
        self._set_lattice(lattice)
        if m2 <= 0:
            raise ValueError(f"the free field needs m2 > 0 to be normalisable, got {m2}")
        self.k, self.a, self.quartic = 1.0, 2 * len(self.lattice) + float(m2), 0.0
        self.m2 = float(m2)
        self.parameters = {"m2": self.m2}

    def at(self, **couplings: float) -> FreeScalar:
        unknown = set(couplings) - {"m2"}
        if unknown:
            raise ValueError(f"the free field has the coupling m2, not {sorted(unknown)}")
        return FreeScalar(self.lattice, m2=couplings.get("m2", self.m2))

    def mode_action(self, device: torch.device | str = "cpu") -> Tensor:
        r"""Return :math:`\hat p^2 + m^2` per momentum, ``(*L)`` float64, in FFT order."""
        return lattice_momenta_squared(self.lattice, device) + self.m2

    def sample(
        self, chains: int, rng: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return exact independent draws ``(chains, *L)`` by colouring white noise with an FFT."""
        noise = torch.randn(
            (chains, *self.lattice), dtype=torch.float64, device=rng.device, generator=rng
        )
        axes = tuple(range(1, 1 + self.dimensions))
        amplitude = (2 * self.mode_action(rng.device)).rsqrt()
        return torch.fft.ifftn(torch.fft.fftn(noise, dim=axes) * amplitude, dim=axes).real.to(dtype)

    def log_partition(self) -> float:
        r"""Return :math:`\ln Z = \tfrac12 \sum_p \ln \frac{\pi}{\hat p^2 + m^2}` (measure dphi)."""
        return float(0.5 * (torch.pi / self.mode_action()).log().sum())

    def propagator(self) -> Tensor:
        """Return the exact <phi_x phi_0>, ``(*L)`` float64."""
        spectrum = 0.5 / self.mode_action()
        return torch.fft.ifftn(spectrum).real
