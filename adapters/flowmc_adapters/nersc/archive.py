"""The format "nersc": the archive format of the Gauge Connection.

An ASCII header of `KEY = VALUE` lines between `BEGIN_HEADER` and `END_HEADER`, then the links up to
the end of the file, in the order of `payload`, with all rows (`4D_SU3_GAUGE_3x3`) or without the
last one (`4D_SU3_GAUGE`). Sources: the readers and writers of QDP++, Grid, GPT, MILC, CPS, PyQUDA
and SIMULATeQCD, which disagree in details; `nersc_writing` has the headers that are written.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..checksums import NerscChecksum, parse_hexadecimal
from ..configuration import Checksum, Header
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat
from ..lime.text import parse_integer, parse_real
from ..links import LayoutSource
from ..storage import FileStorage
from ..transfer import slabs_of, transfer
from .writing import OPTIONS, nersc_frame

_BEGIN = b"BEGIN_HEADER"
_END = re.compile(rb"(?m)^END_HEADER[ \t\r]*\n")
_LARGEST_HEADER = 2**17
_CHUNK = 2**22
_DATATYPE = re.compile(r"4D_SU(\d{1,3})_GAUGE(?:_(\d{1,3})[xX](\d{1,3}))?")
_FLOATING_POINT = re.compile(r"IEEE(32|64)(BIG|LITTLE|SMALL)?")


class NerscFormat(LayoutFormat):
    """NERSC archive: QDP++/Chroma, Grid, GPT, MILC, CPS, SIMULATeQCD, PyQUDA."""

    name = "nersc"
    description = "NERSC archive (Chroma, Grid, GPT, MILC, CPS, SIMULATeQCD, PyQUDA)"
    options = OPTIONS

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By the first line."""
        return head.startswith(_BEGIN)

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`.

        A header that says `IEEE32` or `IEEE64` without byte order means big-endian to some codes
        and little-endian to others: the checksum decides, without one unitarity does.
        """
        header, layouts = _parse_header(path)
        found = layouts[0] if len(layouts) == 1 else _resolve_byte_order(path, header, layouts)
        if found.rows < found.nc:
            header.warnings.append(
                f"the file holds {found.rows} rows of each matrix; the last one was reconstructed "
                "and may differ in the last bits from that of the code that wrote the file"
            )
        return replace(header, layout=found)

    def new_checksum(self, layout: Layout) -> NerscChecksum:
        """See `LayoutFormat.new_checksum`."""
        return NerscChecksum(layout.byte_order)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `nersc_writing`."""
        return nersc_frame(path, field, options)


def _parse_header(path: PathLike) -> tuple[Header, list[Layout]]:
    """The header, and the layouts that it allows: two if it leaves the byte order open."""
    with open(path, "rb") as file:
        head = file.read(_LARGEST_HEADER)
    match = _END.search(head)
    if not head.startswith(_BEGIN) or match is None:
        raise FormatError(path, len(head), "the NERSC header has no END_HEADER line: truncated")
    warnings: list[str] = []
    keys: dict[str, str] = {}
    # The first line is BEGIN_HEADER itself
    for line in head[: match.start()].decode("latin-1").split("\n")[1:]:
        if not line.strip():
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            warnings.append(f"header line without '=' ignored: {line.strip()[:60]!r}")
            continue
        if key in keys:
            warnings.append(f"header key {key} occurs twice; the last one counts")
        keys[key] = value

    def wrong(reason: str) -> FormatError:
        return FormatError(path, 0, f"NERSC header: {reason}")

    datatype = keys.get("DATATYPE", "")
    parsed = _DATATYPE.fullmatch(datatype)
    if parsed is None:
        hint = (
            ": a random-number state, not a gauge field"
            if re.search("SITMO|RANLUX|MT19937", datatype)
            else ", expected 4D_SU3_GAUGE or 4D_SU3_GAUGE_3x3"
        )
        raise wrong(f"DATATYPE is {datatype!r}{hint}")
    nc = int(parsed[1])
    rows = nc - 1 if parsed[2] is None else int(parsed[2])
    if nc < 2 or (parsed[2] is not None and (rows, int(parsed[3])) not in ((nc, nc), (nc - 1, nc))):
        raise wrong(f"DATATYPE {datatype} makes no sense")
    extents = [parse_integer(keys.get(f"DIMENSION_{i}")) for i in (1, 2, 3, 4)]
    dims = tuple(extent for extent in extents if extent is not None and extent > 0)
    if len(dims) != 4:
        raise wrong("DIMENSION_1 to DIMENSION_4 are not four positive integers")
    floating = _FLOATING_POINT.fullmatch(keys.get("FLOATING_POINT", "IEEE32BIG"))
    if floating is None:
        raise wrong(
            f"FLOATING_POINT is {keys['FLOATING_POINT']!r}, expected IEEE32BIG, IEEE64BIG, "
            "IEEE32LITTLE or IEEE64LITTLE"
        )
    precision = int(floating[1])
    orders = {"BIG": [">"], "LITTLE": ["<"], "SMALL": ["<"], None: [">", "<"]}[floating[2]]
    layouts = [Layout(match.end(), dims, nc, rows, precision, order) for order in orders]
    size = Path(path).stat().st_size
    check_size(path, layouts[0], size)
    excess = size - match.end() - layouts[0].total_bytes
    if excess:
        warnings.append(f"{excess} bytes follow the links that the header announces")
    plaquette, boundary = _stored_real(keys, "PLAQUETTE", warnings), ""
    conjugated = [i for i in range(1, 5) if keys.get(f"BOUNDARY_{i}", "").upper() == "GPARITY"]
    if conjugated:
        names = ", ".join(f"BOUNDARY_{i}" for i in conjugated)
        warnings.append(
            f"{names} = GPARITY: the header's plaquette is that of these boundaries, which is not "
            "computed here, and was not compared"
        )
        plaquette, boundary = None, "charge conjugation"
    header = Header(
        format=NerscFormat.name,
        dims=dims,
        nc=nc,
        precision=precision,
        writer=_writer(keys),
        checksum=_stored_checksum(keys, warnings),
        plaquette=plaquette,
        link_trace=_stored_real(keys, "LINK_TRACE", warnings),
        metadata=keys,
        warnings=warnings,
        boundary=boundary,
    )
    return header, layouts


def _stored_checksum(keys: dict[str, str], warnings: list[str]) -> Checksum | None:
    if "CHECKSUM" not in keys:
        warnings.append("no checksum in this file: damage would go unnoticed")
        return None
    value = parse_hexadecimal(keys["CHECKSUM"])
    if value is None:
        # Kept as a checksum that nothing can equal, so that it fails the check.
        warnings.append(f"CHECKSUM is not a hexadecimal number: {keys['CHECKSUM'][:40]!r}")
        return Checksum("nersc", "unreadable", None)
    return Checksum("nersc", f"{value:x}", None)


def _stored_real(keys: dict[str, str], key: str, warnings: list[str]) -> float | None:
    value = parse_real(keys.get(key))
    if value is None and key in keys:
        warnings.append(f"{key} is not a number: {keys[key][:40]!r}")
    return value


def _writer(keys: dict[str, str]) -> str:
    """The code that wrote a header, told by the order of its keys."""
    names = list(keys)
    if names[:1] == ["CHECKSUM"]:
        return "QDP++"
    if names[:2] == ["HDR_VERSION", "DATATYPE"]:
        return keys.get("CREATOR", "") if keys.get("CREATOR") == "flowmc" else "CPS or Grid"
    if names[:1] == ["DATATYPE"] and len(names) == 9:
        return "SIMULATeQCD"
    return ""


def _resolve_byte_order(path: PathLike, header: Header, layouts: list[Layout]) -> Layout:
    """The layout that the checksum singles out, or else the one with the more unitary links."""
    stored = None if header.checksum is None else header.checksum.stored
    matching = [layout for layout in layouts if _payload_checksum(path, layout) == stored]
    reason = "the checksum"
    if len(matching) != 1:
        reason = "the links being in the group, not by the checksum"
        matching = [min(layouts, key=lambda layout: _unitarity(path, layout))]
    name = {">": "big", "<": "little"}[matching[0].byte_order]
    header.warnings.append(
        f"FLOATING_POINT leaves the byte order open: {name}-endian, decided by {reason}"
    )
    return matching[0]


def _payload_checksum(path: PathLike, layout: Layout) -> str:
    """The checksum of the bytes alone; they need not be numbers in this byte order."""
    checksum = NerscChecksum(layout.byte_order)
    with FileStorage(path) as storage:
        for begin in range(0, layout.total_bytes, _CHUNK):
            raw = np.empty(min(_CHUNK, layout.total_bytes - begin), dtype=np.uint8)
            storage.read(layout.offset + begin, raw)
            checksum.update(0, raw)
    return checksum.text


def _unitarity(path: PathLike, layout: Layout) -> float:
    try:
        with FileStorage(path) as storage:
            source = LayoutSource(storage, layout)
            sums = transfer(source, slabs=slabs_of(layout.dims)[:1]).source
    except FormatError:
        return math.inf
    return max(part.unitarity for part in sums)
