"""The format "nersc": the archive format of the Gauge Connection.

An ASCII header of `KEY = VALUE` lines between `BEGIN_HEADER` and `END_HEADER`, then the links up to
the end of the file, in the order of `payload`, with all rows (`4D_SU3_GAUGE_3x3`) or without the
last one (`4D_SU3_GAUGE`). Sources: the readers and writers of QDP++, Grid, GPT, MILC, CPS, PyQUDA
and SIMULATeQCD, which disagree in details; `nersc_writing` has the headers that are written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..byte_order import group_fits, proven_order
from ..checksums import NerscChecksum, parse_hexadecimal
from ..configuration import Checksum, Header
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat
from ..links import LayoutSource
from ..storage import FileStorage
from ..surplus import check_end
from ..text import parse_integer, parse_real
from ..transfer import slabs_of, transfer
from .writing import OPTIONS, nersc_frame

_BEGIN = b"BEGIN_HEADER"
_END = re.compile(rb"(?m)^END_HEADER[ \t\r]*\n")
_LARGEST_HEADER = 2**17
_CHUNK = 2**22
_MOST_COLOURS = 16
# (N, rows) to be tried where DATATYPE is missing
_KINDS = [(3, 3), (3, 2), *((nc, nc) for nc in (2, *range(4, _MOST_COLOURS + 1)))]
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
        and little-endian to others: the checksum decides, without one unitarity does. So it is
        with a key that is missing, if more than one value fits the size of the file.
        """
        header, layouts = _parse_header(path)
        if len(layouts) > 1:
            found = _resolve(path, header, layouts)
        else:
            found = proven_order(path, layouts[0], header.warnings)
            stored = None if header.checksum is None else header.checksum.stored
            if found is not layouts[0] and _payload_checksum(path, layouts[0]) == stored:
                found = replace(found, word_order=layouts[0].byte_order)
        if found.rows < found.nc:
            header.warnings.append(
                f"the file holds {found.rows} rows of each matrix; the last one was reconstructed "
                "and may differ in the last bits from that of the code that wrote the file"
            )
        return replace(
            header, layout=found, dims=found.dims, nc=found.nc, precision=found.precision
        )

    def new_checksum(self, layout: Layout) -> NerscChecksum:
        """See `LayoutFormat.new_checksum`."""
        return NerscChecksum(layout.word_order or layout.byte_order)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `nersc_writing`."""
        return nersc_frame(path, field, options)


def _parse_header(path: PathLike) -> tuple[Header, list[Layout]]:
    """The header, and the layouts that it allows: several if it leaves the byte order open, or a
    key out."""
    warnings: list[str] = []
    keys, end = _read_keys(path, warnings)
    size = Path(path).stat().st_size
    layouts = _layouts(path, keys, end, size, warnings)
    check_size(path, layouts[0], size)
    failed = check_end(path, end + layouts[0].total_bytes, warnings)
    plaquette, boundary = _stored_real(keys, "PLAQUETTE", warnings), ""
    conjugated = [i for i in range(1, 5) if keys.get(f"BOUNDARY_{i}", "").upper() == "GPARITY"]
    if conjugated:
        which = ", ".join(f"BOUNDARY_{i}" for i in conjugated)
        warnings.append(
            f"{which} = GPARITY: the header's plaquette is that of these boundaries, which is not "
            "computed here, and was not compared"
        )
        plaquette, boundary = None, "charge conjugation"
    header = Header(
        format=NerscFormat.name,
        dims=layouts[0].dims,
        nc=layouts[0].nc,
        precision=layouts[0].precision,
        writer=_writer(keys),
        checksum=_stored_checksum(keys, warnings),
        plaquette=plaquette,
        link_trace=_stored_real(keys, "LINK_TRACE", warnings),
        metadata=keys,
        warnings=warnings,
        failed_checks=failed,
        boundary=boundary,
    )
    return header, layouts


def _read_keys(path: PathLike, warnings: list[str]) -> tuple[dict[str, str], int]:
    """The keys of the header with their values, and the byte behind it."""
    with open(path, "rb") as file:
        head = file.read(_LARGEST_HEADER)
    match = _END.search(head)
    if not head.startswith(_BEGIN) or match is None:
        raise FormatError(path, len(head), "the NERSC header has no END_HEADER line: truncated")
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
    return keys, match.end()


def _layouts(
    path: PathLike, keys: Mapping[str, str], begin: int, size: int, warnings: list[str]
) -> list[Layout]:
    """The layouts of a file of that size, whose links begin there, that its keys allow."""
    nc, rows = _datatype(path, keys)
    names = [f"DIMENSION_{i}" for i in (1, 2, 3, 4)]
    extents = [parse_integer(keys.get(name)) for name in names]
    wanted = [extent for name, extent in zip(names, extents, strict=True) if name in keys]
    if len(wanted) < 3 or any(extent is None or extent < 1 for extent in wanted):
        raise _wrong(path, "DIMENSION_1 to DIMENSION_4 are not four positive integers")
    floating = _FLOATING_POINT.fullmatch(keys.get("FLOATING_POINT", "IEEE32BIG"))
    if floating is None:
        raise _wrong(
            path,
            f"FLOATING_POINT is {keys['FLOATING_POINT']!r}, expected IEEE32BIG, IEEE64BIG, "
            "IEEE32LITTLE or IEEE64LITTLE",
        )
    precision = int(floating[1])
    orders = {"BIG": [">"], "LITTLE": ["<"], "SMALL": ["<"], None: [">", "<"]}[floating[2]]
    missing = [name for name in ("DATATYPE", *names, "FLOATING_POINT") if name not in keys]
    if not missing:
        dims = tuple(extent for extent in extents if extent is not None)
        layouts = [Layout(begin, dims, nc, rows, precision, order) for order in orders]
        if layouts[0].total_bytes != size - begin and nc == 3:
            layouts = _of_old_grid(path, layouts, size - begin, warnings)
        return layouts
    is_stated = "FLOATING_POINT" in keys
    layouts = [
        Layout(begin, full, n, r, bits, order)
        for n, r in ([(nc, rows)] if "DATATYPE" in keys else _KINDS)
        for bits in ((precision,) if is_stated else (32, 64))
        for order in (orders if is_stated else (">", "<"))
        for full in _completed(extents, (size - begin) // (r * n * bits))
    ]
    layouts = [one for one in layouts if begin + one.total_bytes == size]
    if not layouts:
        what = ", ".join(missing)
        raise _wrong(path, f"it lacks {what}, and the size of the file fits no value")
    warnings.append(f"the header lacks {', '.join(missing)}: the size of the file decides")
    return layouts


def _datatype(path: PathLike, keys: Mapping[str, str]) -> tuple[int, int]:
    """N and the number of rows that are stored of every link."""
    datatype = keys.get("DATATYPE", "4D_SU3_GAUGE_3x3")
    parsed = _DATATYPE.fullmatch(datatype)
    if parsed is None:
        hint = (
            ": a random-number state, not a gauge field"
            if re.search("SITMO|RANLUX|MT19937", datatype)
            else ", expected 4D_SU3_GAUGE or 4D_SU3_GAUGE_3x3"
        )
        raise _wrong(path, f"DATATYPE is {datatype!r}{hint}")
    nc = int(parsed[1])
    rows = nc - 1 if parsed[2] is None else int(parsed[2])
    if nc < 2 or (parsed[2] is not None and (rows, int(parsed[3])) not in ((nc, nc), (nc - 1, nc))):
        raise _wrong(path, f"DATATYPE {datatype} makes no sense")
    return nc, rows


def _wrong(path: PathLike, reason: str) -> FormatError:
    return FormatError(path, 0, f"NERSC header: {reason}")


def _completed(extents: list[int | None], sites: int) -> list[tuple[int, ...]]:
    """The extents, a missing one such that the lattice has that many sites; none if none fits."""
    known = math.prod(extent for extent in extents if extent is not None)
    if None not in extents:
        return [tuple(extent or 0 for extent in extents)]
    last = sites // known
    return [tuple(last if extent is None else extent for extent in extents)] if last else []


def _of_old_grid(
    path: PathLike, layouts: list[Layout], payload: int, warnings: list[str]
) -> list[Layout]:
    """The layouts of an SU(N) file that calls itself SU(3), as Grid wrote before November 2021; as
    they are if the size and the links do not say so. The short form had two rows whatever N was.

    Raises:
        FormatError: two rows are not enough to restore the others.
    """
    short = layouts[0].rows < layouts[0].nc
    for nc in range(2, _MOST_COLOURS + 1):
        rows = 2 if short else nc
        others = [replace(layout, nc=nc, rows=rows) for layout in layouts]
        if others[0].total_bytes == payload and any(group_fits(path, one) for one in others):
            if rows < nc - 1:
                raise FormatError(
                    path,
                    others[0].offset,
                    f"the header says SU(3), but these are the first {rows} rows of SU({nc}) "
                    "matrices, as Grid wrote them before November 2021: the others cannot be "
                    "restored; ask for the file with all rows",
                )
            warnings.append(
                f"the header says SU(3), but size and links are those of SU({nc}), as Grid wrote "
                "them before November 2021"
            )
            return others
    return layouts


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


def _resolve(path: PathLike, header: Header, layouts: list[Layout]) -> Layout:
    """The layout that the checksum singles out, or else the one with the more unitary links."""
    stored = None if header.checksum is None else header.checksum.stored
    orders = {layout.byte_order for layout in layouts}
    reason = "the links being in the group, not by the checksum"
    if len(orders) > 1:
        agreeing = [
            order
            for order in sorted(orders)
            if _payload_checksum(path, replace(layouts[0], byte_order=order)) == stored
        ]
        if len(agreeing) == 1:
            layouts = [layout for layout in layouts if layout.byte_order == agreeing[0]]
            reason = "the checksum"
    chosen = layouts[0]
    if len(layouts) > 1:
        chosen = min(layouts, key=lambda layout: _unitarity(path, layout))
        reason = "the links being in the group, not by the checksum"
    if len(orders) > 1:
        name = {">": "big", "<": "little"}[chosen.byte_order]
        header.warnings.append(
            f"FLOATING_POINT leaves the byte order open: {name}-endian, decided by {reason}"
        )
    return chosen


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
        # Nonsense where the layout is wrong
        with FileStorage(path) as storage, np.errstate(all="ignore"):
            source = LayoutSource(storage, layout)
            sums = transfer(source, slabs=slabs_of(layout.dims)[:1]).source
    except FormatError:
        return math.inf
    return max(part.unitarity for part in sums)
