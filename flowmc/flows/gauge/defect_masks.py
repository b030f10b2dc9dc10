r"""Which links a defect flow moves, in which layers, and how their staples are told apart.

**Shells.**  Shell 0 are the defect links.  The shell of a plaquette is the smallest of its four
links; links that are in no shell yet are in shell k + 1 if they lie in a plaquette of shell k.  So
shell 1 are the other links of the plaquettes that the defect weakens, and a link of shell k is k
plaquettes away from the defect.

**Classes.**  A closing path of a link is in the class given by the shell of the link, whether the
link is parallel to the defect links, the shell of the plaquette (that of the link or one less),
how many defect links the plaquette has (0, 1 or 2), and whether its plane contains the direction of
the defect links.  The list of classes depends on the number of shells alone, neither on the box
nor on the lattice.

**Layers.**  A layer holds links of one direction whose sites have the same colour, no two of which
share a plaquette.  Even extents have the two colours of a checkerboard.  With an odd extent
the colours are :math:`\sum_\nu c_\nu(x_\nu) \bmod 3`, where :math:`c_\nu` is 0 and 1 in turn and
2 on the last slice of an odd direction: neighbours differ in one term, which changes by 1 or 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowmc.actions.defect import DefectWilson
from flowmc.flows.gauge.link_masks import LinkLayer, link_indices, path_indices
from flowmc.lattice import coordinates, shift
from flowmc.plaquettes import planes

__all__ = ["DefectLayer", "PathClass", "defect_layers", "link_shells", "path_classes"]


class PathClass(NamedTuple):
    """What tells the staples of a defect flow apart; see the module docstring."""

    link_shell: int
    is_parallel: bool
    plaquette_shell: int
    defect_links: int
    contains_axis: bool


@dataclass(frozen=True)
class DefectLayer(LinkLayer):
    """The links that one layer moves; indices are those of the flow's buffer.

    Attributes:
        classes: ``(links, paths)``: index of each closing path's class.
    """

    classes: Tensor

    def to(self, device: torch.device) -> DefectLayer:
        plain = super().to(device)
        return DefectLayer(plain.direction, plain.active, plain.paths, self.classes.to(device))


def path_classes(shells: int) -> list[PathClass]:
    """Return the classes of the paths of links in the shells 0 to ``shells`` - 1, in order."""
    classes = [PathClass(0, True, 0, count, True) for count in (1, 2)]
    for shell in range(1, shells):
        for is_parallel in (True, False):
            # A plane that contains a link of that direction contains the direction.
            inclusions = (True,) if is_parallel else (True, False)
            if shell > 1:
                classes += [
                    PathClass(shell, is_parallel, shell - 1, 0, contains) for contains in inclusions
                ]
            else:
                counts = (1,) if is_parallel else (1, 2)
                classes += [PathClass(1, is_parallel, 0, count, True) for count in counts]
            classes += [
                PathClass(shell, is_parallel, shell, 0, contains) for contains in inclusions
            ]
    return classes


def link_shells(action: DefectWilson, shells: int) -> Tensor:
    """Return the shell of every link, int64 ``(d, *L)``; ``shells`` for all from there on."""
    shell = torch.where(action.defect_links(), 0, shells)[:, None]
    for current in range(shells - 1):
        reached = shell.clone()
        for mu, nu in planes(action.dimensions):
            near = (_plaquette_minimum(shell, mu, nu) == current).to(torch.int64)
            touching = {
                mu: near | shift(near, nu, -1),
                nu: near | shift(near, mu, -1),
            }
            for direction, touched in touching.items():
                reached[direction] = torch.where(
                    touched.bool() & (reached[direction] == shells), current + 1, reached[direction]
                )
        shell = reached
    return shell[:, 0]


def _plaquette_minimum(values: Tensor, mu: int, nu: int) -> Tensor:
    u, v = values[mu], values[nu]
    return torch.stack([u, v, shift(u, nu), shift(v, mu)]).amin(0)


def defect_layers(action: DefectWilson, shells: int) -> tuple[list[DefectLayer], Tensor, int]:
    """Return the layers of one sweep, which together move every link of the shells once.

    Args:
        action: has the lattice and the defect.
        shells: number of shells that move, >= 1.

    Returns:
        The layers; the indices in the lattice of the links of the buffer; and how many of these
        move, the first ones.
    """
    lattice, d = action.lattice, action.dimensions
    sites = torch.stack([axis.reshape(-1) for axis in coordinates(lattice)])
    colours = _colours(sites, lattice)
    # One shell more: plaquettes may have links beyond the moved ones, but none in a lower shell.
    shell = link_shells(action, shells + 1).reshape(-1)
    defect = action.defect_links().reshape(-1)
    number = {key: index for index, key in enumerate(path_classes(shells))}
    chosen = []
    for mu in range(d):
        moves = shell[link_indices(sites, mu, lattice)] < shells
        for colour in range(int(colours.max()) + 1):
            here = sites[:, moves & (colours == colour)]
            if here.shape[1]:
                active = link_indices(here, mu, lattice)
                chosen.append((mu, active, path_indices(here, "plaquette", mu, lattice)))
    moved = torch.cat([active for _, active, _ in chosen]).sort().values
    touched = torch.cat([paths.reshape(-1) for _, _, paths in chosen]) % len(shell)
    frozen = touched.unique()
    frozen = frozen[~torch.isin(frozen, moved)]
    links = torch.cat([moved, frozen])
    local = torch.full_like(shell, -1)
    local[links] = torch.arange(len(links))
    layers = []
    for mu, active, paths in chosen:
        plain = paths % len(shell)
        classes = _classify(action, mu, active, plain, shell, defect, number)
        # Inverses stand behind all links of the buffer.
        index = local[plain] + len(links) * (paths >= len(shell))
        layers.append(DefectLayer(mu, local[active], {"plaquette": index}, classes))
    return layers, links, len(moved)


def _classify(
    action: DefectWilson,
    mu: int,
    active: Tensor,
    paths: Tensor,
    shell: Tensor,
    defect: Tensor,
    number: dict[PathClass, int],
) -> Tensor:
    """Return the class of every path, ``(links, paths)``; ``paths`` are plain link indices."""
    axis = action.defect_axis
    own = shell[active][:, None]
    plaquette = torch.minimum(shell[paths].amin(0), own)
    counts = defect[paths].sum(0) + defect[active][:, None]
    # A closing path begins with the link of the other direction of its plane.
    others = paths[0] // action.volume
    contains = (others == axis) | (mu == axis)
    key = torch.stack([own.expand_as(counts), plaquette, counts, contains.to(torch.int64)], -1)
    found, inverse = key.reshape(-1, 4).unique(dim=0, return_inverse=True)
    indices = [
        number[PathClass(link, mu == axis, least, count, bool(inside))]
        for link, least, count, inside in found.tolist()
    ]
    return torch.tensor(indices)[inverse].reshape(counts.shape)


def _colours(sites: Tensor, lattice: Sequence[int]) -> Tensor:
    """Return the colour of every site; ``sites`` is ``(d, volume)``."""
    odd = [extent % 2 == 1 for extent in lattice]
    if not any(odd):
        return sites.sum(0) % 2
    steps = sites % 2
    for axis, extent in enumerate(lattice):
        if odd[axis]:
            steps[axis][sites[axis] == extent - 1] = 2
    return steps.sum(0) % 3
