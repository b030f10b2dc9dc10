"""Reading and writing scalar and U(1) fields: the formats "hdf5", "ildg" (also called "lime") and
"npy". There is no community format for them; the first two are our own, described in
`fields_hdf5` and `fields_lime`, with metadata and a checksum; npy has neither. The U(1) field of
openQ*D's exported configurations is read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..configuration import PathLike
from ..errors import CheckError, FormatError
from ..field_configuration import SCALAR, U1, FieldConfiguration, is_field_shape
from ..finite import first_non_finite
from ..hdf5 import fields as fields_hdf5
from ..hdf5.file import is_hdf5
from ..heads import read_head
from ..lime import container as lime
from ..lime import fields as fields_lime
from ..numpy_files.npy import array_type, read_array, write_array
from ..openqcd.u1 import find_u1, read_u1
from ..printing import printable
from ..registry import detect
from ..selection import file_of, split_selection
from ..unpacking import compression_of, is_compressed, unpacked

FIELD_FORMATS = ("hdf5", "ildg", "lime", "npy")


def field_format(path: PathLike) -> str | None:
    """ "hdf5", "lime", "npy" or "openqcd" if the file may hold a scalar or U(1) field and no links,
    else None.

    Raises:
        FormatError: a pipe or a device.
        OSError: the file cannot be opened.
    """
    path = file_of(path)
    if Path(path).is_dir():
        return None
    head = read_head(path)
    if compression_of(head):
        with unpacked(path) as plain:
            return field_format(plain)
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if is_hdf5(head, path) and fields_hdf5.is_field_file(path):
        return "hdf5"
    if head[:4] == struct.pack(">I", lime.MAGIC) and fields_lime.is_field_file(path):
        return "lime"
    u1 = find_u1(path)
    return "openqcd" if u1 is not None and u1.alone else None


def is_field(path: PathLike, layout: str | None = None) -> bool:
    """Whether a file holds a scalar or U(1) field: an npy file does if its numbers are real.

    Args:
        path: the file.
        layout: "u1" if the U(1) field of a file that holds links as well is meant.

    Raises:
        FormatError: a damaged npy file.
        OSError: the file cannot be opened.
    """
    if is_compressed(path):
        with unpacked(path) as plain:
            return is_field(plain, layout)
    found = field_format(path)
    if layout == "u1" and found is None and find_u1(path) is not None:
        return True
    return found is not None and (found != "npy" or array_type(path).kind != "c")


def field_numbers(path: PathLike) -> list[int]:
    """The numbers of the configurations in an HDF5 file, ascending; of FILE#N just N.

    Raises:
        FormatError: no HDF5 file, or damaged.
        OSError: the file cannot be opened.
    """
    if is_compressed(path):
        with unpacked(path) as plain:
            return field_numbers(plain)
    path, selection = split_selection(path)
    if selection is not None and selection.isdecimal():
        return [int(selection)]
    return [number for number in fields_hdf5.numbers(path) if number is not None]


def read_field(
    path: PathLike,
    *,
    number: int | None = None,
    kind: str | None = None,
    check_checksum: bool = True,
) -> FieldConfiguration:
    """Read a scalar or U(1) field.

    Args:
        path: the file; its format is recognised by content. "FILE#N" is the N-th field of a LIME
            file, and configuration number N of an HDF5 file.
        number: which configuration of an HDF5 file; None for the only one.
        kind: "scalar" or "u1", for npy files, whose shape may leave it open.
        check_checksum: if False, a wrong checksum or plaquette becomes a warning and an entry of
            `failed_checks`.

    Raises:
        FormatError: not readable, another kind, or no such configuration.
        CheckError: the checksum or the plaquette is wrong, or a number is not finite (the latter
            whatever `check_checksum` is).
        OSError: the file cannot be opened.
    """
    if is_compressed(path):
        with unpacked(path) as plain:
            return read_field(plain, number=number, kind=kind, check_checksum=check_checksum)
    found = field_format(path)
    path, selection = split_selection(path)
    if found == "hdf5":
        field = fields_hdf5.read(path, _selected_number(path, number, selection))
    elif found == "lime":
        field = fields_lime.read(path, selection)
    elif selection is not None:
        raise FormatError(path, None, f"holds no configuration to be selected by #{selection}")
    elif found == "npy":
        field = _read_npy(path, kind)
    elif (place := find_u1(path)) is not None:
        field = read_u1(path, place)
    else:
        _explain(path)
    if number is not None and found != "hdf5" and field.number not in (None, number):
        raise FormatError(path, None, f"holds configuration {field.number}, not {number}")
    if kind is not None and field.kind != kind:
        raise FormatError(path, None, f"holds a field of kind {field.kind!r}, not {kind!r}")
    bad = first_non_finite(field.values)
    if bad is not None:
        raise CheckError(path, None, f"element {list(bad)} is not a finite number")
    if field.checksum is None:
        if found != "npy":
            field.warnings.append("no checksum in this file: damage would go unnoticed")
    elif not field.checksum.ok:
        reason = (
            f"checksum does not match: stored {field.checksum.stored}, computed "
            f"{field.checksum.computed}; the field is damaged (read on with check_checksum=False)"
        )
        if check_checksum:
            raise CheckError(path, None, reason)
        field.failed_checks["checksum"] = reason
        field.warnings.append(reason)
    if "plaquette" in field.failed_checks:
        reason = field.failed_checks["plaquette"]
        if check_checksum:
            raise CheckError(path, None, reason)
        field.warnings.append(reason)
    field.warnings[:] = map(printable, field.warnings)  # they may quote the file
    return field


def write_field(
    path: PathLike, field: FieldConfiguration, format: str, precision: int | None = None
) -> list[str]:
    """Write a scalar or U(1) field, atomically and reproducibly: equal arguments, equal bytes.

    Args:
        path: the file; replaced if it exists.
        field: values and metadata.
        format: "hdf5", "ildg" (or "lime", the same), "npy".
        precision: 32 or 64; None keeps that of the values.

    Returns:
        Warnings on what could not be kept: digits, metadata.

    Raises:
        ValueError: unknown format or precision.
        CheckError: the values are not finite.
        OSError: disk full and the like; a file that was there before is untouched.
    """
    if format not in FIELD_FORMATS:
        raise ValueError(
            f"scalar and U(1) fields are written as {', '.join(FIELD_FORMATS)}; not {format!r}"
        )
    field, warnings = _ready(path, field, precision)
    if format == "hdf5":
        fields_hdf5.write(path, field)
    elif format == "npy":
        write_array(path, field.values)
        if field.metadata:
            warnings.append(f"npy files have no place for: {', '.join(sorted(field.metadata))}")
    else:
        fields_lime.write(path, field)
    return warnings


def append_field(path: PathLike, field: FieldConfiguration, number: int | None = None) -> list[str]:
    """Add a configuration to an HDF5 file of fields, which is made if it does not exist.

    A crash at any moment loses the configuration that is being added and no other. One process may
    append at a time; others may read meanwhile.

    Args:
        path: the file.
        field: values and metadata.
        number: of the configuration; None for `SEQUENCE_NUMBER` of the metadata.

    Returns:
        Warnings.

    Raises:
        ValueError: no number, or a negative one.
        FormatError: the file holds this number already, or is not one of ours.
        CheckError: the values are not finite.
        OSError: disk full and the like; the file is as before.
    """
    chosen = field.number if number is None else number
    if chosen is None or not 0 <= chosen < 10**18:
        raise ValueError(f"a configuration in an ensemble file needs a number from 0, not {chosen}")
    field, warnings = _ready(path, field, None)
    fields_hdf5.append(path, field, chosen)
    return warnings


def _selected_number(path: PathLike, number: int | None, selection: str | None) -> int | None:
    if selection is None:
        return number
    if not selection.isdecimal() or number not in (None, int(selection)):
        other = "" if number is None else f", and number {number} was asked for as well"
        raise FormatError(path, None, f"#{selection} is no number of a configuration{other}")
    return int(selection)


def _ready(
    path: PathLike, field: FieldConfiguration, precision: int | None
) -> tuple[FieldConfiguration, list[str]]:
    """The field in the precision of the file, and warnings."""
    if precision not in (None, 32, 64):
        raise ValueError(f"precision must be 32 or 64, not {precision!r}")
    warnings = []
    values = field.values
    if precision is not None and precision != field.precision:
        if precision == 32:
            warnings.append("values rounded from 64 to 32 bit, as asked")
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is then refused
            values = values.astype(np.float32 if precision == 32 else np.float64)
    bad = first_non_finite(values)
    if bad is not None:
        raise CheckError(
            path,
            None,
            f"refusing to write a field that is not finite, at element {list(bad)}; nothing was "
            "written",
        )
    return FieldConfiguration(np.ascontiguousarray(values), field.kind, field.metadata), warnings


def _read_npy(path: PathLike, kind: str | None) -> FieldConfiguration:
    array = read_array(path)
    if array.dtype.kind == "c":
        raise FormatError(
            path, None, "holds complex numbers, but scalar and U(1) fields are stored as real"
        )
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    possible = [one for one in (U1, SCALAR) if is_field_shape(array.shape, one)]
    if not possible or (kind is not None and kind not in possible):
        wanted = kind or "scalar or U(1)"
        raise FormatError(path, None, f"an array of shape {array.shape} is no {wanted} field")
    warnings = []
    if kind is None and len(possible) > 1:
        warnings.append(
            f"shape {array.shape} may be U(1) angles (Lt, ..., Lx, d), as which it was read, or a "
            "scalar field: say kind='scalar' if it is one"
        )
    return FieldConfiguration(
        np.ascontiguousarray(array), kind or possible[0], {}, warnings, format="npy"
    )


def _explain(path: PathLike) -> NoReturn:
    """Raise for a file that holds no scalar or U(1) field."""
    found = detect(path)
    if found.name == "hdf5":
        fields_hdf5.read(path)  # says what is wrong, if it is damaged
    raise FormatError(
        path,
        None,
        f"a {found.name} file, which holds SU(N) links; scalar and U(1) fields are in files of the "
        f"formats {', '.join(FIELD_FORMATS)}",
    )
