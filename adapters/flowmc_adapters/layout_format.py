"""Formats whose links are at regular places in the file: `LayoutFormat`, and `Frame`, what is
written around the links.

Such a format parses a header and says where the links are; reading, checking, converting and
writing them, in memory or slab by slab, is done here for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .atomic import atomic_path, atomic_write
from .boundaries import taken_as_periodic
from .changes import Change, precision_change
from .checks import Verdict, judge
from .checksums import ChecksumSum
from .configuration import ComplexArray, Configuration, Header
from .errors import CheckError, FormatError
from .formats import Format, PathLike
from .layout import Layout
from .links import (
    ArraySink,
    ArraySource,
    ChecksumSink,
    LayoutSink,
    LayoutSource,
    LinkSink,
    LinkSource,
)
from .observables import Measurements, summarize
from .storage import FileStorage, OpenStorage, Storage
from .transfer import Progress, Sums, transfer


@dataclass(frozen=True)
class Description:
    """A field that is about to be written.

    Attributes:
        dims: extents (Lx, Ly, Lz, Lt).
        nc: number of colours N.
        precision: of the file, 32 or 64.
        metadata: source strings, see `Configuration.metadata`.
    """

    dims: tuple[int, ...]
    nc: int
    precision: int
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What is known once the links are written.

    Attributes:
        measurements: of the links as written.
        checksum: of their bytes, or None if the frame asks for none.
    """

    measurements: Measurements
    checksum: ChecksumSum | None


class Frame:
    """What surrounds the links of one file being written.

    The bytes before the links usually contain numbers that are known only after them: plaquette,
    checksum. They are therefore written last, and must be equally long whatever these numbers are.
    Where that is impossible, `measured_first` asks for a pass over the links beforehand.

    Attributes:
        layout: how the links are stored, the first one at byte 0.
        warnings: what could not be kept.
        measured_first: `prefix` needs to know the measurements to tell its length.
    """

    measured_first = False

    def __init__(self, layout: Layout, warnings: list[str] | None = None) -> None:
        self.layout = layout
        self.warnings = warnings or []
        self._prefix_bytes = 0

    def new_checksum(self) -> ChecksumSum | None:
        """An accumulator for the bytes of the links, or None."""
        return None

    def prefix(self, written: Written | None) -> bytes:
        """The bytes before the links; with None, any bytes of the same length."""
        return b""

    def suffix(self, written: Written) -> bytes:
        """The bytes after the links."""
        return b""

    def companions(self, written: Written) -> dict[str, bytes]:
        """Further files: what to append to the path, and the content."""
        return {}

    def begin(self, path: Path, written: Written | None) -> Layout:
        """Prepare the empty file; returns where in it the links go."""
        self._prefix_bytes = len(self.prefix(written))
        return self.layout.moved(self._prefix_bytes)

    def sink(self, storage: Storage, layout: Layout) -> LinkSink:
        """What takes the links."""
        return LayoutSink(storage, layout)

    def finish(self, path: Path, written: Written) -> None:
        """Complete the file after the links."""
        prefix = self.prefix(written)
        if len(prefix) != self._prefix_bytes:
            raise RuntimeError(
                f"{path}: {self._prefix_bytes} bytes were left for a header of {len(prefix)}: this "
                "is an error of the format's writer; nothing was written"
            )
        with open(path, "r+b") as file:
            file.write(prefix)
            file.seek(len(prefix) + self.layout.total_bytes)
            file.write(self.suffix(written))


