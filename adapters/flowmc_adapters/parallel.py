"""One configuration file, many MPI ranks: each reads and writes its time slices through MPI-IO.

Needs mpi4py. All functions are collective: every rank of the communicator calls them with the same
arguments. The bytes written, the measurements and the checksums are the same for any number of
ranks, one included; ranks beyond the number of time slices have nothing to do. An error on one rank
is raised on all of them.

    from mpi4py import MPI
    from flowmc_adapters import parallel

    slab = parallel.read(MPI.COMM_WORLD, "lat.1000")      # slab.links: this rank's time slices
    parallel.write(MPI.COMM_WORLD, "lat.1001", slab, "nersc")
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import atomic_path
from .boundaries import require_open_end_allowed
from .changes import Change, Reunitarize, StripSigns, chain
from .checks import Verdict, require_group
from .checksums import ChecksumSum
from .configuration import ComplexArray, Header, PathLike, number_of
from .conversion import Conversion
from .errors import CheckError, FormatError
from .layout_format import Frame, LayoutFormat, Written, verdict_of, write_companions, written_of
from .links import ArraySink, ChecksumSink, LinkSink, LinkSource, Slab
from .mpi_storage import MpiStorage
from .observables import summarize
from .registry import (
    detect,
    format_named,
    require_dims,
    require_projectable,
    require_sound,
    signs_text,
)
from .transfer import Sums, slabs_of, transfer
from .unpacking import UnpackingLayout, command_for


@dataclass
class TimeSlab:
    """The time slices of one rank.

    Attributes:
        links: `U[t - first, z, y, x, mu, row, col]`; no time slices on ranks that have none.
        first: the first of them.
        dims: extents (Lx, Ly, Lz, Lt) of the whole lattice.
        metadata: as in `Configuration`.
        warnings: as in `Configuration`, the same on all ranks.
        format: name of the format it was read from, or "".
    """

    links: ComplexArray
    first: int
    dims: tuple[int, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    format: str = ""


def time_slices(lt: int, rank: int, ranks: int) -> range:
    """The time slices of a rank: contiguous, as evenly as possible, the first ranks one more."""
    share, rest = divmod(lt, ranks)
    first = rank * share + min(rank, rest)
    return range(first, first + share + (rank < rest))


def verify(
    comm: Any,
    path: PathLike,
    *,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
) -> Verdict:
    """The verdict on a file, on every rank; arguments and errors as `flowmc_adapters.read`."""
    reader, header = _header(comm, path, dims, layout)
    with _opened(comm, reader, path, header) as source:
        checksum, sums = _measure(comm, source, header)
    return verdict_of(source, header, checksum, sums)


def read(
    comm: Any,
    path: PathLike,
    *,
    check_checksum: bool = True,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
) -> TimeSlab:
    """Read and check a file; every rank gets its time slices (`time_slices`).

    Arguments and errors as `flowmc_adapters.read`.
    """
    reader, header = _header(comm, path, dims, layout)
    with _opened(comm, reader, path, header) as source:
        mine = time_slices(source.dims[-1], comm.rank, comm.size)
        planes = source.dims[-2]
        links = np.empty((len(mine), planes, *source.plane_shape), source.complex_type)
        checksum, sums = _measure(comm, source, header, _SlabSink(links, mine.start))
    verdict = verdict_of(source, header, checksum, sums)
    warnings = require_sound(path, verdict, check_checksum)
    return TimeSlab(links, mine.start, source.dims, header.metadata, warnings, reader.name)


def write(
    comm: Any,
    path: PathLike,
    slab: TimeSlab,
    format: str,
    precision: int | None = None,
    **options: str,
) -> list[str]:
    """Write a field whose time slices are distributed as `time_slices` says.

    Arguments, result and errors as `flowmc_adapters.write`; FormatError also where the slices of
    the ranks do not make up the lattice.
    """
    mine = time_slices(slab.dims[-1], comm.rank, comm.size)
    expected = (len(mine), slab.dims[-2])
    with _together(comm):
        if slab.first != mine.start or slab.links.shape[:2] != expected:
            raise FormatError(
                path,
                None,
                f"rank {comm.rank} of {comm.size} must hold the time slices {mine.start} to "
                f"{mine.stop - 1} of a lattice of {slab.dims}, it has {slab.links.shape[0]} from "
                f"{slab.first} on",
            )
    source = _SlabSource(comm, slab, path)
    writer = _layout_format(comm, path, format)
    with _together(comm):
        frame, change = writer.plan(path, source, slab.metadata, precision, options)
    _save(comm, path, source, frame, change)
    return frame.warnings


def convert(
    comm: Any,
    source: PathLike,
    destination: PathLike,
    format: str,
    precision: int | None = None,
    *,
    check_checksum: bool = True,
    check_group: bool = True,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
    strip_signs: bool = False,
    reunitarize: bool = False,
    open_boundaries: bool = False,
    metadata: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Conversion:
    """As `flowmc_adapters.convert`, which writes the same bytes, with the work shared by ranks."""
    reader, header = _header(comm, source, dims, layout)
    writer = _layout_format(comm, destination, format)
    carried = header.metadata | dict(metadata or {})
    warnings: list[str] = []
    with _opened(comm, reader, source, header) as links:
        with _together(comm):
            frame, rounding = writer.plan(
                destination, links, carried, precision, dict(options or {})
            )
        signs = None
        if strip_signs:
            checksum, sums = _measure(comm, links, header)
            found = verdict_of(links, header, checksum, sums).measurements.group.antiperiodic
            warnings.append(signs_text(found))
            signs = StripSigns(header.dims, found) if found else None
        projection = Reunitarize() if reunitarize else None
        wider = frame.layout.precision > header.precision
        change = chain(signs, rounding, projection) if wider else chain(signs, projection, rounding)

        def accept(checksum: ChecksumSum | None, sums: Sums) -> None:
            verdict = verdict_of(links, header, checksum, sums)
            warnings.extend(require_sound(source, verdict, check_checksum))
            if verdict.measurements.group.open_boundary:
                warnings.extend(
                    require_open_end_allowed(destination, writer, asked=open_boundaries)
                )
            if reunitarize:
                group = verdict.measurements.group
                warnings.append(require_projectable(source, group, stripped=strip_signs))
            if check_group:
                written = summarize(links.dims, links.nc, sums.sink)
                require_group(source, links.dims, links.nc, written.group)

        fresh = links.new_checksum() if header.checksum is not None else None
        _save(comm, destination, links, frame, change, fresh, accept)
    return Conversion(
        reader.name,
        format,
        header.precision,
        frame.layout.precision,
        number_of(carried),
        [*warnings, *frame.warnings],
    )


class _SlabSink(ArraySink):
    """The time slices of a rank in memory."""

    def __init__(self, links: ComplexArray, first: int) -> None:
        super().__init__(links)
        self._first = first

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        t, start, stop = slab
        super().write((t - self._first, start, stop), links, checksum)


class _SlabSource(LinkSource):
    """The time slices of a rank, with those before and after from its neighbours."""

    def __init__(self, comm: Any, slab: TimeSlab, path: PathLike) -> None:
        self._path = path
        self.dims, self.nc = slab.dims, int(slab.links.shape[-1])
        self.precision = 32 if slab.links.dtype == np.complex64 else 64
        mine = time_slices(slab.dims[-1], comm.rank, comm.size)
        self._slices = dict(zip(mine, slab.links, strict=True))
        holders = min(comm.size, slab.dims[-1])
        if comm.rank < holders and holders > 1:
            below, above = (comm.rank - 1) % holders, (comm.rank + 1) % holders
            halo = np.empty_like(slab.links[0], order="C")
            for give, to, origin, t in (
                (slab.links[0], below, above, mine.stop),
                (slab.links[-1], above, below, mine.start - 1),
            ):
                comm.Sendrecv(np.ascontiguousarray(give), to, recvbuf=halo, source=origin)
                self._slices.setdefault(t % slab.dims[-1], halo.copy())

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        t, start, stop = slab
        np.copyto(out, self._slices[t][start:stop])

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(
            self._path,
            None,
            f"refusing to write a link that is not finite, at {site}; nothing was written",
        )


def _header(
    comm: Any, path: PathLike, dims: tuple[int, ...] | None, layout: str | None
) -> tuple[LayoutFormat, Header]:
    """The header, read by rank 0 alone: hundreds of ranks would hurt the file system."""
    found: tuple[str, Header] | None = None
    with _together(comm):
        if comm.rank == 0:
            reader = detect(path, layout)
            if isinstance(reader, UnpackingLayout):
                raise FormatError(
                    path, None, f"compressed files are read by one process: {command_for(path)}"
                )
            if not isinstance(reader, LayoutFormat):
                raise FormatError(
                    path, None, f"{reader.name} files cannot be read by several ranks: convert it"
                )
            header = reader.read_header(path, dims=dims, layout=layout)
            require_dims(path, header.dims, dims)
            found = reader.name, header
    name, header = comm.bcast(found)
    return _layout_format(comm, path, name), header


def _layout_format(comm: Any, path: PathLike, name: str) -> LayoutFormat:
    with _together(comm):
        found = format_named(name)
        if not isinstance(found, LayoutFormat):
            raise FormatError(path, None, f"{name} files cannot be written by several ranks")
    return found


@contextmanager
def _opened(
    comm: Any, reader: LayoutFormat, path: PathLike, header: Header
) -> Iterator[LinkSource]:
    with ExitStack() as stack:
        with _together(comm):
            storage = functools.partial(MpiStorage, comm)
            source = stack.enter_context(reader.open(path, header, storage))
        yield source


def _measure(
    comm: Any, source: LinkSource, header: Header, sink: LinkSink | None = None
) -> tuple[ChecksumSum | None, Sums]:
    checksum = source.new_checksum() if header.checksum is not None else None
    with _together(comm):
        sums = _transfer(comm, source, sink, source_checksum=checksum)
    return _merged(comm, checksum), _gathered(comm, sums)


def _save(
    comm: Any,
    path: PathLike,
    source: LinkSource,
    frame: Frame,
    change: Change | None,
    source_checksum: ChecksumSum | None = None,
    accept: Callable[[ChecksumSum | None, Sums], None] = lambda checksum, sums: None,
) -> None:
    """What `layout_format.save` does, by all ranks."""

    def conclude(checksum: ChecksumSum | None, sums: Sums) -> Written:
        everything = _gathered(comm, sums)
        accept(_merged(comm, source_checksum), everything)
        return written_of(path, source, everything, _merged(comm, checksum))

    written: Written | None = None
    if frame.measured_first:
        checksum = frame.new_checksum()
        with _together(comm):
            sums = _transfer(
                comm,
                source,
                ChecksumSink(frame.layout),
                source_checksum=source_checksum,
                sink_checksum=checksum,
                change=change,
            )
        written = conclude(checksum, sums)
    with _temporary(comm, path) as temporary:
        layout = None
        with _together(comm):
            if comm.rank == 0:
                layout = frame.begin(temporary, written)
        layout = comm.bcast(layout)
        checksum = None if written is not None else frame.new_checksum()
        with MpiStorage(comm, temporary, writable=True) as storage, _together(comm):
            sums = _transfer(
                comm,
                source,
                frame.sink(storage, layout),
                source_checksum=None if written is not None else source_checksum,
                sink_checksum=checksum,
                change=change,
                measure=written is None,
            )
        if written is None:
            written = conclude(checksum, sums)
        with _together(comm):
            if comm.rank == 0:
                frame.finish(temporary, written)
                write_companions(path, frame, written)


def _transfer(
    comm: Any,
    source: LinkSource,
    sink: LinkSink | None = None,
    *,
    sink_checksum: ChecksumSum | None = None,
    change: Change | None = None,
    **options: Any,
) -> Sums:
    """The transfer of this rank's share."""
    lt = source.dims[-1]
    mine = time_slices(lt, comm.rank, comm.size)
    slabs = slabs_of(source.dims)
    if not mine:
        return Sums([], [])
    own = [slab for slab in slabs if slab[0] in mine]
    return transfer(
        source, sink, sink_checksum=sink_checksum, change=change, slabs=own, threads=1, **options
    )


