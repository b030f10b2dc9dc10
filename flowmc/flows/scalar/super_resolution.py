r"""Super-resolution: fields of a lattice from those of one with half the extents.

A fine free field is a coarse free field and details that are independent of it.  Putting a sampler
of an interacting coarse theory where the coarse free field was gives the fine field its long
distances; the density stays exact, and no Jacobian is left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmc.actions import Action, FreeScalar
from flowmc.flows.models import FlowModel
from flowmc.flows.priors import ScalarPrior

__all__ = ["FreeFieldBlocking", "SuperResolutionPrior", "halved"]


class FreeFieldBlocking:
    r"""The block-spin step of the free field, from L to L/2 in every direction, and its adjoint.

    With :math:`g(p) = 1 / (2(\hat p^2 + m^2))` of the fine and :math:`g_c(P)` of the coarse
    free field, coarse modes are sums over the :math:`2^d` fine momenta with :math:`2p = P`,

    .. math:: \tilde\Phi_P = 2^{-d} \sum_{2p = P} k(p)\, \tilde\phi_p, \qquad
              k(p) = w(p) \sqrt{\frac{g_c(P)}{2^{-d} \sum_{2p' = P} |w(p')|^2 g(p')}} ,

    where w averages over blocks of :math:`2^d` sites.  The square root makes :math:`\Phi` of a free
    field :math:`\phi` exactly the coarse free field.  Its best estimate of the fine field is

    .. math:: \mathrm{E}[\tilde\phi_p \mid \Phi]
              = \overline{k(p)}\, \frac{g(p)}{g_c(P)}\, \tilde\Phi_P .

    Both commute with the translations of the coarse lattice.

    Args:
        fine: the free field of extents L, all even.
        coarse: the free field of extents L/2.

    Raises:
        ValueError: if the extents do not fit.
    """

    def __init__(self, fine: FreeScalar, coarse: FreeScalar) -> None:
        if fine.lattice != tuple(2 * extent for extent in coarse.lattice):
            raise ValueError(
                f"blocking halves every extent: {'x'.join(map(str, fine.lattice))} does not go "
                f"to {'x'.join(map(str, coarse.lattice))}"
            )
        self.fine, self.coarse = fine, coarse
        self._axes = tuple(range(1, 1 + fine.dimensions))
        self._kernels: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def restrict(self, field: Tensor) -> Tensor:
        """Return the coarse field ``(n, *L/2)`` of a fine one ``(n, *L)`` float64."""
        down, _ = self._at(field.device)
        modes = torch.fft.rfftn(field, dim=self._axes)
        filtered = torch.fft.irfftn(down * modes, s=self.fine.lattice, dim=self._axes)
        # Every second site: the sum over the momenta that the coarse lattice cannot tell apart.
        return filtered[(slice(None), *(slice(None, None, 2),) * len(self._axes))]

    def prolong(self, field: Tensor) -> Tensor:
        """Return the best fine field ``(n, *L)`` for a coarse one ``(n, *L/2)`` float64."""
        _, up = self._at(field.device)
        modes = torch.fft.fftn(field, dim=self._axes)
        half = self.fine.lattice[-1] // 2 + 1
        repeated = modes.repeat(1, *(2,) * len(self._axes))[..., :half]
        return torch.fft.irfftn(up * repeated, s=self.fine.lattice, dim=self._axes)

    def _at(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return k(p) and the kernel of the estimate, at the momenta of a real transform."""
        # No buffers of a module: these stay in double precision whatever the model's is.
        if device not in self._kernels:
            self._kernels[device] = self._make(device)
        return self._kernels[device]

    def _make(self, device: torch.device) -> tuple[Tensor, Tensor]:
        g = 0.5 / self.fine.mode_action(device)
        coarse_g = (0.5 / self.coarse.mode_action(device)).repeat((2,) * self.fine.dimensions)
        w = _window(self.fine.lattice, device)
        shared = w.abs().square() * g
        for axis, extent in enumerate(self.fine.lattice):
            shared = 0.5 * (shared + shared.roll(extent // 2, axis))
        down = w * (coarse_g / shared).sqrt()
        up = down.conj() * g / coarse_g
        half = self.fine.lattice[-1] // 2 + 1
        return down[..., :half], up[..., :half]


class SuperResolutionPrior(ScalarPrior):
    r"""A sampler of the coarse theory and the details of a free field, as a prior of the fine one.

    With a free field r of squared mass m2, the coarse field :math:`\Phi = R\phi` of
    :class:`FreeFieldBlocking`, and a sampler q_c of L/2,

    .. math:: q(\phi) = r(\phi)\, \frac{q_c(R\phi)}{r_c(R\phi)} ,

    which is normalised because :math:`R\phi` of a free field is the coarse free field r_c.  A draw
    is :math:`\phi = \phi_0 + U(\Phi - R\phi_0)` of independent :math:`\phi_0 \sim r` and
    :math:`\Phi \sim q_c`, with the U of :meth:`FreeFieldBlocking.prolong`: the details keep their
    Gaussian distribution given the coarse field.  Doubling from samplers as in arXiv:2412.12842;
    there the details are learned, here a flow of the fine lattice corrects them.

    The distribution has the symmetries of q_c: translations by two sites, reflections and
    rotations that map blocks to blocks, and :math:`\phi \to -\phi`.  For :math:`q_c = r_c` it is
    the free field.

    The weights of the sampler are held fixed; they are part of the state of a model with this
    prior.  Draws of a sampler whose density is that of a continuous flow have its error:
    :meth:`density_error`.

    Args:
        action: the fine theory; gives the lattice, of even extents.
        base: the sampler of half the extents; its weights are frozen.
        m2: squared mass of the fine free field, > 0.
        coarse_m2: squared mass of the coarse free field, > 0; 4 m2 unless given, the same mass in
            physical units.
        card: what the card of a flow file is to say of the sampler.

    Raises:
        ValueError: for a gauge theory, odd extents, or a mass that is no free field's.
    """

    def __init__(
        self,
        action: Action,
        base: FlowModel,
        *,
        m2: float,
        coarse_m2: float | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(action)
        half = halved(self.lattice)
        fine = FreeScalar(self.lattice, m2=m2)
        coarse = FreeScalar(half, m2=4 * m2 if coarse_m2 is None else coarse_m2)
        self.blocking = FreeFieldBlocking(fine, coarse)
        self.base = base.requires_grad_(False)
        self.log_density_is_exact = base.log_density_is_exact
        self._card = dict(card or {})
        # ln(r / r_c) is this minus the difference of the actions.
        self._log_norm = coarse.log_partition() - fine.log_partition()

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn, log_base = self.base.sample(n, rng)
        drawn = drawn.to(torch.float64)
        free = self.blocking.fine.sample(n, rng)
        x = free + self.blocking.prolong(drawn - self.blocking.restrict(free))
        x = x.to(self.dtype)
        return x, log_base + self._log_ratio(x.to(torch.float64), drawn)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check(x)
        x = x.to(torch.float64)
        coarse = self.blocking.restrict(x)
        return self.base.log_prob(coarse.to(self.dtype)) + self._log_ratio(x, coarse)

    def density_error(self, x: Tensor) -> Tensor:
        coarse = self.blocking.restrict(x.to(torch.float64)).to(self.dtype)
        zero = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        with torch.no_grad():
            start, _ = self.base.flow.inverse(coarse, zero)
        return self.base.density_error(start)

    def distinction(self) -> list[float]:
        # Not the card, which says where a file came from; the sampler is a part of this module.
        return [self.blocking.fine.m2, self.blocking.coarse.m2]

    def card_parameters(self) -> dict[str, Any]:
        return {"base": self._card, "coarse_m2": self.blocking.coarse.m2}

    def _log_ratio(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return ln(r / r_c), ``(n,)`` float64."""
        return self.blocking.coarse(coarse) - self.blocking.fine(fine) + self._log_norm

    def __repr__(self) -> str:
        return (
            f"SuperResolutionPrior({self._size}, m2={self.blocking.fine.m2!r}, "
            f"coarse_m2={self.blocking.coarse.m2!r}, "
            f"base={type(self.base).__name__} of {self.base.prior!r})"
        )


def halved(lattice: tuple[int, ...]) -> tuple[int, ...]:
    """Return the extents of the coarse lattice.

    Raises:
        ValueError: for an odd extent, and one that has no half of two sites or more.
    """
    if any(extent % 2 or extent < 4 for extent in lattice):
        raise ValueError(
            f"super-resolution doubles every extent of a lattice: {'x'.join(map(str, lattice))} "
            "needs even extents >= 4"
        )
    return tuple(extent // 2 for extent in lattice)


def _window(lattice: tuple[int, ...], device: torch.device) -> Tensor:
    """Return w(p) of the average over blocks, ``(*L)`` complex128."""
    w = torch.ones(lattice, dtype=torch.complex128, device=device)
    for axis, extent in enumerate(lattice):
        p = 2 * math.pi * torch.arange(extent, dtype=torch.float64, device=device) / extent
        factor = 0.5 * (1 + torch.polar(torch.ones_like(p), p))
        w = w * factor.reshape(-1, *(1,) * (len(lattice) - 1 - axis))
    return w