class LayoutFormat(Format):
    """A format whose links have a regular layout.

    Attributes:
        precisions: those that the format can hold.
        four_dimensions: whether it is for four-dimensional lattices only.
    """

    precisions: tuple[int, ...] = (32, 64)
    four_dimensions = True

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """What to write around the links; formats that are not `writable` have none.

        Args:
            path: for error messages.
            field: the field to write.
            options: complete and checked, see `Format.options`.

        Raises:
            FormatError: the format cannot hold this field.
        """
        raise self.read_only(path)

    def new_checksum(self, layout: Layout) -> ChecksumSum | None:
        """An accumulator for the checksum of a file read, or None if the format has none."""
        return None

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """The links of a file.

        Args:
            path: the file.
            header: as `read_header` gave it.
            storage: opens the file; sources that need more than bytes at given places may ignore
                it.
        """
        if header.layout is None:
            raise TypeError(f"{self.name}: read_header gave no layout")
        with storage(path) as file:
            yield LayoutSource(file, header.layout, self.new_checksum)

    def read(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Configuration:
        """See `Format.read`."""
        return self.load(path, dims=dims, layout=layout)[0]

    def load(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[Configuration, Verdict]:
        """The field in memory, and the verdict on it."""
        header = self.read_header(path, dims=dims, layout=layout)
        with self.open(path, header) as source:
            shape = (*reversed(source.dims[-2:]), *source.plane_shape)
            links = np.empty(shape, source.complex_type)
            verdict = scan(source, header, ArraySink(links), progress=progress)
        configuration = Configuration(
            links=links,
            metadata=header.metadata,
            warnings=verdict.warnings,
            checksum=verdict.checksum,
            failed_checks=verdict.failed_checks,
            stored_plaquette=header.plaquette,
            stored_link_trace=header.link_trace,
            format=self.name,
        )
        return configuration, verdict

    def write(
        self,
        path: PathLike,
        configuration: Configuration,
        *,
        precision: int | None = None,
        **options: str,
    ) -> list[str]:
        """See `Format.write`."""
        source = ArraySource(configuration.links, path)
        frame, change = self.plan(path, source, configuration.metadata, precision, options)
        written = save(path, source, frame, change=change)
        if written.measurements.group.open_boundary and not self.open_boundaries:
            return [*frame.warnings, taken_as_periodic(self.name)]
        return frame.warnings

    def require_holds(
        self, dims: tuple[int, ...], nc: int, present: int, precision: int | None = None
    ) -> None:
        """Find out before there is a field whether it could be written.

        Args:
            dims: extents (Lx, ..., Lt).
            nc: number of colours N.
            present: precision of the links, 32 or 64.
            precision: as in `write`.

        Raises:
            FormatError: it could not; the reason says why.
        """
        shape = (*reversed(dims), len(dims), nc, nc)
        imagined: ComplexArray = np.zeros((), np.complex64 if present == 32 else np.complex128)
        imagined = np.broadcast_to(imagined, shape)  # takes no memory
        self.plan("", ArraySource(imagined), {}, precision, {})

    def plan(
        self,
        path: PathLike,
        source: LinkSource,
        metadata: dict[str, str],
        precision: int | None,
        options: dict[str, str],
    ) -> tuple[Frame, Change | None]:
        """The frame for a field, and the change of precision that it needs.

        Raises:
            FormatError: the format cannot hold the field, or only by losing digits and nobody asked
                for that.
            ValueError: a precision that is neither 32, 64 nor None; an unknown option.
        """
        if precision not in (None, 32, 64):
            raise ValueError(f"precision must be 32 or 64, not {precision!r}")
        if not self.writable:
            raise self.read_only(path)
        if self.four_dimensions and len(source.dims) != 4:
            raise FormatError(
                path,
                None,
                f"{self.name} files hold four-dimensional lattices, this field has "
                f"{len(source.dims)} dimensions: write it as npy or hdf5",
            )
        chosen = source.precision if precision is None else precision
        warnings = []
        if chosen not in self.precisions:
            (only,) = self.precisions
            if precision is not None or only < source.precision:
                raise FormatError(
                    path,
                    None,
                    f"{self.name} files hold {only}-bit numbers only: "
                    + (
                        "ask for precision=32 (--precision 32) to round"
                        if only == 32
                        else "leave the precision out, 32-bit links are widened without loss"
                    ),
                )
            chosen = only
            warnings.append(f"32-bit links were widened, {self.name} files hold 64-bit numbers")
        if chosen < source.precision:
            warnings.append(
                "links rounded from 64 to 32 bit, as asked: a chain does not continue exactly"
            )
        field = Description(source.dims, source.nc, chosen, metadata)
        frame = self.frame(path, field, self.check_options(options))
        frame.warnings = [*warnings, *frame.warnings]
        return frame, precision_change(source, chosen)


def scan(
    source: LinkSource,
    header: Header,
    sink: LinkSink | None = None,
    *,
    progress: Progress | None = None,
) -> Verdict:
    """Read all links once, hand them on if there is a sink, and judge the file."""
    checksum = source.new_checksum() if header.checksum is not None else None
    sums = transfer(source, sink, source_checksum=checksum, progress=progress)
    return verdict_of(source, header, checksum, sums)


def verdict_of(
    source: LinkSource, header: Header, checksum: ChecksumSum | None, sums: Sums
) -> Verdict:
    """Judge a file after a transfer from it."""
    measurements = summarize(source.dims, source.nc, sums.source)
    return judge(header, None if checksum is None else checksum.text, measurements)


def written_of(
    path: PathLike, source: LinkSource, sums: Sums, checksum: ChecksumSum | None
) -> Written:
    """What a frame needs to know after the links.

    Raises:
        CheckError: they are so large that no header can state their plaquette.
    """
    measurements = summarize(source.dims, source.nc, sums.sink)
    if not math.isfinite(measurements.plaquettes.mean + measurements.link_trace):
        raise CheckError(
            path,
            None,
            "refusing to write links so large that their plaquette overflows; nothing was written",
        )
    return Written(measurements, checksum)


def save(
    path: PathLike,
    source: LinkSource,
    frame: Frame,
    *,
    change: Change | None = None,
    source_checksum: ChecksumSum | None = None,
    accept: Callable[[Sums], None] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write a file atomically.

    Args:
        path: the file, replaced if it exists.
        source: the links.
        frame: what surrounds them.
        change: what is done to the links on the way.
        source_checksum: fed with the bytes read.
        accept: called with the sums before the file gets its name; may raise.
        progress: told about each slab.

    Raises:
        CheckError: a link is not finite, or the plaquette overflows.
        OSError: disk full and the like; `path` is then as before.
    """
    written: Written | None = None
    if frame.measured_first:
        checksum = frame.new_checksum()
        sums = transfer(
            source,
            ChecksumSink(frame.layout),
            source_checksum=source_checksum,
            sink_checksum=checksum,
            change=change,
        )
        if accept is not None:
            accept(sums)
        written = written_of(path, source, sums, checksum)
    with atomic_path(path) as temporary:
        layout = frame.begin(temporary, written)
        checksum = None if written is not None else frame.new_checksum()
        with FileStorage(temporary, writable=True) as storage:
            sums = transfer(
                source,
                frame.sink(storage, layout),
                source_checksum=None if written is not None else source_checksum,
                sink_checksum=checksum,
                change=change,
                measure=written is None,
                progress=progress,
            )
        if written is None:
            if accept is not None:
                accept(sums)
            written = written_of(path, source, sums, checksum)
        frame.finish(temporary, written)
        # Before the file gets its name: without room for them the old files stay
        write_companions(path, frame, written)
    return written


def write_companions(path: PathLike, frame: Frame, written: Written) -> None:
    """Write the further files of a format, see `Frame.companions`."""
    for ending, content in frame.companions(written).items():
        with atomic_write(f"{path}{ending}") as file:
            file.write(content)
