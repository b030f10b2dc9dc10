r"""Priors: where a flow starts.

Each is a distribution of the fields of one theory with an exact log-density (only
:class:`EnsemblePrior` leaves a constant open).  Densities are with respect to the measure of
:mod:`flowmc.groups`: :math:`\prod d\phi`, :math:`\prod d\theta`, or normalised Haar.

A draw is a function of the random stream alone.  Priors are modules without parameters, so that
inside a :class:`~flowmc.flows.FlowModel` they follow ``model.to(torch.float64)``; draws are made on
the device of the stream, always from float64 numbers, and rounded to the precision of the model.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from flowmc.actions import Action, FreeScalar
from flowmc.flows.models import Prior
from flowmc.groups import U1
from flowmc.lattice import sum_over_sites

__all__ = ["EnsemblePrior", "FreeFieldPrior", "GaussianPrior", "HaarPrior", "ScalarPrior"]


class _FieldPrior(Prior, nn.Module):
    """A prior for the fields of one theory, in the precision its model was moved to."""

    def __init__(self, action: Action) -> None:
        nn.Module.__init__(self)
        self.lattice = action.lattice
        self.group = action.group
        self._site_shape = action.field_shape(0)[1:]
        # The dtype of this empty buffer is what ``model.to(dtype)`` changes.
        self.register_buffer("_precision", torch.empty(0), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the draws: that of the fields' real components."""
        return self.get_buffer("_precision").dtype

    @property
    def _size(self) -> str:
        return "x".join(map(str, self.lattice))

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self._site_shape:
            raise ValueError(
                f"a field of shape {tuple(x.shape)} does not fit {self!r}, which needs (chains, "
                f"{', '.join(map(str, self._site_shape))})"
            )


class ScalarPrior(_FieldPrior):
    """A prior for real scalar fields.

    Raises:
        ValueError: for a gauge theory.
    """

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        if not action.is_scalar:
            raise ValueError(
                f"{type(self).__name__} is for real scalar fields, but the theory is {action!r}: "
                "use the Haar prior for groups"
            )


class GaussianPrior(ScalarPrior):
    r"""Independent normal variables of mean zero on every site of a scalar field.

    .. math:: \ln r(\phi) = -\sum_x \frac{\phi_x^2}{2\sigma^2} - V \ln(\sigma\sqrt{2\pi}).

    Args:
        action: the theory; gives the lattice.
        scale: the standard deviation sigma, > 0.
    """

    def __init__(self, action: Action, *, scale: float = 1.0) -> None:
        super().__init__(action)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"the Gaussian prior needs a finite scale > 0, got {scale}")
        self.scale = float(scale)
        self._log_norm = action.volume * math.log(self.scale * math.sqrt(2 * math.pi))

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(
            (n, *self.lattice), dtype=torch.float64, device=rng.device, generator=rng
        )
        x = (self.scale * noise).to(self.dtype)
        return x, self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check(x)
        square = sum_over_sites(x.to(torch.float64).square())
        return square * (-0.5 / self.scale**2) - self._log_norm

    def __repr__(self) -> str:
        return f"GaussianPrior({self._size}, scale={self.scale!r})"


class FreeFieldPrior(ScalarPrior):
    r"""The free field of :class:`~flowmc.actions.FreeScalar`, drawn exactly by an FFT.

    :math:`\ln r(\phi) = -\sum_x [\sum_\mu (\Delta_\mu\phi)^2 + m^2 \phi^2] - \ln Z`, with
    :math:`\langle|\tilde\phi_p|^2\rangle = V / (2(\hat p^2 + m^2))` and
    :math:`\ln Z = \tfrac12 \sum_p \ln[\pi / (\hat p^2 + m^2)]`, times a scale s: for targets whose
    kinetic term is :math:`\kappa \sum_\mu (\Delta_\mu\phi)^2` it should be about
    :math:`\kappa^{-1/2}`; and around a mean: for one well of a broken phase.

    Args:
        action: the theory; gives the lattice.
        m2: squared mass of the free field, > 0.
        mass_extent: the mass in units of the inverse extent of axis 0, instead:
            :math:`m^2 = (\mathtt{mass\_extent} / L_0)^2`, on any lattice of the same box.
        scale: s > 0.
        mean: <phi>, not scaled.

    Raises:
        ValueError: for values out of range, and unless one of m2 and mass_extent is given.
    """

    def __init__(
        self,
        action: Action,
        *,
        m2: float | None = None,
        mass_extent: float | None = None,
        scale: float = 1.0,
        mean: float = 0.0,
    ) -> None:
        super().__init__(action)
        if mass_extent is not None and m2 is None:
            m2 = (mass_extent / action.lattice[0]) ** 2
        elif mass_extent is not None or m2 is None:
            raise ValueError("the free-field prior needs one of m2 and mass_extent")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"the free-field prior needs a finite scale > 0, got {scale}")
        if not math.isfinite(mean):
            raise ValueError(f"the mean of the free-field prior must be finite, got {mean}")
        self.free = FreeScalar(action.lattice, m2=m2)
        self.scale, self.mean = float(scale), float(mean)
        self._log_norm = self.free.log_partition() + action.volume * math.log(self.scale)

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = (self.mean + self.scale * self.free.sample(n, rng)).to(self.dtype)
        return x, self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check(x)
        return -self.free((x.to(torch.float64) - self.mean) / self.scale) - self._log_norm

    def __repr__(self) -> str:
        scale = "" if self.scale == 1 else f", scale={self.scale!r}"
        mean = "" if self.mean == 0 else f", mean={self.mean!r}"
        return f"FreeFieldPrior({self._size}, m2={self.free.m2!r}{scale}{mean})"


