"""The format "ildg": LIME files whose links are in an `ildg-binary-data` record.

Written with all records of ILDG, QIO and usqcdInfo, so that every reader finds what it asks for.
"""

from __future__ import annotations

import struct

from ..formats import PathLike
from . import container as lime
from .base import LimeFormat
from .gauge import SCIDAC_PAYLOAD, payload_kinds
from .styles import ILDG_STYLES


class IldgFormat(LimeFormat):
    """ILDG records in a LIME container: Chroma, MILC, Grid, tmLQCD, SIMULATeQCD and others."""

    name = "ildg"
    description = "LIME with ILDG records (Chroma, MILC, Grid, tmLQCD, SIMULATeQCD, BQCD)"
    options = {"style": ("universal", *ILDG_STYLES)}  # noqa: RUF012 - declared in Format
    ildg = True
    suffix = ".lime"

    def detect(self, head: bytes, path: PathLike) -> bool:
        """Any LIME file that is not "scidac"; damaged ones are ours, to be named as such."""
        return head[:4] == struct.pack(">I", lime.MAGIC) and payload_kinds(path) != {SCIDAC_PAYLOAD}
