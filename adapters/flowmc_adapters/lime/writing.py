"""Writing gauge fields to LIME files, in the layout that all the common readers accept.

QIO's record order with the ILDG records in it satisfies Chroma, MILC, QUDA, Grid, GPT, tmLQCD,
SIMULATeQCD and PyQUDA alike. Records of ours come last: QIO wants its own first, and every reader
skips types that it does not know.
"""

from __future__ import annotations

import io
import json

from .. import scidac_xml
from ..checksums import ScidacChecksum
from ..layout import Layout
from ..layout_format import Description, Frame, Written
from ..metadata import carried_keys, is_capital_key, no_text
from ..text import encode_text
from . import container as lime
from .gauge import ILDG_PAYLOAD, SCIDAC_PAYLOAD
from .metadata import (
    CONTAINER_KEYS,
    EXTRA_PIECE,
    EXTRA_RECORD,
    TEXT_RECORDS,
)

_SOURCE_RECORD = "source-record-xml"


class LimeFrame(Frame):
    """QIO's layout around the links.

    Two messages, as QIO writes them: `scidac-private-file-xml scidac-file-xml`, and
    `scidac-private-record-xml scidac-record-xml [ildg-format ildg-data-lfn] payload
    scidac-checksum`; then one message each for `xlf-info` and for metadata of ours, if there are
    any; long ones are cut into several records, as SIMULATeQCD takes long records for links. With
    `ildg` the bracketed records are there and the payload is `ildg-binary-data`, else
    `scidac-binary-data`.

    Args:
        field: what is written.
        ildg: with ILDG records.
    """

    def __init__(self, field: Description, *, ildg: bool) -> None:
        super().__init__(Layout(0, field.dims, field.nc, field.nc, field.precision, ">"))
        self._field, self._ildg = field, ildg
        metadata = field.metadata
        file_xml = metadata.get("scidac-file-xml", scidac_xml.NO_FILE_XML)
        if "<usqcdInfo" in file_xml:  # Grid keeps the plaquette of the old links there
            file_xml = scidac_xml.NO_FILE_XML
        self._file_xml = file_xml
        self._extra, _ = _user_record(metadata, 0.0, 0.0)
        if not ildg and "ildg-data-lfn" in metadata:
            self._extra["ildg-data-lfn"] = metadata["ildg-data-lfn"]
        self.warnings += no_text(metadata, metadata.keys() - self._extra.keys())

    @property
    def _extra_text(self) -> str:
        return json.dumps(self._extra, sort_keys=True)

    def new_checksum(self) -> ScidacChecksum:
        """See `Frame.new_checksum`."""
        return ScidacChecksum(self.layout.site_bytes)

    def prefix(self, written: Written | None) -> bytes:
        """See `Frame.prefix`."""
        dims, nc, precision = self._field.dims, self._field.nc, self._field.precision
        metadata = self._field.metadata
        plaquette, trace = (0.0, 0.0) if written is None else _observables(written)
        texts = [
            ("scidac-private-file-xml", scidac_xml.private_file(dims)),
            ("scidac-file-xml", self._file_xml),
            (
                "scidac-private-record-xml",
                scidac_xml.private_record(
                    nc, precision, metadata.get("scidac-date", scidac_xml.NO_DATE)
                ),
            ),
            ("scidac-record-xml", _user_record(metadata, plaquette, trace)[1]),
        ]
        if self._ildg:
            texts += [
                ("ildg-format", scidac_xml.ildg_format(dims, nc, precision)),
                ("ildg-data-lfn", metadata.get("ildg-data-lfn", scidac_xml.NO_FILE_NAME)),
            ]
        file = io.BytesIO()
        for i, (record, text) in enumerate(texts):
            data = encode_text(text) + b"\0"  # QIO counts the NUL in the length
            lime.write_record(file, record, data, begin=i in (0, 2), end=i == 1)
        kind = ILDG_PAYLOAD if self._ildg else SCIDAC_PAYLOAD
        file.write(lime.record_header(kind, self.layout.total_bytes, begin=False, end=False))
        return file.getvalue()

    def suffix(self, written: Written) -> bytes:
        """See `Frame.suffix`."""
        assert isinstance(written.checksum, ScidacChecksum)
        metadata = self._field.metadata
        file = io.BytesIO()
        file.write(bytes(lime.padding(self.layout.total_bytes)))
        text = scidac_xml.scidac_checksum(*written.checksum.sums)
        lime.write_record(file, "scidac-checksum", encode_text(text) + b"\0", begin=False, end=True)
        after = []
        if "xlf-info" in metadata:
            plaquette, number = _observables(written)[0], metadata.get("SEQUENCE_NUMBER")
            text = scidac_xml.updated_xlf(metadata["xlf-info"], plaquette, number)
            after.append(("xlf-info", text))
        if self._extra:
            text = self._extra_text  # ASCII, so that it can be cut anywhere
            pieces = range(0, len(text), EXTRA_PIECE)
            after += [(EXTRA_RECORD, text[i : i + EXTRA_PIECE]) for i in pieces]
        for record, text in after:
            lime.write_record(file, record, encode_text(text), begin=True, end=True)
        return file.getvalue()


def _observables(written: Written) -> tuple[float, float]:
    return written.measurements.plaquettes.mean, written.measurements.link_trace


def _user_record(
    metadata: dict[str, str], plaquette: float, trace: float
) -> tuple[dict[str, str], str]:
    """Metadata left for the record of ours, and the usqcdInfo record."""
    standard = {*TEXT_RECORDS, *CONTAINER_KEYS}
    extra = {
        key: value
        for key, value in metadata.items()
        if key not in standard and not is_capital_key(key)
    }
    info = ""
    old = metadata.get("scidac-record-xml")
    if old is not None:
        usqcd = scidac_xml.tag_text(old, "usqcdInfo")
        if usqcd is not None:
            info = scidac_xml.split_info(scidac_xml.tag_text(usqcd, "info") or "")[0]
        else:
            extra[_SOURCE_RECORD] = old
    info = scidac_xml.join_info(info, carried_keys(metadata))
    return extra, scidac_xml.usqcd_info(plaquette, trace, info)
