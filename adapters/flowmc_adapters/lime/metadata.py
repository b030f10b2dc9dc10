"""What the text records of a LIME file say, apart from how the links are stored."""

from __future__ import annotations

import html
import json

from .. import scidac_xml
from ..metadata import carried_keys
from ..text import xlf_values

PRIVATE_RECORD = "scidac-private-record-xml"
# Record types kept verbatim as metadata.
TEXT_RECORDS = ("xlf-info", "scidac-file-xml", "scidac-record-xml", "ildg-data-lfn")
# Metadata that describe the container; written again only in the style of its code.
CONTAINER_KEYS = frozenset({"scidac-date", PRIVATE_RECORD})
# Metadata that no standard record has room for, as a JSON object of strings.
EXTRA_RECORD = "flowmc-metadata"
# SIMULATeQCD takes any record beyond this many bytes for the links, and no other.
SIMULATEQCD_THRESHOLD = 100_000
# Characters of a record of ours; what is longer goes on in the next one of the same type
EXTRA_PIECE = 90_000


def writer(texts: dict[str, str]) -> str:
    """The code that wrote a file, as far as its records tell."""
    version = xlf_values(texts.get("xlf-info", "")).get("hmcversion")
    if EXTRA_RECORD in texts:
        return "flowmc"
    if "grid-format" in texts:
        return "Grid"
    if "scidac-private-file-xml" in texts:
        return "QIO"
    if "xlf-info" in texts:
        return f"tmLQCD {version}" if version else "tmLQCD or cl2qcd"
    if texts.get("ildg-format", "").startswith("\n"):
        return "SIMULATeQCD"
    return ""


def stored_observables(texts: dict[str, str]) -> tuple[float | None, float | None]:
    """Plaquette and link trace from usqcdInfo, or from Grid's FieldMetaData."""
    for kind in ("scidac-record-xml", "scidac-file-xml"):
        info = scidac_xml.tag_text(texts.get(kind, ""), "usqcdInfo")
        if info is not None:
            return scidac_xml.tag_real(info, "plaq"), scidac_xml.tag_real(info, "linktr")
    grid = texts.get("grid-format", "")
    return scidac_xml.tag_real(grid, "plaquette"), scidac_xml.tag_real(grid, "link_trace")


def record_metadata(
    texts: dict[str, str], nc: int, precision: int, warnings: list[str]
) -> dict[str, str]:
    """The records worth keeping; what the writer fills in for want of anything better is not.

    Args:
        texts: the text records by type.
        nc: number of colours N of the links.
        precision: bits of their numbers.
        warnings: those of the file, to be added to.
    """
    metadata = {
        kind: texts[kind]
        for kind in TEXT_RECORDS
        if kind in texts and texts[kind] not in (scidac_xml.NO_FILE_XML, scidac_xml.NO_FILE_NAME)
    }
    private = texts.get(PRIVATE_RECORD, "")
    date = html.unescape(scidac_xml.tag_text(private, "date") or scidac_xml.NO_DATE)
    if date != scidac_xml.NO_DATE:
        metadata["scidac-date"] = date
    ours = scidac_xml.private_record(nc, precision, date)
    if PRIVATE_RECORD in texts and private != ours:
        metadata[PRIVATE_RECORD] = private
    user = scidac_xml.tag_text(texts.get("scidac-record-xml", ""), "usqcdInfo")
    if user is not None:
        rest, pairs = scidac_xml.split_info(scidac_xml.tag_text(user, "info") or "")
        metadata |= carried_keys(pairs)
        if pairs and not rest:  # of our making, and nothing else in it
            del metadata["scidac-record-xml"]
    if EXTRA_RECORD in texts:
        try:
            extra = json.loads(texts[EXTRA_RECORD])
        except (ValueError, RecursionError):
            extra = None
        if isinstance(extra, dict) and all(isinstance(value, str) for value in extra.values()):
            metadata |= extra
        else:
            warnings.append(f"the {EXTRA_RECORD} record is damaged and was ignored")
    xlf = xlf_values(texts.get("xlf-info", ""))
    number = xlf.get("trajectory nr")
    if number is not None:
        metadata.setdefault("SEQUENCE_NUMBER", number)
    return metadata
