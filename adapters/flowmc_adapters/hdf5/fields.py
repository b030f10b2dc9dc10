"""Scalar and U(1) fields in HDF5 files, one or many in a file.

A configuration with a number is the group `configurations/00000123`, one without `configuration`.
In the group, dataset `field` holds the values, and attributes everything else: format, version,
kind, axes, conventions, dims, suma and sumb (the SciDAC checksum of the little-endian bytes of the
sites), metadata (a JSON object of strings).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..atomic import atomic_path
from ..bounds import require_bounded
from ..checksums import parse_hexadecimal
from ..configuration import Checksum, PathLike
from ..errors import FormatError
from ..field_configuration import (
    CONVENTIONS,
    KINDS,
    U1,
    FieldConfiguration,
    is_field_shape,
    site_checksum,
)
from ..heads import require_file
from ..metadata import metadata_text, parse_metadata
from .append import Overlay, appending, pending
from .attributes import attribute, set_attributes, text_attribute
from .file import created, guarded, member, new_dataset, number_type, opened, place_of
from .writing import CHECKSUM_DEFINITION

FIELD_FORMAT = "flowmc field"
GROUP, SINGLE, DATASET = "configurations", "configuration", "field"


def is_field_file(path: PathLike) -> bool:
    """Whether an HDF5 file holds scalar or U(1) fields of ours; False for a damaged one."""
    try:
        with _view(path) as file, guarded(path):
            return _has_fields(file, path)
    except (FormatError, OSError):
        return False


def numbers(path: PathLike) -> list[int | None]:
    """The numbers of the configurations in a file, ascending; None for one without, first.

    Raises:
        FormatError: damaged.
        OSError: the file cannot be opened.
    """
    with _view(path) as file, guarded(path):
        return list(_groups(file, path))


def read(path: PathLike, number: int | None = None) -> FieldConfiguration:
    """One configuration of a file, its checksum computed but not judged.

    Args:
        path: the file.
        number: which; None for the only one.

    Raises:
        FormatError: damaged, no such configuration, or several and `number` is None.
        OSError: the file cannot be opened.
    """
    with _view(path) as file, guarded(path):
        # Straight to the one that is asked for: listing all takes a time that grows with them.
        asked = None if number is None else member(file, f"{GROUP}/{number:08d}")
        if _is_field_group(asked, path):
            return _read_group(asked, path)
        groups = _groups(file, path)
        if not groups:
            raise FormatError(
                path,
                None,
                "no scalar or U(1) field of this package in this HDF5 file: no group "
                f"{SINGLE!r} or {GROUP!r}; gauge fields are read with flowmc_adapters.read",
            )
        if number is None and len(groups) > 1:
            raise FormatError(
                path,
                None,
                f"{len(groups)} configurations, numbers {_some(groups)}: say which with number=",
            )
        if number is not None and number not in groups:
            raise FormatError(
                path, None, f"no configuration {number}; the file holds {_some(groups)}"
            )
        chosen = next(iter(groups)) if number is None else number
        return _read_group(file[groups[chosen]], path)


def write(path: PathLike, field: FieldConfiguration) -> None:
    """Write a file with one configuration atomically; equal arguments give equal bytes."""
    with atomic_path(path) as temporary, created(temporary) as file:
        _add(file, field, field.number)


def append(path: PathLike, field: FieldConfiguration, number: int) -> None:
    """Add a configuration to a file, which is made if it does not exist; see `hdf5.append`.

    The time it takes grows with the logarithm of the number of configurations in the file.

    Raises:
        FormatError: the file holds that number already, or is not one of ours.
        OSError: disk full and the like, or another process is appending; the file is as before.
    """
    if not os.path.exists(path):
        with atomic_path(path) as temporary, created(temporary) as file:
            _add(file, field, number)
        return
    with appending(path) as file:
        with guarded(path):
            known, there = _has_fields(file, path), _holds(file, number)
        if not known:
            raise FormatError(path, None, "an HDF5 file without fields of this package")
        if there:
            raise FormatError(
                path, None, f"configuration {number} is in this file already: nothing was written"
            )
        _add(file, field, number)


def _add(file: Any, field: FieldConfiguration, number: int | None) -> None:
    group = file.create_group(SINGLE if number is None else f"{GROUP}/{number:08d}")
    stored = np.dtype(f"<f{field.precision // 8}")
    new_dataset(group, DATASET, field.values.shape, stored)
    group[DATASET][...] = field.values
    suma, sumb = site_checksum(field.values, field.kind, "<").sums
    count = len(field.dims)
    names = list("xyzt") if count == 4 else [str(mu) for mu in range(count)]
    metadata = dict(field.metadata)
    if number is not None:
        metadata["SEQUENCE_NUMBER"] = str(number)
    set_attributes(
        group,
        {
            "format": FIELD_FORMAT,
            "version": 1,
            "kind": field.kind,
            "axes": " ".join([*reversed(names), *(["mu"] if field.kind == U1 else [])]),
            "conventions": CONVENTIONS[field.kind],
            "dims": field.dims,
            "suma": f"{suma:x}",
            "sumb": f"{sumb:x}",
            "checksum_definition": CHECKSUM_DEFINITION,
            "metadata": metadata_text(metadata),
        },
    )


def _read_group(group: Any, path: PathLike) -> FieldConfiguration:
    kind = text_attribute(group, "kind", path)
    if kind not in KINDS:
        raise FormatError(path, None, f"{group.name}: kind {kind!r} is none of {', '.join(KINDS)}")
    dataset = member(group, DATASET)
    found = None if not hasattr(dataset, "dtype") else number_type(dataset)
    if found is None or found.element.kind != "f" or found.inner:
        raise FormatError(path, None, f"{group.name} has no dataset {DATASET!r} of real numbers")
    shape = tuple(dataset.shape or ())
    dims = tuple(reversed(shape[:-1] if kind == U1 else shape))
    given = attribute(group, "dims", path)
    stated = tuple(given) if isinstance(given, list) else (given,)
    if not is_field_shape(shape, kind) or stated not in ((None,), dims):
        raise FormatError(
            path, None, f"{group.name}: dims {stated} and shape {shape} contradict each other"
        )
    if place_of(dataset, path) is None:  # raises if the claimed size does not fit the file
        size, packed = dataset.size * dataset.dtype.itemsize, int(dataset.id.get_storage_size())
        require_bounded(path, dataset.name, size, size, packed)
    values = np.ascontiguousarray(dataset[...], dtype=found.element.newbyteorder("="))
    warnings: list[str] = []
    metadata = parse_metadata(text_attribute(group, "metadata", path))
    if metadata is None:
        warnings.append("attribute metadata is not a JSON object of texts: ignored")
    texts = [text_attribute(group, name, path) for name in ("suma", "sumb")]
    sums = [parse_hexadecimal(text or "") for text in texts]
    checksum = None
    if any(text is not None for text in texts):
        known = [f"{one:x}" for one in sums if one is not None]
        checksum = Checksum(
            "scidac",
            " ".join(known) if len(known) == 2 else "unreadable",
            site_checksum(values, kind, "<").text,
        )
    return FieldConfiguration(values, kind, metadata or {}, warnings, checksum, format="hdf5")


def _groups(file: Any, path: PathLike) -> dict[int | None, str]:
    """Paths of the configurations by number, ascending, the one without number first."""
    found: dict[int | None, str] = {}
    if _is_field_group(member(file, SINGLE), path):
        found[None] = f"/{SINGLE}"
    parent = member(file, GROUP)
    if parent is not None and hasattr(parent, "keys"):
        names = [name for name in parent if name.isascii() and name.isdigit() and len(name) < 19]
        names = sorted(names, key=int)
        ours = bool(names) and _is_field_group(member(parent, names[0]), path)
        for name in names if ours else []:
            if member(parent, name) is not None:
                found[int(name)] = f"/{GROUP}/{name}"
    return found


def _has_fields(file: Any, path: PathLike) -> bool:
    """Whether there is a configuration of ours; found without going through all of them."""
    import h5py

    if _is_field_group(member(file, SINGLE), path):
        return True
    parent = member(file, GROUP)
    if parent is None or not hasattr(parent, "keys"):
        return False
    # Any other order is made from a list of all
    first, _ = parent.id.links.iterate(
        lambda name: name if name.isdigit() else None, order=h5py.h5.ITER_NATIVE
    )
    return first is not None and _is_field_group(member(parent, first.decode()), path)


def _holds(file: Any, number: int) -> bool:
    parent = member(file, GROUP)
    name = f"{number:08d}".encode()
    return parent is not None and bool(parent.id.links.exists(name))


def _is_field_group(group: Any, path: PathLike) -> bool:
    if group is None or not hasattr(group, "keys"):
        return False
    return text_attribute(group, "format", path) == FIELD_FORMAT


def _some(groups: dict[int | None, str]) -> str:
    named = [number for number in groups if number is not None]
    if len(named) <= 4:
        return ", ".join(map(str, named)) or "one without a number"
    return f"{named[0]}, {named[1]}, ... {named[-1]}"


@contextmanager
def _view(path: PathLike) -> Iterator[Any]:
    """The file, completed in memory if an append was interrupted."""
    require_file(path)
    patches = pending(path)
    if not patches:
        with opened(path) as file:
            yield file
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with opened(path, Overlay(descriptor, patches)) as file:
            yield file
    finally:
        os.close(descriptor)
