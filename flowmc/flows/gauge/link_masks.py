r"""Which links a masked layer moves, and the frozen paths that close them to loops.

A layer moves the links of one direction mu on one colour of sites.  A *closing path* of the link
:math:`U_\mu(x)` starts at :math:`x + \hat\mu` and ends at :math:`x`; its product C makes
:math:`\mathrm{tr}\,U_\mu(x) C` a closed loop.  The Jacobian of a layer is block diagonal, one block
per link, if no closing path contains a link that moves in the same layer.  That is what the
colours are for:

* ``parity``: two colours, :math:`\sum_\nu x_\nu \bmod 2`.  Staples contain links of direction mu
  only at the odd distance :math:`x \pm \hat\nu`, which are frozen.  It needs even extents; also at
  extent 2, where both staples of a plane share the frozen link :math:`U_\mu(x + \hat\nu)`.
* ``fine``: colours :math:`(\sum_\nu x_\nu \bmod 4,\; \oplus_\nu x_\nu b_\nu)` with distinct bit
  vectors :math:`b_\nu` of :math:`\lceil \log_2 d \rceil` bits: 8 colours in two dimensions, 16 in
  three and four.  Loops of six links contain links of direction mu at
  :math:`x \pm \hat\nu \pm \hat\rho` and :math:`x \pm 2\hat\nu`.  The first number separates all of
  these but :math:`x + \hat\nu - \hat\rho`, and there :math:`b_\nu \oplus b_\rho \ne 0`.  It needs
  extents divisible by four.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowmc.lattice import check_even, coordinates

__all__ = [
    "LOOPS",
    "LinkLayer",
    "closing_paths",
    "link_indices",
    "link_layers",
    "path_indices",
    "put_links",
    "take_links",
    "uses_fine_mask",
]

# A step is (direction, +1 or -1); a path is a tuple of steps.
Step = tuple[int, int]
Path = tuple[Step, ...]

LOOPS: dict[str, tuple[str, ...]] = {
    "plaquette": ("plaquette",),
    "rectangle": ("rectangle_across", "rectangle_along"),
    "chair": ("chair_across", "chair_aside"),
}
"""Loop shapes by name, each with the positions that the moved link can have in it.

The link is a short side (*across*) or half of a long side (*along*) of the planar 2x1 rectangle;
in the bent 2x1 rectangle, called chair, it is parallel to the crease (*across*) or perpendicular
to it (*aside*).  Each position has a coefficient of its own.
"""


@dataclass(frozen=True)
class LinkLayer:
    """The links that one layer moves, with their closing paths, as indices of flattened links.

    Attributes:
        direction: mu.
        active: ``(links,)``; link (mu, x) has the index ``mu * volume + site``.
        paths: per loop position ``(steps, links, paths)``: indices into the links followed by
            their inverses, so that an inverse is the index of its link plus ``d * volume``.
    """

    direction: int
    active: Tensor
    paths: dict[str, Tensor]

    @property
    def index_tensors(self) -> list[Tensor]:
        """The indices of the active links, then those of the paths."""
        return [self.active, *self.paths.values()]

    @functools.cached_property
    def gathered(self) -> Tensor:
        """All of :attr:`index_tensors`, flattened one after the other."""
        return torch.cat([index.reshape(-1) for index in self.index_tensors])

    def to(self, device: torch.device) -> LinkLayer:
        """Return a copy on another device."""
        paths = {position: index.to(device) for position, index in self.paths.items()}
        return LinkLayer(self.direction, self.active.to(device), paths)


def take_links(links: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``links`` and the entries ``links[:, index]``; go on with the returned ``links``.

    :func:`take_links` and :func:`put_links` hand one buffer, and in the backward pass one buffer
    of gradients, from layer to layer and change it in place, where ``index_select`` and
    ``index_copy`` would fill and add arrays of the size of the lattice for every layer.
    """
    return _Take.apply(links, index)


