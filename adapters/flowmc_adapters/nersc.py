"""The format "nersc": the archive format of the Gauge Connection.

An ASCII header of `KEY = VALUE` lines between `BEGIN_HEADER` and `END_HEADER`, then the links up to
the end of the file, in the order of `payload`, with all rows (`4D_SU3_GAUGE_3x3`) or without the
last one (`4D_SU3_GAUGE`). Sources: the readers and writers of QDP++, Grid, GPT, MILC, CPS, PyQUDA
and SIMULATeQCD, which disagree in details; the header written here is accepted by all of them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from .atomic import atomic_write
from .checksums import NerscChecksum, parse_hexadecimal
from .configuration import Checksum, Configuration, Header, at_precision
from .errors import FormatError
from .formats import Format, PathLike
from .lime_text import parse_integer, parse_real
from .metadata import carried_keys
from .observables import group_errors, link_trace, plaquettes
from .payload import (
    PayloadLayout,
    check_size,
    links_as_bytes,
    raw_slices,
    read_links,
    require_finite,
    require_four_dimensions,
)

_BEGIN = b"BEGIN_HEADER"
_END = re.compile(rb"(?m)^END_HEADER[ \t\r]*\n")
_LARGEST_HEADER = 2**17
_DATATYPE = re.compile(r"4D_SU(\d{1,3})_GAUGE(?:_(\d{1,3})[xX](\d{1,3}))?")
_FLOATING_POINT = re.compile(r"IEEE(32|64)(BIG|LITTLE|SMALL)?")
# QDP++ reads at most 127 characters a line, newline included; MILC fewer than 128 lines.
_LONGEST_LINE = 126
_MOST_LINES = 126


class NerscFormat(Format):
    """NERSC archive: QDP++/Chroma, Grid, GPT, MILC, CPS, SIMULATeQCD, PyQUDA."""

    name = "nersc"
    description = "NERSC archive (Chroma, Grid, GPT, MILC, CPS, SIMULATeQCD, PyQUDA)"

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By the first line."""
        return head.startswith(_BEGIN)

    def read_header(self, path: PathLike, *, dims: tuple[int, ...] | None = None) -> Header:
        """See `Format.read_header`. A byte order that the header leaves open stays open."""
        return _parse_header(path)[0]

    def read(self, path: PathLike, *, dims: tuple[int, ...] | None = None) -> Configuration:
        """See `Format.read`.

        A header that says `IEEE32` or `IEEE64` without byte order means big-endian to some codes
        and little-endian to others: the checksum decides, without one unitarity does.
        """
        header, layouts = _parse_header(path)
        layout = layouts[0] if len(layouts) == 1 else _resolve_byte_order(path, header, layouts)
        if layout.rows < layout.nc:
            header.warnings.append(
                f"the file holds {layout.rows} rows of each matrix; the last one was reconstructed "
                "and may differ in the last bits from that of the code that wrote the file"
            )
        checksum = NerscChecksum()
        links = read_links(path, layout, checksum.update)
        stored = None if header.checksum is None else header.checksum.stored
        return Configuration(
            links=links,
            metadata=header.metadata,
            warnings=header.warnings,
            checksum=(
                None
                if stored is None
                else Checksum("nersc", stored, checksum.text(layout.byte_order))
            ),
            stored_plaquette=header.plaquette,
            stored_link_trace=header.link_trace,
            format=self.name,
        )

    def write(
        self, path: PathLike, configuration: Configuration, *, precision: int | None = None
    ) -> list[str]:
        """See `Format.write`. Always big-endian, all rows."""
        require_four_dimensions(path, configuration.links, "NERSC")
        links, warnings = at_precision(configuration.links, precision)
        require_finite(path, links)
        checksum = NerscChecksum()
        for raw in links_as_bytes(links, ">"):
            checksum.update(raw)
        header, dropped = _header_text(
            path,
            configuration,
            bits=32 if links.itemsize == 8 else 64,
            checksum=checksum.text(">"),
            plaquette=plaquettes(links).mean,
            trace=link_trace(links),
        )
        with atomic_write(path) as file:
            file.write(header)
            for raw in links_as_bytes(links, ">"):
                file.write(raw.data)
        return warnings + dropped


