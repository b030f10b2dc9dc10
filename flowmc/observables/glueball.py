r"""A correlator of plaquettes: the simplest operator for the scalar glueball.

.. math:: \bar P(t) = \frac{1}{V_\perp n} \sum_{x_\perp} \sum_{\text{planes} \perp t}
          \frac1N \mathrm{Re\,tr}\,P(x_\perp, t), \qquad
          C(t) = \frac1L \sum_{t_0} \bar P(t_0)\,\bar P(t_0 + t),

over the n spatial planes, i.e. those without the axis of t.  In two dimensions there is none, and
the plaquettes of the only plane take their place.  The connected part is
:math:`\langle C(t) \rangle - \langle \bar P \rangle^2`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN, traceless_antihermitian
from flowmc.lattice import shift, sum_over_sites
from flowmc.observables.declared import observable
from flowmc.observables.field_strength import require_closed_time
from flowmc.plaquettes import planes, plaquette_angles, plaquettes, staples
from flowmc.registry import ConfigError

__all__ = ["plaquette_correlator", "smear"]


@observable(title="Correlator of spatial plaquettes", has_vacuum_column=True)
def plaquette_correlator(
    field: Tensor,
    action: Action,
    *,
    axis: int = -1,
    smearing_steps: int = 0,
    smearing_weight: float = 0.1,
) -> Tensor:
    r"""Return C(t) for t = 0 ... L / 2, then :math:`\bar P` averaged over t.

    ``(chains, L // 2 + 2)``: the last column is the vacuum expectation value from which the
    connected correlator is formed, and with it the masses, see
    :func:`flowmc.estimators.correlators.connected`.

    Args:
        field: links ``(chains, d, *L[, N, N])``.
        action: the theory.
        axis: of t, the last direction by default.
        smearing_steps: steps of :func:`smear` on the links orthogonal to the axis first.
        smearing_weight: :math:`\rho` of these steps.

    Raises:
        ConfigError: for scalar fields, an axis that does not exist, or smearing in two dimensions.
    """
    dimensions = action.dimensions
    if not action.is_gauge:
        raise ConfigError("plaquette_correlator is an observable of gauge fields")
    require_closed_time(action, "plaquette_correlator")
    if not -dimensions <= axis < dimensions:
        raise ConfigError(
            f"plaquette_correlator: axis {axis} does not exist in {dimensions} dimensions"
        )
    if smearing_steps < 0 or (smearing_steps and dimensions < 3):
        raise ConfigError(
            f"plaquette_correlator: smearing_steps = {smearing_steps}: should be 0 or more, and 0 "
            "in two dimensions, which have no spatial plaquettes"
        )
    axis %= dimensions
    directions = [mu for mu in range(dimensions) if mu != axis]
    for _ in range(smearing_steps):
        field = smear(field, action, directions, smearing_weight)
    spatial = [plane for plane in planes(dimensions) if axis not in plane] or [(0, 1)]
    extent = action.lattice[axis]
    area = action.volume // extent
    slices = sum(_slices(field, action, plane, axis) for plane in spatial) / (len(spatial) * area)
    assert isinstance(slices, Tensor)
    # Not by FFT: the rounding of a real FFT depends on the number of threads.
    products = [sum_over_sites(slices * slices.roll(-t, 1)) for t in range(extent // 2 + 1)]
    return torch.stack([*products, sum_over_sites(slices)], 1) / extent


# What makes connected correlators and masses of it, see flowmc.correlate.


def smear(field: Tensor, action: Action, directions: list[int], weight: float) -> Tensor:
    r"""Return the field after a stout step of some directions among themselves.

    :math:`U_\mu \to \exp(-\rho\,(\sum U_\mu A)_{TA})\,U_\mu` with the staples A that lie in the
    given directions (C. Morningstar and M. Peardon, hep-lat/0311018); for U(1)
    :math:`\theta_\mu \to \theta_\mu - \rho \sum \pm\sin\theta_P`.

    Args:
        field: links.
        action: the theory, of which the group matters.
        directions: links that are smeared, all others stay.
        weight: :math:`\rho`.
    """
    links = list(field.unbind(1))
    for mu in directions:
        move = torch.zeros_like(field[:, mu])
        for nu in directions:
            if nu == mu:
                continue
            if isinstance(action.group, SUN):
                upper, lower = staples(field, mu, nu)
                move = move - weight * traceless_antihermitian(field[:, mu] @ (upper + lower))
            else:
                sine = torch.sin(plaquette_angles(field, mu, nu))
                move = move - weight * (sine - shift(sine, nu, -1))
        links[mu] = action.group.move(field[:, mu], move)
    return torch.stack(links, 1)


def _slices(field: Tensor, action: Action, plane: tuple[int, int], axis: int) -> Tensor:
    """Return the sum of Re tr P / N of one plane over each slice, ``(chains, L_axis)``."""
    if isinstance(action.group, SUN):
        diagonal = torch.diagonal(plaquettes(field, *plane), dim1=-2, dim2=-1)
        trace = diagonal.sum(-1).real / action.group.n
    else:
        trace = torch.cos(plaquette_angles(field, *plane))
    extent = action.lattice[axis]
    rows = trace.movedim(1 + axis, 1).reshape(len(field) * extent, -1)
    return sum_over_sites(rows).reshape(len(field), extent)
