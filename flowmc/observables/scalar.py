"""Observables of scalar fields ``(chains, *L)``, and the action density of any field."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.registry import ConfigError

__all__ = [
    "abs_magnetization",
    "action_density",
    "correlator",
    "magnetization",
    "phi2",
    "susceptibility",
]


def action_density(field: Tensor, action: Action) -> Tensor:
    """Return S / V, ``(chains,)``."""
    return action(field) / action.volume


def magnetization(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`m = \frac1V \sum_x \phi_x`, ``(chains,)``."""
    return _sites(field, action, "magnetization").mean(1)


def abs_magnetization(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`|m|`, ``(chains,)``: the order parameter of a finite lattice."""
    return _sites(field, action, "abs_magnetization").mean(1).abs()


def phi2(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`\frac1V \sum_x \phi_x^2`, ``(chains,)``."""
    return _sites(field, action, "phi2").square().mean(1)


def susceptibility(field: Tensor, action: Action) -> Tensor:
    r"""Return the two-point susceptibility :math:`\chi_2 = V m^2`, ``(chains,)``.

    Its mean is :math:`\sum_x \langle \phi_x \phi_0 \rangle` (not connected).
    """
    return _sites(field, action, "susceptibility").mean(1).square() * action.volume


def correlator(field: Tensor, action: Action, *, axis: int = -1) -> Tensor:
    r"""Return the zero-momentum correlator along one axis, ``(chains, L_axis // 2 + 1)``.

    :math:`C(t) = \frac{1}{L} \sum_{t_0} \bar\phi(t_0) \bar\phi(t_0 + t)\, V_\perp`, where the bar
    is the mean over the other axes; averaged over t and L - t by periodicity.

    Args:
        field: ``(chains, *L)``.
        action: the theory.
        axis: lattice axis, the last (time) by default.
    """
    _sites(field, action, "correlator")
    dimensions = action.dimensions
    if not -dimensions <= axis < dimensions:
        raise ConfigError(f"correlator: axis {axis} does not exist in {dimensions} dimensions")
    axis %= dimensions
    others = [1 + mu for mu in range(dimensions) if mu != axis]
    slices = field.to(torch.float64)
    if others:
        slices = slices.mean(others)
    extent = action.lattice[axis]
    # The circular autocorrelation by FFT; real input makes it symmetric in t.
    spectrum = torch.fft.rfft(slices, dim=1).abs().square()
    full = torch.fft.irfft(spectrum, n=extent, dim=1) / extent
    return full[:, : extent // 2 + 1] * (action.volume // extent)


def _sites(field: Tensor, action: Action, name: str) -> Tensor:
    if action.is_gauge:
        raise ConfigError(f"{name} is an observable of scalar fields, not of {action.group.name}")
    return field.reshape(field.shape[0], -1).to(torch.float64)
