"""The format "scidac": LIME files whose links are in a `scidac-binary-data` record.

What QIO writes without ILDG style (QUDA, QDP/C): the same bytes of links, no ILDG records.
"""

from __future__ import annotations

import struct

from . import lime
from .configuration import Configuration, Header
from .formats import Format, PathLike
from .lime_gauge import SCIDAC_PAYLOAD, find_gauge_record, payload_kinds, read_gauge
from .lime_gauge_writing import write_gauge


class ScidacFormat(Format):
    """SciDAC (QIO) records in a LIME container, without the ILDG ones."""

    name = "scidac"
    description = "LIME with SciDAC records only (QIO without ILDG style, QUDA)"

    def detect(self, head: bytes, path: PathLike) -> bool:
        """A sound LIME file with `scidac-binary-data` and no `ildg-binary-data`."""
        return head[:4] == struct.pack(">I", lime.MAGIC) and payload_kinds(path) == {SCIDAC_PAYLOAD}

    def read_header(self, path: PathLike, *, dims: tuple[int, ...] | None = None) -> Header:
        """See `Format.read_header`."""
        return find_gauge_record(path, self.name, dims).header

    def read(self, path: PathLike, *, dims: tuple[int, ...] | None = None) -> Configuration:
        """See `Format.read`."""
        return read_gauge(path, self.name, dims)

    def write(
        self, path: PathLike, configuration: Configuration, *, precision: int | None = None
    ) -> list[str]:
        """See `Format.write`."""
        return write_gauge(path, configuration, precision=precision, ildg=False)
