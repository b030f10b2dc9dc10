r"""Plaquettes and staples of links on a hypercubic lattice.

Link arrays are ``(chains, d, *L, *element)``.  The plaquette in the (mu, nu) plane is
:math:`P_{\mu\nu}(x) = U_\mu(x)\,U_\nu(x+\mu)\,U_\mu(x+\nu)^\dagger\,U_\nu(x)^\dagger`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from flowmc.lattice import shift

__all__ = ["planes", "plaquette_angles", "plaquettes", "staples"]


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
