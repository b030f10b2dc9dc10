"""What the formats "ildg" and "scidac" have in common: everything but a few records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..checksums import ScidacChecksum
from ..configuration import Header, PathLike
from ..layout import Layout
from ..layout_format import Description, Frame, LayoutFormat
from ..links import LinkSource
from ..selection import file_of
from ..storage import FileStorage, OpenStorage
from .gauge import find_gauge_record
from .styles import ILDG_STYLES, SCIDAC_STYLES
from .writing import LimeFrame


class LimeFormat(LayoutFormat):
    """Gauge fields in LIME files.

    Attributes:
        ildg: whether ILDG records are written.
    """

    ildg: bool
    several = True

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`."""
        return find_gauge_record(path, self.name, dims)

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        with super().open(file_of(path), header, storage) as source:
            yield source

    def new_checksum(self, layout: Layout) -> ScidacChecksum:
        """See `LayoutFormat.new_checksum`."""
        return ScidacChecksum(layout.site_bytes)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        if options["style"] == "universal":
            return LimeFrame(field, ildg=self.ildg)
        return (ILDG_STYLES if self.ildg else SCIDAC_STYLES)[options["style"]](path, field)
