"""The format "npy": plain numpy files, for gauge fields and for any other array.

A gauge field is a complex array `(Lt, Lz, Ly, Lx, 4, N, N)`, in d dimensions
`(L_{d-1}, ..., L_0, d, N, N)`. Scalar and U(1) fields are arrays of any shape, see `read_array` and
`write_array`. Nothing pickled is ever read or written. There is no metadata and no checksum.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic import atomic_write
from .configuration import Header, is_gauge_shape
from .errors import CheckError, FormatError
from .finite import first_non_finite
from .formats import PathLike
from .layout import Layout
from .layout_format import Description, Frame, LayoutFormat, Written
from .links import ArraySource, LinkSource

_MAGIC = b"\x93NUMPY"


class NumpyFormat(LayoutFormat):
    """A gauge field as a plain numpy file."""

    name = "npy"
    description = "plain numpy array (Lt, Lz, Ly, Lx, 4, N, N), without metadata or checksum"
    four_dimensions = False

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By magic."""
        return head.startswith(_MAGIC)

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`."""
        shape, fortran, dtype, offset = _array_header(path)
        _require_gauge_field(path, shape, dtype)
        warnings = []
        if len(shape) == 7 and shape[0] == 4:
            warnings.append(
                "the first axis, Lt by our convention, has 4 entries: if the file has the "
                "directions there (PyQUDA), move that axis to position 4 and write the file anew"
            )
        dims = tuple(reversed(shape[:-3]))
        precision = 4 * dtype.itemsize
        order = ">" if dtype.newbyteorder(">") == dtype else "<"
        return Header(
            format=self.name,
            dims=dims,
            nc=shape[-1],
            precision=precision,
            layout=(
                None if fortran else Layout(offset, dims, shape[-1], shape[-1], precision, order)
            ),
            warnings=warnings,
        )

    @contextmanager
    def open(self, path: PathLike, header: Header) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`; a file in Fortran order is held in memory."""
        if header.layout is None:
            yield ArraySource(np.ascontiguousarray(read_array(path)), path)
            return
        with super().open(path, header) as source:
            yield source

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        return _NumpyFrame(field)


class _NumpyFrame(Frame):
    def __init__(self, field: Description) -> None:
        super().__init__(Layout(0, field.dims, field.nc, field.nc, field.precision, "<"))
        if field.metadata:
            self.warnings.append(
                f"npy files have no place for: {', '.join(sorted(field.metadata))}"
            )

    def prefix(self, written: Written | None) -> bytes:
        layout = self.layout
        shape = (*reversed(layout.dims), len(layout.dims), layout.nc, layout.nc)
        file = io.BytesIO()
        description = {"descr": f"<c{layout.precision // 4}", "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**description, "shape": shape})
        return file.getvalue()


def read_array(path: PathLike) -> npt.NDArray[Any]:
    """Any array of numbers in an npy file, in the machine's byte order.

    Args:
        path: the file.

    Returns:
        The array as stored; no axis is moved.

    Raises:
        FormatError: not an npy file, truncated, or it holds objects.
        CheckError: an element is not finite.
    """
    shape, fortran_order, dtype, offset = _array_header(path)
    array: npt.NDArray[Any] = np.empty(shape, dtype, order="F" if fortran_order else "C")
    flat = array.reshape(-1, order="F" if fortran_order else "C")
    with open(path, "rb") as file:
        file.seek(offset)
        got = file.readinto(flat.view(np.uint8).data) if flat.size else 0
    if got != array.nbytes:
        raise FormatError(path, offset + (got or 0), "the file ends inside the array: truncated")
    array = array.astype(dtype.newbyteorder("="), copy=False)
    bad = first_non_finite(array)
    if bad is not None:
        raise CheckError(path, None, f"element {list(bad)} is not a finite number")
    return array


def write_array(path: PathLike, array: npt.NDArray[Any]) -> None:
    """Write an array of numbers atomically, little-endian and in C order on every machine.

    Raises:
        ValueError: the array does not hold plain numbers.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"cannot write an array of type {array.dtype}: numbers only")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    with atomic_write(path) as file:
        np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)


def _array_header(path: PathLike) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, type and offset of the data; checked against the size of the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                parsed = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                parsed = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"npy version {version}")
        # numpy evaluates the header as a Python literal: damage shows as almost any exception
        except Exception as error:
            raise FormatError(path, file.tell(), f"damaged npy header: {error}") from error
        offset = file.tell()
    shape, fortran_order, dtype = parsed
    if dtype.kind not in "biufc":
        raise FormatError(
            path, offset, f"npy file of type {dtype}: only plain numbers are read, never objects"
        )
    if any(extent < 0 for extent in shape) or len(shape) > 16:
        raise FormatError(path, offset, f"damaged npy header: shape {shape}")
    expected = math.prod(shape) * dtype.itemsize
    if size - offset != expected:
        raise FormatError(
            path,
            offset,
            f"an array of shape {shape} has {expected} bytes, the file has {size - offset}",
        )
    return shape, fortran_order, dtype, offset


def _require_gauge_field(path: PathLike, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    complex_types = (np.dtype(np.complex64), np.dtype(np.complex128))
    if dtype.newbyteorder("=") in complex_types and is_gauge_shape(shape):
        return
    raise FormatError(
        path,
        None,
        f"a {dtype.name} array of shape {shape} is not a gauge field (Lt, Lz, Ly, Lx, 4, N, N); "
        "PyQUDA keeps the directions first, move that axis to position 4; scalar and U(1) fields "
        "are read with flowmc_adapters.read_array",
    )
