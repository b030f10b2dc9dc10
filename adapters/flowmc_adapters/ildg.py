"""The format "ildg": LIME files whose links are in an `ildg-binary-data` record.

Written with all records of ILDG, QIO and usqcdInfo, so that every reader finds what it asks for.
"""

from __future__ import annotations

import struct

from . import lime
from .configuration import Configuration, Header
from .formats import Format, PathLike
from .lime_gauge import SCIDAC_PAYLOAD, find_gauge_record, payload_kinds, read_gauge
from .lime_gauge_writing import write_gauge


class IldgFormat(Format):
    """ILDG records in a LIME container: Chroma, MILC, Grid, tmLQCD, SIMULATeQCD and others."""

    name = "ildg"
    description = "LIME with ILDG records (Chroma, MILC, Grid, tmLQCD, SIMULATeQCD, BQCD)"

    def detect(self, head: bytes, path: PathLike) -> bool:
        """Any LIME file that is not "scidac"; damaged ones are ours, to be named as such."""
        return head[:4] == struct.pack(">I", lime.MAGIC) and payload_kinds(path) != {SCIDAC_PAYLOAD}

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
        return write_gauge(path, configuration, precision=precision, ildg=True)