def put_links(links: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Overwrite ``links[:, index]`` in place and return ``links``; see :func:`take_links`."""
    return _Put.apply(links, index, values)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, links, index):
        ctx.save_for_backward(index)
        ctx.mark_dirty(links)
        return links, links.index_select(1, index)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, taken):
        (index,) = ctx.saved_tensors
        return gradient.index_add_(1, index, taken), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx, links, index, values):
        ctx.save_for_backward(index)
        ctx.mark_dirty(links)
        return links.index_copy_(1, index, values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        values = gradient.index_select(1, index)
        return gradient.index_fill_(1, index, 0), None, values


def closing_paths(position: str, mu: int, dimensions: int) -> list[Path]:
    """Return the paths from x + mu to x that close a link to loops of one kind.

    Args:
        position: one of the values of :data:`LOOPS`.
        mu: direction of the link.
        dimensions: d.
    """
    forward, backward = (mu, 1), (mu, -1)
    sideways = [(nu, sign) for nu in range(dimensions) if nu != mu for sign in (1, -1)]
    paths: list[Path] = []
    for out in sideways:
        home = (out[0], -out[1])
        if position == "plaquette":
            paths.append((out, backward, home))
        elif position == "rectangle_across":
            paths.append((out, out, backward, home, home))
        elif position == "rectangle_along":
            paths.append((forward, out, backward, backward, home))
            paths.append((out, backward, backward, home, forward))
        for turn in sideways:
            if turn[0] == out[0]:
                continue
            unturn = (turn[0], -turn[1])
            if position == "chair_across":
                paths.append((out, turn, backward, unturn, home))
            elif position == "chair_aside":
                paths.append((turn, out, unturn, backward, home))
                paths.append((out, backward, turn, home, unturn))
    return paths


def uses_fine_mask(loops: Sequence[str]) -> bool:
    """Return whether these loops need the fine mask: all but the plaquette do."""
    return any(loop != "plaquette" for loop in loops)


def link_layers(lattice: Sequence[int], loops: Sequence[str]) -> list[LinkLayer]:
    """Return the layers of one sweep, which together move every link once.

    Args:
        lattice: extents.
        loops: keys of :data:`LOOPS`.

    Raises:
        ValueError: if the extents do not fit the mask.
    """
    fine = uses_fine_mask(loops)
    if fine:
        unfit = [extent for extent in lattice if extent % 4]
        if unfit:
            raise ValueError(
                "a residual flow with rectangles or chairs needs extents divisible by 4, but the "
                f"lattice is {'x'.join(map(str, lattice))}; with plaquettes only it needs even ones"
            )
    else:
        check_even(lattice, "a residual flow")
    dimensions = len(lattice)
    sites = torch.stack([axis.reshape(-1) for axis in coordinates(lattice)])
    colours = _colours(sites, fine)
    positions = [position for loop in loops for position in LOOPS[loop]]
    layers = []
    for mu in range(dimensions):
        # Once per direction for all sites: most of the work, and shared by the colours.
        everywhere = {}
        for position in positions:
            everywhere[position] = path_indices(sites, position, mu, lattice)
        links = link_indices(sites, mu, lattice)
        for colour in range(int(colours.max()) + 1):
            chosen = colours == colour
            paths = {position: index[:, chosen] for position, index in everywhere.items()}
            layers.append(LinkLayer(mu, links[chosen], paths))
    return layers


def _colours(sites: Tensor, fine: bool) -> Tensor:
    """Return the colour of every site; ``sites`` is ``(d, volume)``."""
    total = sites.sum(0)
    if not fine:
        return total % 2
    colour = total % 4
    for bit in range((len(sites) - 1).bit_length()):
        chosen = [nu for nu in range(len(sites)) if nu >> bit & 1]
        colour = colour + 4 * 2**bit * (sites[chosen].sum(0) % 2)
    return colour


def link_indices(sites: Tensor, mu: int, lattice: Sequence[int]) -> Tensor:
    """Return the indices ``(links,)`` of the links mu at ``sites``, ``(d, links)``, modulo L."""
    index = torch.full_like(sites[0], mu)
    for axis, extent in zip(sites, lattice, strict=True):
        index = index * extent + axis % extent
    return index


def path_indices(sites: Tensor, position: str, mu: int, lattice: Sequence[int]) -> Tensor:
    """Return all closing paths of the links mu at ``sites``, ``(steps, links, paths)``.

    See :func:`closing_paths` and :class:`LinkLayer`.
    """
    found = closing_paths(position, mu, len(lattice))
    return torch.stack([_path_index(sites, path, mu, lattice) for path in found], dim=2)


def _path_index(sites: Tensor, path: Path, mu: int, lattice: Sequence[int]) -> Tensor:
    """Return ``(steps, links)``; a backward step is the inverse of the link behind."""
    links = len(lattice) * int(torch.tensor(lattice).prod())
    here = sites.clone()
    here[mu] += 1
    steps = []
    for nu, sign in path:
        if sign < 0:
            here[nu] -= 1
        steps.append(link_indices(here, nu, lattice) + (0 if sign > 0 else links))
        if sign > 0:
            here[nu] += 1
    return torch.stack(steps)