def _gathered(comm: Any, sums: Sums) -> Sums:
    """The sums of all ranks, in the order of the slabs, on every rank."""
    parts = comm.allgather((sums.source, sums.sink))
    return Sums(
        [item for source, _ in parts for item in source],
        [item for _, sink in parts for item in sink],
    )


def _merged(comm: Any, checksum: ChecksumSum | None) -> ChecksumSum | None:
    """The checksum of all ranks together, on every rank."""
    if checksum is None:
        return None

    def merge(one: ChecksumSum, other: ChecksumSum) -> ChecksumSum:
        one.absorb(other)
        return one

    merged: ChecksumSum = comm.allreduce(copy.deepcopy(checksum), op=merge)
    return merged


@contextmanager
def _temporary(comm: Any, path: PathLike) -> Iterator[Path]:
    """`atomic_path` of rank 0, for all ranks."""
    with ExitStack() as stack:
        temporary = None
        with _together(comm):
            if comm.rank == 0:
                temporary = stack.enter_context(atomic_path(path))
        yield comm.bcast(temporary)
        with _together(comm):
            stack.close()  # flushed and renamed by rank 0


@contextmanager
def _together(comm: Any) -> Iterator[None]:
    """A block that fails on all ranks if it fails on one of them, with the first one's error."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    errors = [error for error in comm.allgather(_portable(mine)) if error is not None]
    if errors:
        raise errors[0] from mine


def _portable(error: Exception | None) -> Exception | None:
    """The error as it can be sent to other ranks."""
    if error is None or isinstance(error, FormatError | OSError | ValueError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
