"""Scalar and U(1) fields in memory, with what their file said about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from .checksums import ScidacChecksum
from .configuration import Checksum, number_of

RealArray = npt.NDArray[np.floating[Any]]

SCALAR, U1 = "scalar", "u1"
KINDS = (SCALAR, U1)
CONVENTIONS = {
    SCALAR: "one real number phi(x) per site",
    U1: "angles theta_mu(x) in radians, link U_mu(x) = exp(i theta_mu(x)), mu in the order of dims",
}


@dataclass
class FieldConfiguration:
    """A real scalar field or the angles of U(1) links.

    `values` is float32 or float64, C order: a scalar field `(L_{d-1}, ..., L_0)`, U(1) angles
    `(L_{d-1}, ..., L_0, d)`, so that the first direction runs fastest among the sites, as in gauge
    fields. `metadata` may hold any strings; these keys have a meaning:

        ACTION           the action and its couplings, as TOML or JSON
        CONVENTIONS      anything a reader must know to use the field
        ENSEMBLE_ID      name of the ensemble
        CHAIN            number of the Markov chain
        SEQUENCE_NUMBER  configuration (trajectory) number, a decimal integer
        RANDOM_STATE     where the chain's random numbers stand: seed, chain and update, or a file

    Attributes:
        values: the field.
        kind: "scalar" or "u1".
        metadata: see above.
        warnings: oddities met while reading.
        checksum: stored and computed, or None if the file has none.
        failed_checks: as in `Configuration`.
        format: name of the format it was read from, or "".

    Raises:
        ValueError: `values` is not an array of that type and shape, or the kind is unknown.
    """

    values: RealArray
    kind: str = SCALAR
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    checksum: Checksum | None = None
    failed_checks: dict[str, str] = field(default_factory=dict)
    format: str = ""

    def __post_init__(self) -> None:
        if self.values.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"values must be float32 or float64, not {self.values.dtype}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; not {self.kind!r}")
        if not is_field_shape(self.values.shape, self.kind):
            expected = "(Lt, ..., Lx)" if self.kind == SCALAR else "(Lt, ..., Lx, d)"
            raise ValueError(f"{self.kind} values must be {expected}, not {self.values.shape}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Extents (Lx, ..., Lt)."""
        return tuple(reversed(self.values.shape[: -1 if self.kind == U1 else None]))

    @property
    def precision(self) -> int:
        """Bits of a number, 32 or 64."""
        return 8 * self.values.dtype.itemsize

    @property
    def number(self) -> int | None:
        """Configuration (trajectory) number, or None if there is none."""
        return number_of(self.metadata)


def is_field_shape(shape: tuple[int, ...], kind: str) -> bool:
    """Whether an array of this shape can be a field of this kind."""
    if not shape or min(shape) < 1:
        return False
    return kind == SCALAR or (len(shape) >= 3 and shape[-1] == len(shape) - 1)


def values_shape(dims: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Shape of the values of a field of extents (Lx, ..., Lt)."""
    return (*reversed(dims), *((len(dims),) if kind == U1 else ()))


def site_checksum(values: npt.NDArray[Any], kind: str, byte_order: str) -> ScidacChecksum:
    """The SciDAC checksum of a field whose numbers are stored in this byte order.

    Args:
        values: as in `FieldConfiguration`.
        kind: "scalar" or "u1".
        byte_order: ">" or "<".
    """
    per_site = values.shape[-1] if kind == U1 else 1
    stored = np.dtype(f"{byte_order}f{values.dtype.itemsize}")
    checksum = ScidacChecksum(per_site * stored.itemsize)
    volume = math.prod(values.shape[: -1 if kind == U1 else None])
    slice_sites = volume // values.shape[0]
    for t, time_slice in enumerate(values):  # a copy of one time slice, not of the field
        raw = np.ascontiguousarray(time_slice, dtype=stored).reshape(-1).view(np.uint8)
        checksum.update(t * slice_sites, raw)
    return checksum


def compact_plaquette(angles: npt.NDArray[Any]) -> float:
    """Mean of cos theta_P over the plaquettes of a U(1) field `(L_{d-1}, ..., L_0, d)`."""
    dimensions = angles.shape[-1]
    total = 0.0
    for mu, nu in combinations(range(dimensions), 2):
        # Direction mu is axis d - 1 - mu
        first, second = angles[..., mu], angles[..., nu]
        around = (
            first
            + np.roll(second, -1, axis=dimensions - 1 - mu)
            - np.roll(first, -1, axis=dimensions - 1 - nu)
            - second
        )
        total += float(np.cos(around, dtype=np.float64).mean())
    return total / math.comb(dimensions, 2)
