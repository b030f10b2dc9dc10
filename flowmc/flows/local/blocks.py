r"""Blocks of a lattice: what is updated, the collar of frozen sites around it, and tilings.

A scalar action of interaction range r couples a block to the sites within r of it and to no others:
given that *collar*, the block is independent of the rest of the lattice.  Block and collar
together are a *patch*; everything a local update needs is in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action, name_of
from flowmc.lattice import coordinates
from flowmc.registry import ConfigError

__all__ = ["Block", "Tiling"]


class Block:
    """A block of sites in a lattice of any number of dimensions, and its collar.

    Args:
        extents: of the block, one per direction of the lattice.
        reach: width of the collar, the interaction range of the action.

    Attributes:
        patch: extents of the patch, ``extents + 2 reach``.
        inside: indices in C order of the block's sites in the patch, ``(sites,)`` int64.
        collar: those of the other sites of the patch.

    Raises:
        ConfigError: for extents below 1.
    """

    def __init__(self, extents: Sequence[int], reach: int) -> None:
        self.extents, self.reach = tuple(int(extent) for extent in extents), int(reach)
        if not self.extents or min(self.extents) < 1 or self.reach < 1:
            raise ConfigError(
                f"a block needs extents and a reach of at least 1, got {list(extents)} and {reach}"
            )
        self.patch = tuple(extent + 2 * self.reach for extent in self.extents)
        inside = torch.ones(self.patch, dtype=torch.bool)
        for at, extent in zip(coordinates(self.patch), self.extents, strict=True):
            inside &= (at >= self.reach) & (at < self.reach + extent)
        self.inside = inside.flatten().nonzero().squeeze(1)
        self.collar = (~inside).flatten().nonzero().squeeze(1)

    @classmethod
    def of(cls, action: Action, extents: Sequence[int]) -> Block:
        """Return the block with the collar that an action needs.

        Raises:
            ConfigError: for a gauge theory, an action without a range, another number of
                dimensions, or a lattice on which a block and its collar do not fit.
        """
        if not action.is_scalar:
            raise ConfigError(f"local updates move scalar fields, but the theory is {action!r}")
        if action.interaction_range is None:
            raise ConfigError(
                f"the action {name_of(action)!r} does not say how far it "
                "reaches: set its attribute interaction_range (1 for nearest neighbours) if it is "
                "the same everywhere on the lattice"
            )
        # Before tables are made of what is in the block.
        _check_fits(extents, action.interaction_range, action.lattice)
        return cls(extents, action.interaction_range)

    @property
    def sites(self) -> int:
        """Number of sites of the block."""
        return math.prod(self.extents)

    def check_lattice(self, lattice: Sequence[int]) -> None:
        """Raise ``ConfigError`` unless the block leaves a frozen site between it and itself."""
        _check_fits(self.extents, self.reach, lattice)

    def take(self, patch: Tensor) -> Tensor:
        """Return the block ``(n, *extents)`` of patches ``(n, *patch)``."""
        return patch.flatten(1)[:, self.inside.to(patch.device)].reshape(-1, *self.extents)

    def put(self, block: Tensor, patch: Tensor) -> Tensor:
        """Return patches with other blocks in the middle, ``(n, *patch)``."""
        flat = patch.flatten(1).index_copy(1, self.inside.to(patch.device), block.flatten(1))
        return flat.reshape(patch.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Block):
            return NotImplemented
        return (self.extents, self.reach) == (other.extents, other.reach)

    def __hash__(self) -> int:
        return hash((self.extents, self.reach))

    def __repr__(self) -> str:
        return f"Block({'x'.join(map(str, self.extents))}, reach={self.reach})"


class Tiling:
    """As many blocks as fit on a periodic lattice with the collars between them.

    Neighbouring blocks are ``reach`` sites apart at least, so that the patch of a block has no
    site of another block: they can be updated at the same time, each given what is frozen.

    Args:
        lattice: extents.
        block: what is tiled with.

    Attributes:
        count: number of blocks.
    """

    def __init__(self, lattice: Sequence[int], block: Block) -> None:
        block.check_lattice(lattice)
        self.lattice, self.block = tuple(lattice), block
        per_axis = [
            length // (extent + block.reach)
            for length, extent in zip(lattice, block.extents, strict=True)
        ]
        self.count = math.prod(per_axis)
        tiles, sites = coordinates(per_axis), coordinates(block.patch)
        # Coordinates of the patches' sites, one (count, patch sites) table per direction.
        self._at = [
            tile.reshape(-1, 1) * (extent + block.reach) + site.reshape(1, -1) - block.reach
            for tile, site, extent in zip(tiles, sites, block.extents, strict=True)
        ]

    @property
    def updated_share(self) -> float:
        """Share of the lattice that one update can move."""
        return self.count * self.block.sites / math.prod(self.lattice)

    def patches(self, shift: Tensor) -> Tensor:
        """Return the site indices (in C order) of the patches of shifted tilings.

        Args:
            shift: ``(..., d)`` int64, any integers.

        Returns:
            ``(..., count, patch sites)`` int64, in C order of the patch.
        """
        index = torch.zeros((), dtype=torch.int64, device=shift.device)
        for mu, (length, at) in enumerate(zip(self.lattice, self._at, strict=True)):
            moved = (at.to(shift.device) + shift[..., mu, None, None]) % length
            index = index * length + moved
        return index

    def draw_shift(self, rng: torch.Generator, n: int | None = None) -> Tensor:
        """Draw a shift ``(d,)``, or ``(n, d)``, uniform over the lattice."""
        size = () if n is None else (n,)
        draws = [
            torch.randint(length, size, generator=rng, device=rng.device) for length in self.lattice
        ]
        return torch.stack(draws, -1)


def _check_fits(extents: Sequence[int], reach: int, lattice: Sequence[int]) -> None:
    size, own = ("x".join(map(str, e)) for e in (lattice, extents))
    if len(lattice) != len(extents):
        raise ConfigError(
            f"a block of {own} is of {len(extents)} dimensions, the lattice {size} of "
            f"{len(lattice)}"
        )
    for extent, mine in zip(lattice, extents, strict=True):
        if extent < mine + reach:
            raise ConfigError(
                f"a block of {own} with {reach} frozen site(s) beside it does not fit on a {size} "
                "lattice: use a smaller block"
            )
