"""What a configuration file holds, in memory: `Configuration`, and `Header` without the links."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .layout import Layout

PathLike = str | os.PathLike[str]
ComplexArray = npt.NDArray[np.complexfloating[Any, Any]]

DIRECTIONS = "xyzt"


@dataclass(frozen=True)
class Checksum:
    """A checksum found in a file beside the one computed from its payload.

    Attributes:
        kind: "nersc" (32-bit sum), "scidac" (suma and sumb), "milc" (sum29 and sum31), or another
            of a format of its own; two numbers are separated by a blank.
        stored: hexadecimal text, lower case without leading zeros, or None if the file has none.
        computed: the same from the payload, or None where only a header was read.
        binding: whether a mismatch is an error; a warning where writers disagree on how to print
            it.
    """

    kind: str
    stored: str | None
    computed: str | None
    binding: bool = True

    @property
    def ok(self) -> bool | None:
        """Whether the two agree; None if one of them is missing."""
        if self.stored is None or self.computed is None:
            return None
        return self.stored == self.computed


@dataclass(frozen=True)
class Header:
    """Everything a file says about its links, without the links.

    Attributes:
        format: name of the format in the registry.
        dims: extents (Lx, Ly, Lz, Lt), the first direction first.
        nc: number of colours N.
        precision: 32 or 64, the bits of one real number.
        layout: where the links are and how they are stored, or None if that is no regular layout.
        writer: the code that wrote the file, as far as the file tells, or "".
        checksum: with `computed` None, or None if the format has no checksum.
        plaquette: the stored mean plaquette, normalised to 1, or None.
        boundary: boundary conditions other than periodic that the file shows: "schroedinger"
            (functional), "charge conjugation" (G-parity or C*), else "".
        open_weights: whether `plaquette` of a field with open boundaries in time is the weighted
            mean, see `Measurements.weighted_plaquette`.
        link_trace: the stored mean link trace, normalised to 1, or None.
        metadata: source strings by name, see `Configuration.metadata`.
        warnings: oddities that did not prevent reading.
        failed_checks: checks that the header alone fails, e.g. a missing checksum record.
    """

    format: str
    dims: tuple[int, ...]
    nc: int
    precision: int
    layout: Layout | None = None
    writer: str = ""
    checksum: Checksum | None = None
    plaquette: float | None = None
    link_trace: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failed_checks: dict[str, str] = field(default_factory=dict)
    open_weights: bool = False
    boundary: str = ""


@dataclass
class Configuration:
    """A gauge field with what its file said about it.

    `links` is `U[t, z, y, x, mu, row, col]` (ILDG order), complex64 or complex128, C order; mu
    counts x, y, z, t. U_mu(x) is the parallel transporter in
    `P = U_mu(x) U_nu(x+mu) U_mu(x+nu)^dagger U_nu(x)^dagger`. Other numbers of dimensions d follow
    the same pattern: `(L_{d-1}, ..., L_0, d, N, N)`.

    Extents, number of colours and precision are read off the array and cannot disagree with it.

    Attributes:
        links: the field.
        metadata: source strings. NERSC header keys under their own upper-case names
            (`SEQUENCE_NUMBER` is the configuration number whatever the format), LIME text records
            under their record types (`xlf-info`, `ildg-data-lfn`, `scidac-record-xml`, ...).
        warnings: oddities met while reading.
        checksum: what the file stored and what its payload gives, or None.
        failed_checks: checks that failed ("checksum", "plaquette", "link_trace") with the reason.
        stored_plaquette: mean plaquette that the file states, normalised to 1, or None.
        stored_link_trace: mean link trace that the file states, normalised to 1, or None.
        format: name of the format it was read from, or "".

    Raises:
        ValueError: `links` is not a complex array of that shape.
    """

    links: ComplexArray
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    checksum: Checksum | None = None
    failed_checks: dict[str, str] = field(default_factory=dict)
    stored_plaquette: float | None = None
    stored_link_trace: float | None = None
    format: str = ""

    def __post_init__(self) -> None:
        if self.links.dtype not in (np.dtype(np.complex64), np.dtype(np.complex128)):
            raise ValueError(f"links must be complex64 or complex128, not {self.links.dtype}")
        if not is_gauge_shape(self.links.shape):
            raise ValueError(
                f"links must have shape (Lt, Lz, Ly, Lx, 4, N, N), not {self.links.shape}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Extents (Lx, Ly, Lz, Lt)."""
        return tuple(reversed(self.links.shape[:-3]))

    @property
    def nc(self) -> int:
        """Number of colours N."""
        return int(self.links.shape[-1])

    @property
    def precision(self) -> int:
        """Bits of one real number, 32 or 64."""
        return 32 if self.links.dtype == np.complex64 else 64

    @property
    def number(self) -> int | None:
        """Configuration (trajectory) number, or None if the file gave none."""
        return number_of(self.metadata)


def number_of(metadata: Mapping[str, str]) -> int | None:
    """Configuration number in a metadata dictionary, or None."""
    try:
        return int(metadata.get("SEQUENCE_NUMBER", ""))
    except ValueError:
        return None


def is_gauge_shape(shape: tuple[int, ...]) -> bool:
    """Whether `shape` reads as `(L_{d-1}, ..., L_0, d, N, N)` with d >= 2 and no empty axis."""
    dimensions = len(shape) - 3
    return (
        dimensions >= 2
        and shape[-3] == dimensions
        and shape[-1] == shape[-2]
        and all(extent > 0 for extent in shape)
    )
