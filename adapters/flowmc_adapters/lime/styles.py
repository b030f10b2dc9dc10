"""LIME files exactly as single codes write them: QIO, tmLQCD and SIMULATeQCD.

A file of theirs that is read and written again in their style comes out the same, byte by byte, as
long as the links are the same; numbers that describe the links are printed anew if they changed.
What such a file has no place for is left out, with a warning. The order of records, the message
flags and the layout of the texts were compared with real files of each code.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping

from .. import scidac_xml
from ..checksums import ScidacChecksum
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout
from ..layout_format import Description, Frame, Written
from ..metadata import DERIVED_KEYS, carried_keys, no_text
from ..text import encode_text
from . import container as lime
from .metadata import PRIVATE_RECORD, SIMULATEQCD_THRESHOLD

_ATTRIBUTES = (
    'xmlns="http://www.lqcd.org/ildg"',
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"',
    'xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd"',
)


class _StyleFrame(Frame):
    """Records before and after the links.

    Attributes:
        code: that writes such files.
        kind: type of the record with the links.
    """

    code: str
    kind = "ildg-binary-data"

    def __init__(self, path: PathLike, field: Description, kept: Iterable[str]) -> None:
        super().__init__(Layout(0, field.dims, field.nc, field.nc, field.precision, ">"))
        self._field, self._metadata = field, field.metadata
        if field.nc != 3 and self.kind == "ildg-binary-data":
            raise FormatError(
                path,
                None,
                f"{self.code} writes ILDG files for SU(3) only, this field is SU({field.nc})",
            )
        kept = set(kept)
        lost = sorted(self._metadata.keys() - kept - DERIVED_KEYS)
        if lost:
            self.warnings.append(f"files of {self.code} have no place for: {', '.join(lost)}")
        self.warnings += no_text(self._metadata, kept)

    def new_checksum(self) -> ScidacChecksum:
        return ScidacChecksum(self.layout.site_bytes)


class QioFrame(_StyleFrame):
    """Two messages, texts with a trailing NUL, the links in the second one.

    Args:
        path: for error messages.
        field: what is written.
        ildg: whether in ILDG style; then the logical file name is written if there is one.
    """

    code = "QIO"

    def __init__(self, path: PathLike, field: Description, *, ildg: bool) -> None:
        self._ildg = ildg
        self.kind = "ildg-binary-data" if ildg else "scidac-binary-data"
        given = field.metadata.get("scidac-record-xml", "")
        file_xml = field.metadata.get("scidac-file-xml", "")
        kept = {"scidac-file-xml", "scidac-record-xml", "scidac-date", PRIVATE_RECORD}
        if not given or "<usqcdInfo" in given:
            kept |= carried_keys(field.metadata).keys()
        if ildg:
            kept.add("ildg-data-lfn")
        super().__init__(path, field, kept)
        # Numbers in a text of other origin may change its length
        self.measured_first = any("<usqcdInfo" in text for text in (given, file_xml))

    def prefix(self, written: Written | None) -> bytes:
        field, metadata = self._field, self._metadata
        plaquette, trace = (0.0, 0.0) if written is None else _observables(written)
        file_xml = metadata.get("scidac-file-xml", scidac_xml.NO_FILE_XML)
        old, pairs = metadata.get("scidac-record-xml", ""), carried_keys(metadata)
        if not old:
            user = scidac_xml.usqcd_info(plaquette, trace, scidac_xml.join_info("", pairs))
        else:
            user = scidac_xml.updated_usqcd(old, plaquette, trace, pairs)
        texts = [
            ("scidac-private-file-xml", scidac_xml.private_file(field.dims)),
            ("scidac-file-xml", scidac_xml.updated_usqcd(file_xml, plaquette, trace, None)),
            (PRIVATE_RECORD, _private_record(field, ildg=self._ildg)),
            ("scidac-record-xml", user),
        ]
        if self._ildg:
            text = scidac_xml.ildg_format(field.dims, field.nc, field.precision)
            texts.append(("ildg-format", text))
            if "ildg-data-lfn" in metadata:
                texts.append(("ildg-data-lfn", metadata["ildg-data-lfn"]))
        file = io.BytesIO()
        for i, (kind, text) in enumerate(texts):
            data = encode_text(text) + b"\0"
            lime.write_record(file, kind, data, begin=i in (0, 2), end=i == 1)
        length = self.layout.total_bytes
        file.write(lime.record_header(self.kind, length, begin=False, end=False))
        return file.getvalue()

    def suffix(self, written: Written) -> bytes:
        file = io.BytesIO()
        file.write(bytes(lime.padding(self.layout.total_bytes)))
        data = encode_text(scidac_xml.scidac_checksum(*_sums(written))) + b"\0"
        lime.write_record(file, "scidac-checksum", data, begin=False, end=True)
        return file.getvalue()


class TmlqcdFrame(_StyleFrame):
    """`xlf-info`, then one message `ildg-format`, links, checksum; no NUL after texts.

    Of the run parameters in `xlf-info` only those are written that the source had.
    """

    code = "tmLQCD"
    measured_first = True

    def __init__(self, path: PathLike, field: Description) -> None:
        super().__init__(path, field, {"xlf-info", "SEQUENCE_NUMBER"})

    def prefix(self, written: Written | None) -> bytes:
        if written is None:
            raise TypeError("the length of this header is known only after the links")
        plaquette, _ = _observables(written)
        text = scidac_xml.updated_xlf(
            self._metadata.get("xlf-info", "plaquette = \n"),
            plaquette,
            self._metadata.get("SEQUENCE_NUMBER"),
        )
        file = io.BytesIO()
        lime.write_record(file, "xlf-info", encode_text(text), begin=True, end=True)
        form = "".join(f"  {extent}\n" for extent in _extents(self._field.dims))
        text = _ildg_format(self._field.precision, form)
        lime.write_record(file, "ildg-format", text.encode("ascii"), begin=True, end=False)
        length = self.layout.total_bytes
        file.write(lime.record_header(self.kind, length, begin=False, end=False))
        return file.getvalue()

    def suffix(self, written: Written) -> bytes:
        suma, sumb = _sums(written)
        text = (
            f"{scidac_xml.XML_PROLOGUE}\n<scidacChecksum>\n  <version>1.0</version>\n"
            f"  <suma>{suma:08x}</suma>\n  <sumb>{sumb:08x}</sumb>\n</scidacChecksum>"
        )
        file = io.BytesIO()
        file.write(bytes(lime.padding(self.layout.total_bytes)))
        lime.write_record(file, "scidac-checksum", text.encode("ascii"), begin=False, end=True)
        return file.getvalue()


class SimulateqcdFrame(_StyleFrame):
    """Four messages of one record each, the logical file name after the links."""

    code = "SIMULATeQCD"

    def __init__(self, path: PathLike, field: Description) -> None:
        super().__init__(path, field, {"ildg-data-lfn"})
        if self.layout.total_bytes <= SIMULATEQCD_THRESHOLD:
            self.warnings.append("so small a lattice is not found by SIMULATeQCD's own reader")

    def prefix(self, written: Written | None) -> bytes:
        form = "  " + "  ".join(_extents(self._field.dims)) + "\n"
        text = f"\n{_ildg_format(self._field.precision, form)}\n"
        file = io.BytesIO()
        lime.write_record(file, "ildg-format", text.encode("ascii"), begin=True, end=True)
        file.write(lime.record_header(self.kind, self.layout.total_bytes, begin=True, end=True))
        return file.getvalue()

    def suffix(self, written: Written) -> bytes:
        suma, sumb = _sums(written)
        name = self._metadata.get("ildg-data-lfn", scidac_xml.NO_FILE_NAME)
        checksum = (
            f"\n{scidac_xml.XML_PROLOGUE}\n<scidacChecksum><version>1.0</version>"
            f"<suma>{suma:x}</suma><sumb>{sumb:x}</sumb></scidacChecksum>"
        )
        file = io.BytesIO()
        file.write(bytes(lime.padding(self.layout.total_bytes)))
        for kind, text in (("ildg-data-lfn", name), ("scidac-checksum", checksum)):
            lime.write_record(file, kind, encode_text(text), begin=True, end=True)
        return file.getvalue()


ILDG_STYLES: Mapping[str, Callable[[PathLike, Description], Frame]] = {
    "qio": lambda path, field: QioFrame(path, field, ildg=True),
    "tmlqcd": TmlqcdFrame,
    "simulateqcd": SimulateqcdFrame,
}
SCIDAC_STYLES: Mapping[str, Callable[[PathLike, Description], Frame]] = {
    "qio": lambda path, field: QioFrame(path, field, ildg=False),
}


def _observables(written: Written) -> tuple[float, float]:
    return written.measurements.plaquettes.mean, written.measurements.link_trace


def _sums(written: Written) -> tuple[int, int]:
    assert isinstance(written.checksum, ScidacChecksum)
    return written.checksum.sums


def _extents(dims: tuple[int, ...]) -> list[str]:
    return [f"<l{name}>{extent}</l{name}>" for name, extent in zip("xyzt", dims, strict=True)]


def _ildg_format(precision: int, extents: str) -> str:
    """The ildg-format record with its tags on lines of their own."""
    attributes = "\n            ".join(_ATTRIBUTES)
    return (
        f"{scidac_xml.XML_PROLOGUE}\n<ildgFormat {attributes}>\n  <version>1.0</version>\n"
        f"  <field>su3gauge</field>\n  <precision>{precision}</precision>\n{extents}</ildgFormat>"
    )


def _private_record(field: Description, *, ildg: bool) -> str:
    """The private record, in the version of QIO that the one kept in the metadata is from."""
    nc, precision = field.nc, field.precision
    text = scidac_xml.private_record(
        nc, precision, field.metadata.get("scidac-date", scidac_xml.NO_DATE)
    )
    old = field.metadata.get(PRIVATE_RECORD)
    if old is None:
        return text
    if scidac_xml.tag_text(old, "version") == "1.0":
        text = text.replace("<version>1.1</version>", "<version>1.0</version>")
        text = text.replace("<recordtype>0</recordtype>", "<globaldata>0</globaldata>")
    spins = scidac_xml.tag_integer(old, "spins")
    text = text.replace("<spins>1</spins>", "" if spins is None else f"<spins>{spins}</spins>")
    letter = "F" if precision == 32 else "D"
    datatype = scidac_xml.tag_text(old, "datatype") or ""
    # QIO takes a record for ILDG only by these names
    allowed = rf"(QDP|USQCD)_{letter}{nc}_ColorMatrix" if ildg else r"\w+"
    same_precision = scidac_xml.tag_text(old, "precision") == letter
    same_group = scidac_xml.tag_integer(old, "colors") == nc
    if same_precision and same_group and re.fullmatch(allowed, datatype):
        text = re.sub("<datatype>.*</datatype>", f"<datatype>{datatype}</datatype>", text)
    return text
