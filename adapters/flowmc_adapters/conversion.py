"""From one format to another, losing nothing without saying so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .formats import PathLike
from .registry import read, write


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
    dims: tuple[int, ...] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Conversion:
    """Read a configuration, check it, and write it in another format.

    The links are the same bit by bit, unless `precision=32` rounds 64-bit ones. Metadata and
    configuration number are carried over where the format has a place for them. Source and
    destination may be the same file.

    Args:
        source: file of any format.
        destination: file to write.
        format: name of the format to write.
        precision: 32 or 64; None keeps that of the source.
        check_checksum: as in `read`.
        dims: as in `read`.
        metadata: entries that replace those of the source.

    Raises:
        As `read` and `write`.
    """
    configuration = read(source, check_checksum=check_checksum, dims=dims)
    configuration.metadata |= metadata or {}
    warnings = list(configuration.warnings)
    warnings += write(destination, configuration, format, precision)
    return Conversion(
        source_format=configuration.format,
        format=format,
        source_precision=configuration.precision,
        precision=configuration.precision if precision is None else precision,
        number=configuration.number,
        warnings=warnings,
    )
