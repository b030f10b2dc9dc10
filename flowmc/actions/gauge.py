r"""The Wilson gauge action for U(1) and SU(N) in two or more dimensions.

Link arrays are ``(chains, d, *L, *element)``.  The plaquette in the (mu, nu) plane is
:math:`P_{\mu\nu}(x) = U_\mu(x)\,U_\nu(x+\mu)\,U_\mu(x+\nu)^\dagger\,U_\nu(x)^\dagger`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN, U1, Group, parse_group, traceless_antihermitian
from flowmc.lattice import shift, sum_over_sites

__all__ = ["Wilson", "planes", "plaquette_angles", "plaquettes", "staples"]


def planes(dimensions: int) -> Iterator[tuple[int, int]]:
    """Yield the planes (mu, nu) with mu < nu."""
    for mu in range(dimensions):
        for nu in range(mu + 1, dimensions):
            yield mu, nu


def plaquettes(links: Tensor, mu: int, nu: int) -> Tensor:
    """Return the SU(N) plaquettes of one plane as matrices ``(chains, *L, N, N)``."""
    left = links[:, mu] @ shift(links[:, nu], mu)
    right = links[:, nu] @ shift(links[:, mu], nu)
    return left @ right.mH


def plaquette_angles(links: Tensor, mu: int, nu: int) -> Tensor:
    """Return the U(1) plaquette angles of one plane, ``(chains, *L)``, not wrapped."""
    u, v = links[:, mu], links[:, nu]
    return u + shift(v, mu) - shift(u, nu) - v


def staples(links: Tensor, mu: int, nu: int) -> tuple[Tensor, Tensor]:
    r"""Return the two staples of direction mu in the plane (mu, nu), ``(chains, *L, N, N)`` each.

    They close the link, :math:`\mathrm{tr}\,U_\mu(x) A(x)` being traces of plaquettes:
    :math:`A_+ = U_\nu(x+\mu) U_\mu(x+\nu)^\dagger U_\nu(x)^\dagger` and
    :math:`A_- = U_\nu(x+\mu-\nu)^\dagger U_\mu(x-\nu)^\dagger U_\nu(x-\nu)`.
    """
    u, v = links[:, mu], links[:, nu]
    v_ahead = shift(v, mu)
    upper = v_ahead @ (v @ shift(u, nu)).mH
    lower = shift((u @ v_ahead).mH @ v, nu, -1)
    return upper, lower


class Wilson(Action):
    r"""The Wilson plaquette action.

    .. math:: S = -\frac{\beta}{N} \sum_{x} \sum_{\mu<\nu} \mathrm{Re\,tr}\,P_{\mu\nu}(x)

    for SU(N), and :math:`S = -\beta \sum \cos\theta_P` for U(1).  It equals the other usual form
    :math:`\beta \sum (1 - \tfrac1N \mathrm{Re\,tr} P)` minus the constant
    :math:`\beta V d(d-1)/2`.  The measure is Haar (U(1): prod dtheta).

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2, each >= 2.
        beta: inverse coupling.
    """

    name = "wilson"

    def __init__(self, group: str | Group, lattice: Sequence[int], *, beta: float) -> None:
        self.group = parse_group(group) if isinstance(group, str) else group
        if not isinstance(self.group, (U1, SUN)):
            raise ValueError(f"the Wilson action is defined for U(1) and SU(N), not {group}")
        self.lattice = tuple(int(extent) for extent in lattice)
        if len(self.lattice) < 2 or min(self.lattice) < 2:
            raise ValueError(
                f"a gauge theory needs at least two directions of extent >= 2, got "
                f"{list(self.lattice)}"
            )
        self.beta = float(beta)
        self.parameters = {"beta": self.beta}

    def at(self, **couplings: float) -> Wilson:
        unknown = set(couplings) - {"beta"}
        if unknown:
            raise ValueError(f"the Wilson action has the coupling beta, not {sorted(unknown)}")
        return Wilson(self.group, self.lattice, beta=couplings.get("beta", self.beta))

    def __call__(self, field: Tensor) -> Tensor:
        total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        for mu, nu in planes(self.dimensions):
            if not isinstance(self.group, SUN):
                trace = torch.cos(plaquette_angles(field, mu, nu))
            else:
                left = field[:, mu] @ shift(field[:, nu], mu)
                right = field[:, nu] @ shift(field[:, mu], nu)
                # Re tr(A B^dagger) is the real scalar product of the entries.
                trace = (torch.view_as_real(left) * torch.view_as_real(right)).sum((-3, -2, -1))
                trace = trace / self.group.n
            weights = self._plane_weights(mu, nu, field)
            if weights is not None:
                trace = trace * weights
            total = total + sum_over_sites(trace)
        return -self.beta * total

    def force(self, field: Tensor) -> Tensor:
        r"""Return the algebra gradient, shaped like the field.

        SU(N): with A the sum of the 2(d-1) staples, :math:`\partial_a S = -\tfrac{\beta}{N}
        \mathrm{Re\,tr}(T_a U A)`, hence :math:`\sum_a T_a \partial_a S = \tfrac{\beta}{2N}
        (U A)_{TA}` with tr(T_a T_b) = -1/2 delta.  U(1):
        :math:`\beta \sum \pm\sin\theta_P` over the plaquettes that contain the link.
        """
        if not isinstance(self.group, SUN):
            return self._force_u1(field)
        total = torch.zeros_like(field)
        # Each plane serves both of its directions: U_mu(x) A(x) is a plaquette or a conjugated one.
        for mu, nu in planes(self.dimensions):
            for first, second in ((mu, nu), (nu, mu)):
                upper, lower = staples(field, first, second)
                weights = self._plane_weights(mu, nu, field)
                if weights is not None:
                    upper = upper * weights[..., None, None]
                    lower = lower * shift(weights[None], second, -1)[..., None, None]
                total[:, first] += upper
                total[:, first] += lower
        return (self.beta / (2 * self.group.n)) * traceless_antihermitian(field @ total)

    def _force_u1(self, field: Tensor) -> Tensor:
        total = torch.zeros_like(field)
        for mu, nu in planes(self.dimensions):
            sine = torch.sin(plaquette_angles(field, mu, nu))
            weights = self._plane_weights(mu, nu, field)
            if weights is not None:
                sine = sine * weights
            total[:, mu] += sine - shift(sine, nu, -1)
            total[:, nu] += shift(sine, mu, -1) - sine
        return self.beta * total

    def _plane_weights(self, mu: int, nu: int, like: Tensor) -> Tensor | None:
        """Return weights of the plaquettes of a plane, ``(*L)`` like a field; None: all are 1."""
        return None
