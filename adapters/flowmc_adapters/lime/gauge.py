"""Reading gauge fields from LIME files: which records belong together and what they say.

ILDG and SciDAC (QIO) files hold the same bytes of links under different record types, with
overlapping metadata, so both formats are read here. The payload is big-endian, its order
that of `layout`; the checksum is `checksums.ScidacChecksum`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from .. import scidac_xml
from ..byte_order import group_fits, proven_order
from ..checksums import parse_hexadecimal
from ..configuration import Checksum, Header
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout
from ..selection import selected, split_selection
from ..text import decode_text, parse_integer
from . import container as lime
from .metadata import (
    EXTRA_RECORD,
    PRIVATE_RECORD,
    record_metadata,
    stored_observables,
    writer,
)

ILDG_PAYLOAD = "ildg-binary-data"
SCIDAC_PAYLOAD = "scidac-binary-data"
# Records that describe the file as a whole, and those that belong to one payload.
_FILE_LEVEL = frozenset(
    {"scidac-private-file-xml", "scidac-file-xml", "xlf-info", "grid-format", EXTRA_RECORD}
)
# Of metadata of ours, in characters
_LONGEST_EXTRA = 2**24
# QDP_D3_ColorMatrix, USQCD_F3_ColorMatrix, GRID_D_LorentzVector4_ColourMatrix3 and
# QUDA_DNc3_GaugeField; QDP++ of 2004 calls every field just so
_GAUGE_DATATYPE = re.compile(r"\w*(Colou?rMatrix|GaugeField)\w*|Lattice")
_RECORD_LEVEL = frozenset(
    {
        PRIVATE_RECORD,
        "scidac-record-xml",
        "ildg-format",
        "ildg-data-lfn",
        "scidac-checksum",
    }
)


def payload_kinds(path: PathLike) -> set[str]:
    """Which of the two payload record types occur in a file; empty for a damaged one."""
    try:
        records, _ = lime.scan_records(path)
    except (FormatError, OSError):
        return set()
    return {record.kind for record in records} & {ILDG_PAYLOAD, SCIDAC_PAYLOAD}


def find_gauge_record(
    path: PathLike, format_name: str, dims: tuple[int, ...] | None = None
) -> Header:
    """Find the gauge field of a file and what is said about it.

    Args:
        path: the file, or FILE#N for the N-th gauge field in it.
        format_name: goes into the header.
        dims: extents, for files without an ildg-format or SciDAC record.

    Raises:
        FormatError: no gauge field, or no such one, contradictory records, or extents unknown.
    """
    path, selection = split_selection(path)
    records, warnings = lime.scan_records(path)
    segments = _segments(records)
    if not segments:
        raise FormatError(
            path,
            Path(path).stat().st_size,
            f"no '{ILDG_PAYLOAD}' or '{SCIDAC_PAYLOAD}' record among "
            f"{[record.kind for record in records]}: not a gauge field, or truncated before it",
        )
    found: list[Header] = []
    refusals: list[FormatError] = []
    file_texts = _texts(path, records, _FILE_LEVEL)
    for payload, segment in segments:
        try:
            found.append(_gauge_record(path, format_name, dims, file_texts, payload, segment))
        except FormatError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    chosen = selected(path, found, selection)
    if len(segments) > 1 and selection is None:
        warnings.append(
            f"{len(segments)} binary records, {len(found)} of them gauge fields: reading the one "
            f"at byte {'?' if chosen.layout is None else chosen.layout.offset}"
            + ("; FILE#N selects another one" if len(found) > 1 else "")
        )
    chosen.warnings[:0] = warnings
    return chosen


def _segments(
    records: list[lime.LimeRecord],
) -> list[tuple[lime.LimeRecord, list[lime.LimeRecord]]]:
    """Each binary record with the records around it that describe it.

    A segment ends with the first checksum after the binary record, or with the binary record if
    another one follows without a checksum between; the last one reaches to the end of the file.
    Message flags are not used: real writers get them wrong.
    """
    binaries = [
        i for i, record in enumerate(records) if record.kind in (ILDG_PAYLOAD, SCIDAC_PAYLOAD)
    ]
    segments = []
    start = 0
    for i, following in pairwise([*binaries, len(records)]):
        end = i + 1
        if following == len(records):
            end = following
        else:
            kinds = [record.kind for record in records[i:following]]
            if "scidac-checksum" in kinds:
                end = i + kinds.index("scidac-checksum") + 1
        segments.append((records[i], records[start:end]))
        start = end
    return segments


def _texts(path: PathLike, records: list[lime.LimeRecord], kinds: frozenset[str]) -> dict[str, str]:
    """Text of the first record of each kind; that of ours may be in several pieces."""
    texts: dict[str, str] = {}
    pieces: list[str] = []
    for record in records:
        if record.kind not in kinds:
            continue
        if record.kind == EXTRA_RECORD:
            if sum(map(len, pieces)) <= _LONGEST_EXTRA:
                pieces.append(decode_text(lime.read_data(path, record)))
        elif record.kind not in texts:
            texts[record.kind] = decode_text(lime.read_data(path, record))
    return texts | ({EXTRA_RECORD: "".join(pieces)} if pieces else {})


def _gauge_record(
    path: PathLike,
    format_name: str,
    dims: tuple[int, ...] | None,
    file_texts: dict[str, str],
    payload: lime.LimeRecord,
    segment: list[lime.LimeRecord],
) -> Header:
    """Interpret one binary record as a gauge field, or raise FormatError."""
    texts = file_texts | _texts(path, segment, _RECORD_LEVEL)

    def wrong(reason: str) -> FormatError:
        return FormatError(path, payload.offset, reason)

    dims = _extents(path, payload, texts, dims)
    volume = math.prod(dims)
    site_bytes, remainder = divmod(payload.length, volume)
    nc, precision = _colours_and_precision(site_bytes)
    if remainder or nc == 0:
        raise wrong(
            f"{payload.length} bytes of data do not make a gauge field on a lattice of "
            f"{'x'.join(map(str, dims))} sites"
        )
    warnings: list[str] = []
    layout = Layout(payload.data_offset, dims, nc, nc, precision, ">")
    layout = proven_order(path, layout, warnings)
    in_group = group_fits(path, layout)
    _check_claims(wrong, texts, nc, precision, site_bytes, in_group, warnings)
    stored = _stored_checksum(path, texts, warnings)
    missing = None
    if stored is None:
        if PRIVATE_RECORD in texts:
            missing = "no checksum record, which every QIO file has: probably truncated"
        elif not payload.message_end and payload is segment[-1]:
            missing = "no checksum record, and the LIME message does not end: probably truncated"
        else:
            warnings.append("no checksum in this file: damage would go unnoticed")
    plaquette, trace = stored_observables(texts)
    return Header(
        format=format_name,
        dims=dims,
        nc=nc,
        precision=precision,
        layout=layout,
        writer=writer(texts),
        checksum=None if stored is None else Checksum("scidac", stored, None),
        plaquette=plaquette,
        link_trace=trace,
        metadata=record_metadata(texts, nc, precision, warnings),
        warnings=warnings,
        failed_checks={} if missing is None else {"checksum": missing},
    )


def _extents(
    path: PathLike,
    payload: lime.LimeRecord,
    texts: dict[str, str],
    given: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """Extents from all records that state them, which must agree."""
    claims: dict[str, tuple[int, ...]] = {} if given is None else {"the caller": tuple(given)}
    extents = _ildg_extents(payload, texts.get("ildg-format", ""))
    if extents:
        claims["ildg-format"] = tuple(-1 if extent is None else extent for extent in extents)
    if "scidac-private-file-xml" in texts:
        text = texts["scidac-private-file-xml"]
        stated = scidac_xml.tag_text(text, "dims")
        if stated is not None:
            parsed = map(parse_integer, stated.split())
            claims["scidac-private-file-xml"] = tuple(-1 if n is None else n for n in parsed)
        if scidac_xml.tag_integer(text, "volfmt") not in (None, 0):
            raise FormatError(
                path,
                payload.offset,
                "one part of a multi-file QIO volume, which cannot be read: convert it to "
                "single-file with QIO first",
            )
    for source, extents_claimed in claims.items():
        if len(extents_claimed) != 4 or min(extents_claimed) < 1:
            raise FormatError(
                path,
                payload.offset,
                f"extents in {source} are damaged or not four positive numbers",
            )
    if len(set(claims.values())) > 1:
        raise FormatError(path, payload.offset, f"contradictory lattice extents: {claims}")
    if not claims:
        raise FormatError(
            path,
            payload.offset,
            "the file does not state its lattice extents (no ildg-format record): give them as "
            "dims=(Lx, Ly, Lz, Lt), or --dims on the command line",
        )
    return next(iter(claims.values()))


def _ildg_extents(payload: lime.LimeRecord, text: str) -> list[int | None]:
    """The extents in an ildg-format record; one that it leaves out from the size of the links, if
    the record has what that takes; none if it leaves out more."""
    tags = [f"l{name}" for name in "xyzt"]
    present = [scidac_xml.tag_text(text, tag) is not None for tag in tags]
    extents = [scidac_xml.tag_integer(text, tag) for tag in tags]
    if all(present):
        return extents
    precision = scidac_xml.tag_integer(text, "precision")
    field = re.fullmatch(r"su(\d{1,3})gauge", scidac_xml.tag_text(text, "field") or "su3gauge")
    known = [extent for extent in extents if extent is not None and extent > 0]
    if len(known) != 3 or precision not in (32, 64) or field is None:
        return []
    missing, rest = divmod(payload.length, int(field[1]) ** 2 * precision * math.prod(known))
    if rest or not missing:
        return []
    return [extent if here else missing for extent, here in zip(extents, present, strict=True)]


def _colours_and_precision(site_bytes: int) -> tuple[int, int]:
    """N and precision from the bytes of a site, 4 * 2 N^2 * (4 or 8); (0, 0) if there are none.

    Unique, because N^2 = 2 M^2 has no solution.
    """
    for precision in (32, 64):
        squared, remainder = divmod(site_bytes, precision)
        nc = math.isqrt(squared)
        if remainder == 0 and nc > 0 and nc * nc == squared:
            return nc, precision
    return 0, 0


def _check_claims(
    wrong: Callable[[str], FormatError],
    texts: dict[str, str],
    nc: int,
    precision: int,
    site_bytes: int,
    in_group: bool,
    warnings: list[str],
) -> None:
    """Compare what the records say about a site with what its size says."""
    if "ildg-format" in texts:
        text = texts["ildg-format"]
        claimed = scidac_xml.tag_integer(text, "precision")
        if claimed not in (None, precision):
            raise wrong(f"ildg-format says {claimed} bit, the size of the links says {precision}")
        field = re.fullmatch(r"su(\d{1,3})gauge", scidac_xml.tag_text(text, "field") or "")
        if field is not None and int(field[1]) != nc:
            says = f"ildg-format says {field[0]}, the size of the links says N = {nc}"
            # All that Grid ever called its fields before November 2021
            if int(field[1]) != 3 or not in_group:
                raise wrong(says)
            warnings.append(f"{says}, as in files of Grid before November 2021")
    record = texts.get(PRIVATE_RECORD, "")
    for tag in ("recordtype", "globaldata"):  # the latter in version 1.0
        if scidac_xml.tag_integer(record, tag) not in (None, 0):
            raise wrong(f"the SciDAC record is not a lattice field ({tag} is not 0)")
    datatype = scidac_xml.tag_text(record, "datatype")
    # Propagators and others may have as many bytes as links of some N
    if datatype and not _GAUGE_DATATYPE.fullmatch(datatype):
        raise wrong(
            f"the SciDAC record holds a field of type {datatype[:80]!r}, not colour matrices: no "
            "gauge field"
        )
    size = scidac_xml.tag_integer(record, "typesize")
    count = scidac_xml.tag_integer(record, "datacount")
    if size is not None and count is not None and size * count != site_bytes:
        raise wrong(
            f"the SciDAC record announces {size} x {count} bytes per site, there are {site_bytes}"
        )
    colours = scidac_xml.tag_integer(record, "colors")
    # Older QUDA writes the square, MILC and QUDA leave it out.
    if colours not in (None, 0, nc, nc * nc) and not (colours == 3 and in_group):
        raise wrong(f"the SciDAC record says N = {colours}, the size of the links says {nc}")


def _stored_checksum(path: PathLike, texts: dict[str, str], warnings: list[str]) -> str | None:
    text = texts.get("scidac-checksum")
    if text is None:
        return None
    sums = [parse_hexadecimal(scidac_xml.tag_text(text, tag) or "") for tag in ("suma", "sumb")]
    if None in sums:
        # Kept as a checksum that nothing can equal, so that it fails the check.
        warnings.append("the scidac-checksum record is damaged")
        return "unreadable"
    return " ".join(f"{value:x}" for value in sums if value is not None)
