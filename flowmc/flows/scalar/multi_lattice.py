r"""The continuous flow with a kernel of distance: one model for lattices of any size."""

from __future__ import annotations

import torch
from numpy.polynomial.chebyshev import chebvander
from torch import Tensor, nn

from flowmc.actions import Action
from flowmc.flows.scalar.continuous import ContinuousFlow
from flowmc.flows.scalar.symmetric_kernels import point_group_orbits

__all__ = ["MultiLatticeFlow"]


class MultiLatticeFlow(ContinuousFlow):
    r"""One continuous flow for lattices of different spacing, as an operator on fields.

    All lattices are taken for the same box of unit extent along axis 0, with the spacing
    :math:`a = 1 / L_0`.  The weights of :class:`ContinuousFlow` are

    .. math:: W(r) = a^D \sum_{b} V_b\, \exp\Big[-\frac{(a|r| - s_b)^2}{2 \delta^2}\Big]
              + \sum_{k=0}^{n} U_{k,r}\, T_k(2 a / a_0 - 1) :

    a function of the physical distance, so that the sum over sites is that of an integral, with
    Gaussians at :math:`s_b = b\,\delta`, :math:`\delta = 1 / (2 B - 2)`, b = 0 ... B - 1 (a neural
    operator; Mate and Fleuret, arXiv:2401.00828); and, within ``reach`` sites, what depends on the
    lattice: one number per orbit of offsets under all reflections and permutations of axes, as a
    polynomial in the spacing.  :math:`a_0` is the spacing of the coarsest lattice: any finer one is
    inside the range of the polynomials.

    No weight depends on the lattice, and a flow file serves any size.  Train it on a mix of sizes
    (``[[size]]``), or on small ones first and on the large one after that (``start_from``); the
    prior should scale with the box, too (``mass_extent`` of ``free_field``).

    Args:
        action: the theory; gives the lattice.
        coarsest: :math:`1 / a_0`, the extent of axis 0 of the coarsest lattice.
        distances: B, number of Gaussians in the distance, at least 2.
        degree: n, at least 0.
        reach: of the terms of the lattice, in sites along any axis.
        options: the others are those of :class:`ContinuousFlow`.

    Raises:
        ValueError: for numbers out of range, or a lattice coarser than that.
    """

    transfers_to_other_lattices = True

    def __init__(
        self,
        action: Action,
        *,
        coarsest: int,
        distances: int = 6,
        degree: int = 2,
        reach: int = 2,
        frequencies: int = 49,
        site_channels: int = 20,
        time_frequencies: int = 10,
        time_channels: int = 20,
        integrator: str = "rk4",
        steps: int | None = None,
        tolerance: float | None = None,
        adjoint: bool = False,
    ) -> None:
        if distances < 2 or degree < 0 or reach < 0:
            raise ValueError(
                "MultiLatticeFlow needs distances >= 2, degree >= 0 and reach >= 0, got "
                f"{distances}, {degree} and {reach}"
            )
        if not 1 <= coarsest <= action.lattice[0]:
            raise ValueError(
                f"coarsest = {coarsest}: should be the extent of the coarsest lattice along axis "
                f"0, from 1 to that of this one, {action.lattice[0]}"
            )
        self._terms = distances, degree, reach
        self._coarsest = coarsest
        super().__init__(
            action,
            frequencies=frequencies,
            site_channels=site_channels,
            time_frequencies=time_frequencies,
            time_channels=time_channels,
            integrator=integrator,
            steps=steps,
            tolerance=tolerance,
            adjoint=adjoint,
        )

    def _start_kernels(self, site_channels: int, time_channels: int) -> None:
        distances, degree, reach = self._terms
        dimensions = len(self.lattice)
        offsets = [tuple(sorted(site)) for site in self.spectrum.representatives.tolist()]
        # The orbits of a lattice that is just large enough to have them all.
        _, near = point_group_orbits([2 * reach + 1] * dimensions)
        number = {tuple(site): i for i, site in enumerate(near.tolist())}
        self._near = torch.tensor([number.get(offset, len(number)) for offset in offsets])
        spacing = 1 / self.lattice[0]
        distance = spacing * torch.tensor(offsets, dtype=torch.float64).square().sum(1).sqrt()
        width = 0.5 / (distances - 1)
        centres = width * torch.arange(distances, dtype=torch.float64)
        gaussians = (-0.5 * ((distance[:, None] - centres) / width).square()).exp()
        # In float64 and no buffers, which a change of precision would round.
        self._gaussians = spacing**dimensions * gaussians
        polynomials = chebvander(2 * spacing * self._coarsest - 1, degree)[0]
        self._polynomials = torch.from_numpy(polynomials)
        self.far = nn.Parameter(torch.zeros(distances, site_channels, time_channels))
        self.near = nn.Parameter(torch.zeros(degree + 1, len(number), site_channels, time_channels))

    def _spatial_kernels(self) -> Tensor:
        near = torch.tensordot(self._polynomials.to(self.near), self.near, 1)
        # One more row for the orbits that are out of reach.
        near = torch.cat([near, near.new_zeros(1, *near.shape[1:])])
        far = torch.tensordot(self._gaussians.to(self.far), self.far, 1)
        return far + near.index_select(0, self._near.to(near.device))

    def embedded(self, action: Action, reach: int | None = None) -> ContinuousFlow:
        """Raise ``ValueError``: the weights serve any lattice as they are."""
        raise ValueError("the weights of a multi-lattice flow need no embedding")
