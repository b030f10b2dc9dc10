"""The format "scidac": LIME files whose links are in a `scidac-binary-data` record.

What QIO writes without ILDG style (QUDA, QDP/C): the same bytes of links, no ILDG records.
"""

from __future__ import annotations

import struct

from ..formats import PathLike
from . import container as lime
from .base import LimeFormat
from .gauge import SCIDAC_PAYLOAD, payload_kinds
from .styles import SCIDAC_STYLES


class ScidacFormat(LimeFormat):
    """SciDAC (QIO) records in a LIME container, without the ILDG ones."""

    name = "scidac"
    description = "LIME with SciDAC records only (QIO without ILDG style, QUDA)"
    options = {"style": ("universal", *SCIDAC_STYLES)}  # noqa: RUF012 - declared in Format
    ildg = False
    suffix = ".lime"

    def detect(self, head: bytes, path: PathLike) -> bool:
        """A sound LIME file with `scidac-binary-data` and no `ildg-binary-data`."""
        return head[:4] == struct.pack(">I", lime.MAGIC) and payload_kinds(path) == {SCIDAC_PAYLOAD}
