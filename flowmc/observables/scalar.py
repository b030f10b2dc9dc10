"""Observables of scalar fields ``(chains, *L)``, and the action density of any field."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.lattice import sum_over_sites
from flowmc.observables.declared import observable
from flowmc.registry import ConfigError

__all__ = [
    "abs_magnetization",
    "action_density",
    "correlator",
    "magnetization",
    "phi2",
    "susceptibility",
]


@observable(title="Action density S/V")
def action_density(field: Tensor, action: Action) -> Tensor:
    """Return S / V, ``(chains,)``."""
    return action(field) / action.volume


@observable(title="Magnetisation m")
def magnetization(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`m = \frac1V \sum_x \phi_x`, ``(chains,)``."""
    return sum_over_sites(_sites(field, action, "magnetization")) / action.volume


@observable(title="Magnetisation |m|")
def abs_magnetization(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`|m|`, ``(chains,)``: the order parameter of a finite lattice."""
    return (sum_over_sites(_sites(field, action, "abs_magnetization")) / action.volume).abs()


@observable(title="⟨φ²⟩")
def phi2(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`\frac1V \sum_x \phi_x^2`, ``(chains,)``."""
    return sum_over_sites(_sites(field, action, "phi2").square()) / action.volume


@observable(title="Susceptibility V m²")
def susceptibility(field: Tensor, action: Action) -> Tensor:
    r"""Return the two-point susceptibility :math:`\chi_2 = V m^2`, ``(chains,)``.

    Its mean is :math:`\sum_x \langle \phi_x \phi_0 \rangle` (not connected).
    """
    return sum_over_sites(_sites(field, action, "susceptibility")).square() / action.volume


@observable(title="Correlator C(t)")
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
    extent = action.lattice[axis]
    area = action.volume // extent
    slices = sum_over_sites(field.movedim(1 + axis, 1).reshape(len(field) * extent, area))
    slices = slices.reshape(len(field), extent) / area
    # Not by FFT: the rounding of a real FFT depends on the number of threads.
    products = [sum_over_sites(slices * slices.roll(-t, 1)) for t in range(extent // 2 + 1)]
    return torch.stack(products, 1) * (area / extent)


def _sites(field: Tensor, action: Action, name: str) -> Tensor:
    if not action.is_scalar:
        raise ConfigError(f"{name} is an observable of scalar fields, not of {action.group.name}")
    return field.reshape(field.shape[0], -1).to(torch.float64)
