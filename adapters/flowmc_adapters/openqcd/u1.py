"""The U(1) field in configurations exported by openQ*D.

Little-endian: four int32 T, X, Y, Z; for the gauge group SU(3) x U(1) the SU(3) plaquette and links
as in openQCD; then the mean of Re U_P of the U(1) field as a double and its links as non-compact
doubles A, with U = exp(i A), in the order of the SU(3) links. A pure U(1) field lacks the SU(3)
part. Source: openQ*D, `modules/archive/archive.c`.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass

import numpy as np

from ..configuration import PathLike
from ..errors import FormatError
from ..field_configuration import U1, FieldConfiguration, compact_plaquette
from .links import link_positions

U1_CHECK = "U(1) field"
"""Name of the entry in `Header.failed_checks` of links that come with a U(1) field."""

_EXTENTS = struct.Struct("<4i")
_PLAQUETTE = struct.Struct("<d")
_SU3_SITE, _U1_SITE = 576, 32
_LARGEST_EXTENT = 4096
# As that of SU(3) headers, see `checks`
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class U1Place:
    """Where the U(1) field of a file is.

    Attributes:
        offset: byte of the plaquette before it.
        dims: extents (Lx, Ly, Lz, Lt).
        alone: whether there are no SU(3) links.
    """

    offset: int
    dims: tuple[int, ...]
    alone: bool


def find_u1(path: PathLike) -> U1Place | None:
    """The place of the U(1) field, told by the extents and the size of the file; None if there is
    none."""
    with open(path, "rb") as file:
        head = file.read(_EXTENTS.size)
    if len(head) < _EXTENTS.size:
        return None
    time, *space = _EXTENTS.unpack(head)
    dims = (*space, time)
    if any(not 1 <= extent <= _LARGEST_EXTENT or extent % 2 for extent in dims):
        return None
    volume = math.prod(dims)
    own = _PLAQUETTE.size + _U1_SITE * volume
    before = os.stat(path).st_size - own
    if before == _EXTENTS.size:
        return U1Place(before, dims, alone=True)
    if before == _EXTENTS.size + _PLAQUETTE.size + _SU3_SITE * volume:
        return U1Place(before, dims, alone=False)
    return None


def read_u1(path: PathLike, place: U1Place) -> FieldConfiguration:
    """The angles, their plaquette compared with the stored one but not insisted on.

    Raises:
        FormatError: the file ends early.
        OSError: it cannot be opened.
    """
    *space, slices = place.dims
    with open(path, "rb") as file:
        file.seek(place.offset)
        raw = file.read(_PLAQUETTE.size + _U1_SITE * math.prod(place.dims))
    if len(raw) != _PLAQUETTE.size + _U1_SITE * math.prod(place.dims):
        raise FormatError(path, place.offset + len(raw), "the file ends inside the U(1) field")
    (stored,) = _PLAQUETTE.unpack_from(raw)
    numbers = np.frombuffer(raw, "<f8", offset=_PLAQUETTE.size).reshape(slices, -1)
    angles = np.empty((slices, *reversed(space), 4))
    for t, (here, following) in enumerate(zip(numbers, np.roll(numbers, -1, 0), strict=True)):
        odd, spatial, temporal = link_positions(place.dims, (t, 0, place.dims[2]))
        angles[t, ..., :3] = here.take(spatial)
        angles[t, ..., 3] = np.where(odd, here.take(temporal), following.take(temporal))
    field = FieldConfiguration(angles, U1, format="openqcd")
    with np.errstate(all="ignore"):  # damaged files may hold infinities
        present = compact_plaquette(angles)
    if not abs(stored - present) <= _TOLERANCE:
        field.failed_checks["plaquette"] = (
            f"the U(1) plaquette in the file is {stored:.12g}, that of the angles with periodic "
            f"boundaries {present:.12g}: damaged, or a field with other boundary conditions (C* or "
            "open), whose numbers are read all the same with check_checksum=False or "
            "--ignore-checksum"
        )
    return field
