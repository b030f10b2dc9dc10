r"""What joins several ensembles: overlap, and the weakest of the links that hold them together.

The matrix :math:`O_{kl}` says how likely a configuration of ensemble k could be one of l; with
:math:`N_k` configurations each, :math:`F_{kl} = N_k O_{kl} = F_{lk}` of them are shared.  Two
ensembles alone have the error :math:`\delta f^2 = 1 / F_{12} - 1 / N_1 - 1 / N_2` (C. H. Bennett,
J. Comput. Phys. 22 (1976) 245), so that F counts what a free energy difference rests on.

Of the ways to split K ensembles into two groups, K - 1 matter: those that cut the maximum spanning
tree of F at one edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

__all__ = ["SMALLEST_SHARE", "Link", "links_of"]

SMALLEST_SHARE = 0.03  # below which two groups hardly know each other
_FEWEST_SHARED = 10.0  # independent configurations; 1 / F is then an error of 0.3 in ln Z


@dataclass(frozen=True)
class Link:
    """What joins two groups of ensembles.

    Attributes:
        groups: numbers of the ensembles on both sides.
        nearest: the two ensembles, one of each side, that share most.
        share: how likely a configuration of the nearest ensemble could be of the other side.
        shared: independent configurations that both sides share, the sum of F over the cut.
    """

    groups: tuple[tuple[int, ...], tuple[int, ...]]
    nearest: tuple[int, int]
    share: float
    shared: float

    @property
    def is_weak(self) -> bool:
        """Whether what is compared across it is a guess."""
        return self.share < SMALLEST_SHARE or self.shared < _FEWEST_SHARED


def links_of(overlap: NDArray[np.float64], counts: NDArray[np.float64]) -> list[Link]:
    """Return the K - 1 links of K ensembles, the weakest first.

    Args:
        overlap: O, ``(K, K)``.
        counts: independent configurations of every ensemble, ``(K,)``.
    """
    shared = counts[:, None] * overlap
    first, second = np.triu_indices(len(counts), 1)
    # Ranks instead of F: zero would be no edge.
    order = np.argsort(-shared[first, second], kind="stable")
    cost = np.zeros_like(shared)
    cost[first[order], second[order]] = np.arange(1, len(order) + 1)
    tree = minimum_spanning_tree(cost).toarray()
    found = []
    for k, m in zip(*np.nonzero(tree), strict=True):
        cut = tree.copy()
        cut[k, m] = 0
        _, side = connected_components(cut, directed=False)
        here, there = np.flatnonzero(side == side[0]), np.flatnonzero(side != side[0])
        across = overlap[np.ix_(here, there)].sum(1), overlap[np.ix_(there, here)].sum(1)
        nearest = (k, m) if k in here else (m, k)
        found.append(
            Link(
                (tuple(map(int, here)), tuple(map(int, there))),
                (int(nearest[0]), int(nearest[1])),
                float(max(across[0].max(), across[1].max())),
                float(shared[np.ix_(here, there)].sum()),
            )
        )
    return sorted(found, key=lambda link: link.share)
