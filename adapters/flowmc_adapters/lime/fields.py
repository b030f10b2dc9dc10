"""Scalar and U(1) fields in LIME files.

One message of records: `flowmc-field` (a JSON object: kind, dims, precision, axes, conventions),
`flowmc-metadata` (a JSON object of strings), `flowmc-field-data` (the numbers, big-endian, sites in
the order of ILDG) and `scidac-checksum` (of these bytes). Programs that look for gauge fields find
no record that they know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import scidac_xml
from ..atomic import atomic_write
from ..checksums import parse_hexadecimal
from ..configuration import Checksum, PathLike
from ..errors import FormatError
from ..field_configuration import (
    CONVENTIONS,
    KINDS,
    U1,
    FieldConfiguration,
    is_field_shape,
    site_checksum,
    values_shape,
)
from ..metadata import metadata_text, parse_metadata
from ..selection import selected
from ..text import decode_text
from . import container as lime

FIELD_RECORD, METADATA_RECORD = "flowmc-field", "flowmc-metadata"
DATA_RECORD, CHECKSUM_RECORD = "flowmc-field-data", "scidac-checksum"
_NAME = "flowmc field"


@dataclass(frozen=True)
class _Description:
    kind: str
    dims: tuple[int, ...]
    precision: int


def is_field_file(path: PathLike) -> bool:
    """Whether a LIME file holds a scalar or U(1) field; False for a damaged one."""
    try:
        return any(record.kind == FIELD_RECORD for record in lime.scan_records(path)[0])
    except (FormatError, OSError):
        return False


def read(path: PathLike, selection: str | None = None) -> FieldConfiguration:
    """The field of a file, its checksum computed but not judged.

    Args:
        path: the file.
        selection: "N" for the N-th of several, one behind the other; None for the first.

    Raises:
        FormatError: damaged, truncated, or no such field.
    """
    records, warnings = lime.scan_records(path)
    starts = [i for i, record in enumerate(records) if record.kind == FIELD_RECORD]
    if selection is not None or len(starts) > 1:
        starts = starts or [0]
        if selection is None:
            warnings.append(
                f"{len(starts)} fields, of which the first was read: FILE#N selects another one"
            )
        place = selected(path, range(len(starts)), selection)
        records = records[starts[place] : [*starts, len(records)][place + 1]]
    found = {record.kind: record for record in reversed(records)}
    for kind in (FIELD_RECORD, DATA_RECORD):
        if kind not in found:
            raise FormatError(
                path,
                Path(path).stat().st_size,
                f"no '{kind}' record among {[record.kind for record in records][:20]}: not a "
                "scalar or U(1) field, or truncated before it",
            )
    description = _parse(path, found[FIELD_RECORD])
    data = found[DATA_RECORD]
    shape = values_shape(description.dims, description.kind)
    stored = np.dtype(f">f{description.precision // 8}")
    if data.length != math.prod(shape) * stored.itemsize:
        raise FormatError(
            path,
            data.offset,
            f"a field of shape {shape} has {math.prod(shape) * stored.itemsize} bytes, the record "
            f"has {data.length}: damaged",
        )
    values = np.empty(shape, stored)
    with open(path, "rb") as file:
        file.seek(data.data_offset)
        if file.readinto(values.reshape(-1).view(np.uint8).data) != data.length:
            raise FormatError(path, data.data_offset, "the file ends inside the field: truncated")
    values = values.astype(stored.newbyteorder("="))
    metadata: dict[str, str] | None = {}
    if METADATA_RECORD in found:
        text = decode_text(lime.read_data(path, found[METADATA_RECORD]))
        metadata = parse_metadata(text)
        if metadata is None:
            warnings.append(f"record '{METADATA_RECORD}' is not a JSON object of texts: ignored")
    checksum = None
    if CHECKSUM_RECORD in found:
        text = decode_text(lime.read_data(path, found[CHECKSUM_RECORD]))
        sums = [parse_hexadecimal(scidac_xml.tag_text(text, tag) or "") for tag in ("suma", "sumb")]
        known = [f"{one:x}" for one in sums if one is not None]
        checksum = Checksum(
            "scidac",
            " ".join(known) if len(known) == 2 else "unreadable",
            site_checksum(values, description.kind, ">").text,
        )
    return FieldConfiguration(
        values, description.kind, metadata or {}, warnings, checksum, format="lime"
    )


def write(path: PathLike, field: FieldConfiguration) -> None:
    """Write a field atomically; equal arguments give equal bytes."""
    description = {
        "format": _NAME,
        "version": 1,
        "kind": field.kind,
        "dims": list(field.dims),
        "precision": field.precision,
        "axes": "sites as in ILDG, the first direction fastest"
        + ("; directions inside the site" if field.kind == U1 else ""),
        "conventions": CONVENTIONS[field.kind],
    }
    sums = site_checksum(field.values, field.kind, ">").sums
    with atomic_write(path) as file:
        text = json.dumps(description, sort_keys=True)
        lime.write_record(file, FIELD_RECORD, text.encode("ascii"), begin=True, end=False)
        text = metadata_text(field.metadata)
        lime.write_record(file, METADATA_RECORD, text.encode("ascii"), begin=False, end=False)
        size = field.values.nbytes
        file.write(lime.record_header(DATA_RECORD, size, begin=False, end=False))
        for part in _parts(field):
            file.write(part)
        file.write(bytes(lime.padding(size)))
        text = scidac_xml.scidac_checksum(*sums)
        lime.write_record(file, CHECKSUM_RECORD, text.encode("ascii"), begin=False, end=True)


def _parts(field: FieldConfiguration) -> Iterator[bytes]:
    """The bytes of the field, one time slice after the other."""
    stored = np.dtype(f">f{field.precision // 8}")
    for time_slice in field.values:
        yield np.ascontiguousarray(time_slice, dtype=stored).tobytes()


def _parse(path: PathLike, record: lime.LimeRecord) -> _Description:
    text = decode_text(lime.read_data(path, record))

    def wrong(reason: str) -> FormatError:
        return FormatError(path, record.offset, f"record '{FIELD_RECORD}': {reason}")

    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"no JSON object: {error}; damaged") from error
    if not isinstance(found, dict) or found.get("kind") not in KINDS:
        raise wrong(f"the kind of field is none of {', '.join(KINDS)}")
    dims, precision = found.get("dims"), found.get("precision")
    if not isinstance(dims, list) or not all(type(extent) is int for extent in dims):
        raise wrong("dims are not a list of integers")
    shape = values_shape(tuple(dims), found["kind"])
    if len(dims) > 16 or not is_field_shape(shape, found["kind"]) or precision not in (32, 64):
        raise wrong(f"dims {dims} or precision {precision} make no sense")
    return _Description(found["kind"], tuple(dims), precision)