class HaarPrior(_FieldPrior):
    r"""Independent Haar-distributed links: a gauge theory at :math:`\beta = 0`.

    The log-density is 0 for SU(N), whose Haar measure is normalised, and :math:`-\ln 2\pi` per
    angle for U(1), whose densities are with respect to :math:`d\theta`.

    Args:
        action: the gauge theory; gives group and lattice.

    Raises:
        ValueError: for a scalar theory.
    """

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        if action.is_scalar:
            raise ValueError(
                f"the Haar prior is for links, but the theory is {action!r}: use the Gaussian or "
                "the free-field prior for scalar fields"
            )
        angles = math.prod(action.space.elements) if isinstance(self.group, U1) else 0
        self._log_density = -angles * math.log(2 * math.pi) if angles else 0.0

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        elements = self._site_shape[: len(self._site_shape) - len(self.group.element_shape)]
        x = self.group.haar((n, *elements), self.group.field_dtype(torch.float64), rng)
        x = x.to(self.group.field_dtype(self.dtype))
        return x, self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check(x)
        return torch.full((x.shape[0],), self._log_density, dtype=torch.float64, device=x.device)

    def __repr__(self) -> str:
        return f"HaarPrior({self.group.name}, {self._size})"


class EnsemblePrior(_FieldPrior):
    r"""The ensemble of another action: draws from stored configurations.

    The log-density is :math:`-S(x)`, known only up to the constant :math:`-\ln Z`.  That is enough
    for flows between ensembles (exchange, reweighting), where the constant cancels or is what is
    sought; do not read an absolute normalisation from it.  ``log_prob`` is meant for any field of
    the theory, not only for the stored ones.

    One call draws without replacement until the ensemble is exhausted, then from a fresh shuffle.
    Nothing is remembered between calls: the draw is a function of the random stream alone, so that
    a resumed run repeats it.  Draws have the precision of ``fields`` until the model is moved to
    another one.

    Args:
        fields: ``(configurations, ...)``, decorrelated draws of ``action``.
        action: what they were drawn from.
    """

    def __init__(self, fields: Tensor, action: Action) -> None:
        super().__init__(action)
        action.check_field(fields)
        if not len(fields):
            raise ValueError("an ensemble prior needs at least one configuration")
        self.action = action
        self.register_buffer("_precision", fields.real.new_empty(0), persistent=False)
        self.register_buffer("fields", fields.detach().clone(), persistent=False)
        data = torch.view_as_real(fields) if fields.is_complex() else fields
        content = data.detach().cpu().contiguous().numpy().tobytes()
        self._digest = hashlib.sha256(content).hexdigest()[:16]

    def distinction(self) -> tuple[str, Action]:
        # Beside the fields, which are a buffer and are not to be kept twice.
        return self._digest, self.action

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        fields = self.get_buffer("fields")
        rounds = -(-n // len(fields))
        # Sorting uniform keys shuffles each round; float64 keys make ties negligible.
        keys = torch.rand(
            (rounds, len(fields)), dtype=torch.float64, device=rng.device, generator=rng
        )
        order = keys.argsort(dim=1, stable=True).flatten()[:n]
        x = fields[order.to(fields.device)]
        x = x.to(device=rng.device, dtype=self.group.field_dtype(self.dtype))
        return x, self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return ``-S(x)``: the log-density up to the same constant for all fields, ``(n,)``."""
        self._check(x)
        return -self.action(x)

    def __repr__(self) -> str:
        count = len(self.get_buffer("fields"))
        return f"EnsemblePrior({count} fields sha256:{self._digest}, {self.action!r})"
