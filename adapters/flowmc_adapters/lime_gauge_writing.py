"""Writing gauge fields to LIME files, in the layout that all the common readers accept.

QIO's record order with the ILDG records in it satisfies Chroma, MILC, QUDA, Grid, GPT, tmLQCD,
SIMULATeQCD and PyQUDA alike. Records of ours come last: QIO wants its own first, and every reader
skips types that it does not know.
"""

from __future__ import annotations

import json

from . import lime, lime_text
from .atomic import atomic_write
from .checksums import ScidacChecksum
from .configuration import Configuration, at_precision
from .formats import PathLike
from .lime_gauge import EXTRA_RECORD, ILDG_PAYLOAD, SCIDAC_PAYLOAD, TEXT_RECORDS
from .metadata import carried_keys, is_capital_key
from .observables import link_trace, plaquettes
from .payload import PayloadLayout, links_as_bytes, require_finite, require_four_dimensions

# SIMULATeQCD takes any record beyond this many bytes for the links.
_LARGEST_RECORD = 100_000
_SOURCE_RECORD = "source-record-xml"


def write_gauge(
    path: PathLike,
    configuration: Configuration,
    *,
    precision: int | None,
    ildg: bool,
) -> list[str]:
    """Write a gauge field in QIO's layout; see `Format.write`.

    Two messages, as QIO writes them: `scidac-private-file-xml scidac-file-xml`, and
    `scidac-private-record-xml scidac-record-xml [ildg-format ildg-data-lfn] payload
    scidac-checksum`; then one message each for `xlf-info` and for metadata of ours, if there are
    any. With `ildg` the bracketed records are there and the payload is `ildg-binary-data`, else
    `scidac-binary-data`.
    """
    name = "ILDG" if ildg else "SciDAC"
    require_four_dimensions(path, configuration.links, name)
    links, warnings = at_precision(configuration.links, precision)
    require_finite(path, links)
    dims, nc = configuration.dims, configuration.nc
    precision = 32 if links.itemsize == 8 else 64
    metadata = configuration.metadata
    plaquette, trace = plaquettes(links).mean, link_trace(links)
    layout = PayloadLayout(0, dims, nc, nc, precision, ">")
    checksum = ScidacChecksum(layout.site_bytes)

    file_xml = metadata.get("scidac-file-xml", lime_text.NO_FILE_XML)
    if "<usqcdInfo" in file_xml:  # Grid keeps the plaquette of the old links there
        file_xml = lime_text.NO_FILE_XML
    extra, record_xml = _user_record(metadata, plaquette, trace)
    before = [
        ("scidac-private-file-xml", lime_text.private_file(dims)),
        ("scidac-file-xml", file_xml),
        (
            "scidac-private-record-xml",
            lime_text.private_record(nc, precision, metadata.get("scidac-date", lime_text.NO_DATE)),
        ),
        ("scidac-record-xml", record_xml),
    ]
    if ildg:
        before += [
            ("ildg-format", lime_text.ildg_format(dims, nc, precision)),
            ("ildg-data-lfn", metadata.get("ildg-data-lfn", lime_text.NO_FILE_NAME)),
        ]
    elif "ildg-data-lfn" in metadata:
        extra["ildg-data-lfn"] = metadata["ildg-data-lfn"]
    after = []
    if "xlf-info" in metadata:
        number = metadata.get("SEQUENCE_NUMBER")
        after.append(("xlf-info", lime_text.updated_xlf(metadata["xlf-info"], plaquette, number)))
    if extra:
        text = json.dumps(extra, sort_keys=True)
        if len(lime_text.encode_text(text)) < _LARGEST_RECORD:
            after.append((EXTRA_RECORD, text))
        else:
            warnings.append(f"metadata too long for the file, dropped: {', '.join(sorted(extra))}")

    kind = ILDG_PAYLOAD if ildg else SCIDAC_PAYLOAD
    with atomic_write(path) as file:
        for i, (record, text) in enumerate(before):
            data = lime_text.encode_text(text) + b"\0"  # QIO counts the NUL in the length
            lime.write_record(file, record, data, begin=i in (0, 2), end=i == 1)
        file.write(lime.record_header(kind, layout.total_bytes, begin=False, end=False))
        for raw in links_as_bytes(links, ">"):
            checksum.update(raw)
            file.write(raw.data)
        file.write(bytes(lime.padding(layout.total_bytes)))
        text = lime_text.scidac_checksum(*checksum.sums)
        lime.write_record(
            file, "scidac-checksum", lime_text.encode_text(text) + b"\0", begin=False, end=True
        )
        for record, text in after:
            lime.write_record(file, record, lime_text.encode_text(text), begin=True, end=True)
    return warnings


def _user_record(
    metadata: dict[str, str], plaquette: float, trace: float
) -> tuple[dict[str, str], str]:
    """Metadata left for the record of ours, and the usqcdInfo record."""
    standard = {*TEXT_RECORDS, "scidac-date"}
    extra = {
        key: value
        for key, value in metadata.items()
        if key not in standard and not is_capital_key(key)
    }
    info = ""
    old = metadata.get("scidac-record-xml")
    if old is not None:
        usqcd = lime_text.tag_text(old, "usqcdInfo")
        if usqcd is not None:
            info = lime_text.split_info(lime_text.tag_text(usqcd, "info") or "")[0]
        else:
            extra[_SOURCE_RECORD] = old
    info = lime_text.join_info(info, carried_keys(metadata))
    return extra, lime_text.usqcd_info(plaquette, trace, info)
