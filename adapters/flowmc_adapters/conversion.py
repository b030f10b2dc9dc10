"""From one format to another, losing nothing without saying so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .boundaries import has_open_end, require_open_end_allowed
from .changes import Reunitarize, StripSigns, chain
from .checks import require_group
from .configuration import Header, PathLike, number_of
from .fields.files import is_field, read_field, write_field
from .formats import Format
from .layout_format import LayoutFormat, save, scan, verdict_of
from .links import LinkSource
from .observables import measure_links, summarize
from .registry import (
    detect,
    format_named,
    read,
    require_dims,
    require_projectable,
    require_sound,
    signs_text,
)
from .transfer import Progress, Sums


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        source_format: name of the format that was read.
        format: name of the format that was written.
        source_precision: bits of the numbers that were read.
        precision: bits of the numbers that were written.
        number: configuration number, or None if the source gave none.
        warnings: oddities of the source, and what could not be kept.
    """

    source_format: str
    format: str
    source_precision: int
    precision: int
    number: int | None
    warnings: list[str]


def convert(
    source: PathLike,
    destination: PathLike,
    format: str,
    precision: int | None = None,
    *,
    check_checksum: bool = True,
    check_group: bool = True,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
    number: int | None = None,
    strip_signs: bool = False,
    reunitarize: bool = False,
    open_boundaries: bool = False,
    metadata: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Read a configuration, check it, and write it in another format.

    The links are the same bit by bit, unless one of `precision`, `strip_signs` and `reunitarize`
    asks for a change. Metadata and configuration number are carried over where the format has a
    place for them. Source and destination may be the same file. The field passes through slab by
    slab: memory does not grow with the lattice (formats that are no `LayoutFormat` are held in
    memory). Scalar and U(1) fields are converted among the formats of `write_field`.

    Args:
        source: file of any format.
        destination: file to write.
        format: name of the format to write.
        precision: 32 or 64; None keeps that of the source.
        check_checksum: as in `read`.
        check_group: refuse to write links outside SU(N), by the tolerance of `inspect`, which with
            a new checksum would look sound; if False they are written, with a warning.
        dims: as in `read`.
        layout: as in `read`.
        number: which configuration of an HDF5 file of scalar or U(1) fields.
        strip_signs: as in `read`.
        reunitarize: as in `read`.
        open_boundaries: write a field with open boundaries in time also in a format whose readers
            take every field for a periodic one.
        metadata: entries that replace those of the source.
        options: of the format written, see its `options`.
        progress: told about the slabs done and of all slabs.

    Raises:
        CheckError: the links that would be written are not in SU(N), see `check_group`.
        As `read` and `write`.
    """
    if layout in (None, "u1") and not os.path.isdir(source) and is_field(source, layout):
        if strip_signs or reunitarize or options or dims is not None:
            raise ValueError(
                f"{os.fspath(source)} holds a scalar or U(1) field, which has no links: dims, "
                "options, strip_signs and reunitarize do not apply"
            )
        return _convert_field(
            source, destination, format, precision, number, check_checksum, metadata or {}
        )
    reader, writer = detect(source, layout), format_named(format)
    if not writer.writable:
        raise writer.read_only(destination)
    wish = _Wish(
        precision=precision,
        check_checksum=check_checksum,
        check_group=check_group,
        dims=dims,
        layout=layout,
        strip_signs=strip_signs,
        reunitarize=reunitarize,
        open_boundaries=open_boundaries,
        metadata=dict(metadata or {}),
        options=dict(options or {}),
    )
    if isinstance(reader, LayoutFormat) and isinstance(writer, LayoutFormat):
        return _by_slabs(source, reader, destination, writer, wish, progress)
    return _in_memory(source, destination, writer, wish)


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """What is asked of a conversion of links, see `convert`."""

    precision: int | None
    check_checksum: bool
    check_group: bool
    dims: tuple[int, ...] | None
    layout: str | None
    strip_signs: bool
    reunitarize: bool
    open_boundaries: bool
    metadata: dict[str, str]
    options: dict[str, str]


def _in_memory(source: PathLike, destination: PathLike, writer: Format, wish: _Wish) -> Conversion:
    configuration = read(
        source,
        check_checksum=wish.check_checksum,
        dims=wish.dims,
        layout=wish.layout,
        strip_signs=wish.strip_signs,
        reunitarize=wish.reunitarize,
    )
    configuration.metadata |= wish.metadata
    if wish.check_group:
        group = measure_links(configuration.links).group
        require_group(source, configuration.dims, configuration.nc, group)
    if has_open_end(configuration.links):
        configuration.warnings += require_open_end_allowed(
            destination, writer, asked=wish.open_boundaries
        )
    lost = writer.write(destination, configuration, precision=wish.precision, **wish.options)
    return Conversion(
        configuration.format,
        writer.name,
        configuration.precision,
        wish.precision or configuration.precision,
        configuration.number,
        [*configuration.warnings, *lost],
    )


def _by_slabs(
    source: PathLike,
    reader: LayoutFormat,
    destination: PathLike,
    writer: LayoutFormat,
    wish: _Wish,
    progress: Progress | None,
) -> Conversion:
    header = reader.read_header(source, dims=wish.dims, layout=wish.layout)
    require_dims(source, header.dims, wish.dims)
    carried = header.metadata | wish.metadata
    warnings: list[str] = []
    with reader.open(source, header) as links:
        frame, rounding = writer.plan(destination, links, carried, wish.precision, wish.options)
        signs = _signs(links, header, warnings) if wish.strip_signs else None
        projection = Reunitarize() if wish.reunitarize else None
        if frame.layout.precision > header.precision:
            change = chain(signs, rounding, projection)
        else:
            change = chain(signs, projection, rounding)
        checksum = links.new_checksum() if header.checksum is not None else None

        def accept(sums: Sums) -> None:
            verdict = verdict_of(links, header, checksum, sums)
            group = verdict.measurements.group
            warnings.extend(require_sound(source, verdict, wish.check_checksum))
            if group.open_boundary:
                warnings.extend(
                    require_open_end_allowed(destination, writer, asked=wish.open_boundaries)
                )
            if wish.reunitarize:
                warnings.append(require_projectable(source, group, stripped=wish.strip_signs))
            if wish.check_group:
                written = summarize(links.dims, links.nc, sums.sink)
                require_group(source, links.dims, links.nc, written.group)

        save(
            destination,
            links,
            frame,
            change=change,
            source_checksum=checksum,
            accept=accept,
            progress=progress,
        )
    return Conversion(
        source_format=reader.name,
        format=writer.name,
        source_precision=header.precision,
        precision=frame.layout.precision,
        number=number_of(carried),
        warnings=[*warnings, *frame.warnings],
    )


def _convert_field(
    source: PathLike,
    destination: PathLike,
    format: str,
    precision: int | None,
    number: int | None,
    check_checksum: bool,
    metadata: Mapping[str, str],
) -> Conversion:
    field = read_field(source, number=number, check_checksum=check_checksum)
    field.metadata |= metadata
    lost = write_field(destination, field, format, precision)
    return Conversion(
        field.format,
        format,
        field.precision,
        precision or field.precision,
        field.number,
        [*field.warnings, *lost],
    )


def _signs(links: LinkSource, header: Header, warnings: list[str]) -> StripSigns | None:
    """What undoes the boundary signs of a file, found by reading it once."""
    found = scan(links, header).measurements.group.antiperiodic
    warnings.append(signs_text(found))
    return StripSigns(header.dims, found) if found else None