def _parse_header(path: PathLike) -> tuple[Header, list[PayloadLayout]]:
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
    layouts = [PayloadLayout(match.end(), dims, nc, rows, precision, order) for order in orders]
    size = Path(path).stat().st_size
    check_size(path, size, layouts[0])
    excess = size - match.end() - layouts[0].total_bytes
    if excess:
        warnings.append(f"{excess} bytes follow the links that the header announces")
    header = Header(
        format=NerscFormat.name,
        dims=dims,
        nc=nc,
        precision=precision,
        payload_offset=match.end(),
        payload_bytes=layouts[0].total_bytes,
        checksum=_stored_checksum(keys, warnings),
        plaquette=_stored_real(keys, "PLAQUETTE", warnings),
        link_trace=_stored_real(keys, "LINK_TRACE", warnings),
        metadata=keys,
        warnings=warnings,
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


def _resolve_byte_order(
    path: PathLike, header: Header, layouts: list[PayloadLayout]
) -> PayloadLayout:
    """The layout that the checksum singles out, or else the one with the more unitary links."""
    checksum = NerscChecksum()
    with open(path, "rb") as file:
        for raw in raw_slices(file, path, layouts[0]):
            checksum.update(raw)
    stored = None if header.checksum is None else header.checksum.stored
    matching = [layout for layout in layouts if checksum.text(layout.byte_order) == stored]
    reason = "the checksum"
    if len(matching) != 1:
        reason = "the links being in the group, not by the checksum"
        matching = [min(layouts, key=lambda layout: _unitarity(path, layout))]
    name = {">": "big", "<": "little"}[matching[0].byte_order]
    header.warnings.append(
        f"FLOATING_POINT leaves the byte order open: {name}-endian, decided by {reason}"
    )
    return matching[0]


def _unitarity(path: PathLike, layout: PayloadLayout) -> float:
    try:
        return group_errors(read_links(path, layout)).unitarity
    except FormatError:
        return math.inf


def _header_text(
    path: PathLike,
    configuration: Configuration,
    *,
    bits: int,
    checksum: str,
    plaquette: float,
    trace: float,
) -> tuple[bytes, list[str]]:
    """The header, and warnings on what did not fit.

    Every line is `KEY = VALUE` with single blanks and a non-empty value, which MILC insists on.
    """
    nc, metadata = configuration.nc, configuration.metadata
    number = metadata.get("SEQUENCE_NUMBER", "0")
    if parse_integer(number) is None:
        raise FormatError(
            path,
            None,
            f"SEQUENCE_NUMBER must be an integer (Grid reads it as one) and is {number!r}: set it "
            "in the metadata",
        )
    values = {
        "HDR_VERSION": "1.0",
        "DATATYPE": f"4D_SU{nc}_GAUGE_{nc}x{nc}",
        "STORAGE_FORMAT": "1.0",
    }
    values |= {f"DIMENSION_{i}": str(extent) for i, extent in enumerate(configuration.dims, 1)}
    values |= {"LINK_TRACE": decimal_text(trace), "PLAQUETTE": decimal_text(plaquette)}
    free = carried_keys(metadata)
    values |= {f"BOUNDARY_{i}": free.pop(f"BOUNDARY_{i}", "PERIODIC") for i in (1, 2, 3, 4)}
    values["CHECKSUM"] = checksum
    # A date of our own would make equal input give different files.
    values |= {
        "ENSEMBLE_ID": free.pop("ENSEMBLE_ID", "unknown"),
        "ENSEMBLE_LABEL": free.pop("ENSEMBLE_LABEL", "unknown"),
        "SEQUENCE_NUMBER": number.strip(),
        "CREATOR": free.pop("CREATOR", "flowmc"),
        "CREATOR_HARDWARE": free.pop("CREATOR_HARDWARE", "unknown"),
        "CREATION_DATE": free.pop("CREATION_DATE", "unknown"),
        "ARCHIVE_DATE": free.pop("ARCHIVE_DATE", "unknown"),
    }
    free.pop("SEQUENCE_NUMBER", None)
    values |= free
    values["FLOATING_POINT"] = f"IEEE{bits}BIG"
    lost = sorted(key for key in metadata if key not in values and key.upper() != key)
    warnings = [f"NERSC headers have no place for: {', '.join(lost)}"] if lost else []
    lines = []
    for key, value in values.items():
        # One line of printable ASCII, whatever the metadata hold
        text = " ".join(value.split()).encode("ascii", errors="replace").decode("ascii")
        line = f"{key} = {text or 'unknown'}"
        if len(line) > _LONGEST_LINE:
            warnings.append(f"{key} cut to the {_LONGEST_LINE} characters of a NERSC header line")
            line = line[:_LONGEST_LINE].rstrip()
        lines.append(line)
    if len(lines) > _MOST_LINES - 2:
        raise FormatError(
            path, None, f"{len(lines)} header lines, MILC reads {_MOST_LINES}: drop some metadata"
        )
    return "\n".join(["BEGIN_HEADER", *lines, "END_HEADER", ""]).encode("ascii"), warnings


def decimal_text(value: float) -> str:
    """A plaquette or link trace with 12 significant digits, never fewer than 12 decimals.

    GPT looks for a decimal point and takes the number of decimals for the accuracy, PyQUDA compares
    to a relative 1e-9. At most 15 decimals: a double-precision mean is not known any better.
    """
    decimals = 12
    if value != 0 and math.isfinite(value):
        decimals = min(15, max(12, 11 - math.floor(math.log10(abs(value)))))
    return f"{value:.{decimals}f}"
