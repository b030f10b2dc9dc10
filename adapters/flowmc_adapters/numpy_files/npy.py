"""The format "npy": plain numpy files, for gauge fields and for any other array.

Three layouts of gauge fields are in use, told apart by their shapes:

    flowmc         (Lt, Lz, Ly, Lx, 4, N, N), in d dimensions (L_{d-1}, ..., L_0, d, N, N)
    pyquda         (4, Lt, Lz, Ly, Lx, N, N)
    latticeqcd-rs  four files `...u0.npy` to `...u3.npy`, (N, N, Lx, Ly, Lz, Lt) (read only)

Scalar and U(1) fields are arrays of any shape, see `read_array` and `write_array`. Nothing pickled
is ever read or written. There is no metadata and no checksum.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..atomic import atomic_write
from ..byte_order import proven_order
from ..configuration import Header, is_gauge_shape
from ..errors import CheckError, FormatError
from ..finite import first_non_finite, not_finite_text
from ..formats import PathLike
from ..layout import Layout
from ..layout_format import Description, Frame, LayoutFormat, Written
from ..links import ArraySource, LinkSource
from ..storage import FileStorage, OpenStorage
from .siblings import Part, SiblingSource, is_one_direction, sibling_paths

_MAGIC = b"\x93NUMPY"
# Magic, version, length of the header in two or, from version 2 on, four bytes.
_NPY_START = struct.Struct("<6sBBHH")
# numpy's own limit
_LONGEST_HEADER = 10_000
_LONGEST_MESSAGE = 200


class NumpyFormat(LayoutFormat):
    """A gauge field as a plain numpy file."""

    name = "npy"
    description = "plain numpy array (ours, PyQUDA; latticeqcd-rs read only), without metadata"
    options = {"style": ("flowmc", "pyquda")}  # noqa: RUF012 - declared in Format
    layouts = ("flowmc", "pyquda")
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
        shape, fortran, dtype, offset = array_header(path)
        possible = possible_layouts(shape, dtype)
        if (
            layout is None
            and _is_complex(dtype)
            and is_one_direction(path, shape, fortran, bool(possible))
        ):
            return self._siblings_header(path, shape, dtype)
        chosen, warnings = _choose(path, shape, dtype, possible, layout)
        axes = shape[:-3] if chosen == "flowmc" else shape[1:-2]
        extents, nc = tuple(reversed(axes)), shape[-1]
        precision = 4 * dtype.itemsize
        order = ">" if dtype.newbyteorder(">") == dtype else "<"
        place = Layout(offset, extents, nc, nc, precision, order)
        if chosen == "pyquda":
            place = directions_first(place)
        if not fortran:
            place = proven_order(path, place, warnings)
        return Header(
            format=self.name,
            dims=extents,
            nc=nc,
            precision=precision,
            layout=None if fortran else place,
            # Not the writer's name alone: what `open` goes by for a file in Fortran order
            writer="PyQUDA" if chosen == "pyquda" else "",
            warnings=warnings,
        )

    def _siblings_header(self, path: PathLike, shape: tuple[int, ...], dtype: Any) -> Header:
        for sibling in sibling_paths(path):
            other = array_header(sibling)
            if other[0] != shape or other[2] != dtype:
                raise FormatError(
                    path,
                    None,
                    f"{sibling} holds a {other[2]} array of shape {other[0]}, this file a {dtype} "
                    f"array of shape {shape}: they are not the directions of one field",
                )
        return Header(
            format=self.name,
            dims=shape[2:],
            nc=shape[0],
            precision=4 * dtype.itemsize,
            writer="latticeqcd-rs",
        )

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`; a file whose axes are in Fortran order is held in memory."""
        if header.writer == "latticeqcd-rs":
            with _open_siblings(path, header) as source:
                yield source
        elif header.layout is None:
            array = read_array(path)
            if header.writer == "PyQUDA":
                array = np.moveaxis(array, 0, -3)
            yield ArraySource(np.ascontiguousarray(array), path)
        else:
            with super().open(path, header, storage) as source:
                yield source

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        if options["style"] == "pyquda" and len(field.dims) != 4:
            raise FormatError(
                path,
                None,
                f"PyQUDA's layout is for four-dimensional lattices, this field has "
                f"{len(field.dims)} dimensions: leave out style='pyquda'",
            )
        return _NumpyFrame(field, options["style"])


@contextmanager
def _open_siblings(path: PathLike, header: Header) -> Iterator[LinkSource]:
    """The links of four files; in C order, which nobody writes, they are held in memory."""
    paths = sibling_paths(path)
    headers = [array_header(sibling) for sibling in paths]
    if not all(fortran for _, fortran, _, _ in headers):
        parts = np.stack([read_array(sibling) for sibling in paths])
        yield ArraySource(np.ascontiguousarray(parts.transpose(6, 5, 4, 3, 0, 1, 2)), path)
        return
    with ExitStack() as stack:
        yield SiblingSource(
            header,
            [
                Part(stack.enter_context(FileStorage(sibling)), offset, dtype)
                for sibling, (_, _, dtype, offset) in zip(paths, headers, strict=True)
            ],
        )


class _NumpyFrame(Frame):
    def __init__(self, field: Description, style: str) -> None:
        layout = Layout(0, field.dims, field.nc, field.nc, field.precision, "<")
        super().__init__(layout if style == "flowmc" else directions_first(layout))
        if field.metadata:
            self.warnings.append(
                f"npy files have no place for: {', '.join(sorted(field.metadata))}"
            )

    def prefix(self, written: Written | None) -> bytes:
        return gauge_header(self.layout)


def gauge_header(layout: Layout) -> bytes:
    """The npy header of links stored in this layout."""
    lattice, directions = tuple(reversed(layout.dims)), (len(layout.dims),)
    before = (*lattice, *directions) if layout.directions is None else (*directions, *lattice)
    description = {
        "descr": f"<c{layout.precision // 4}",
        "fortran_order": False,
        "shape": (*before, layout.nc, layout.nc),
    }
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def directions_first(layout: Layout) -> Layout:
    """The same links with the directions apart, one after the other, as PyQUDA keeps them."""
    share = layout.total_bytes // len(layout.dims)
    firsts = tuple(layout.offset + mu * share for mu in range(len(layout.dims)))
    return Layout(0, layout.dims, layout.nc, layout.nc, layout.precision, layout.byte_order, firsts)


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
    shape, fortran_order, dtype, offset = array_header(path)
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
        raise CheckError(path, None, not_finite_text(f"element {list(bad)}"))
    return array


def array_type(path: PathLike) -> np.dtype[Any]:
    """Type of the numbers in an npy file, from its header alone.

    Raises:
        FormatError: not an npy file, truncated, or it holds objects.
    """
    return array_header(path)[2]


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


def array_header(path: PathLike) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, type and offset of the data; checked against the size of the file."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, fortran_order, dtype = parse_header(path, file)
        offset = file.tell()
    if dtype.kind not in "biufc":
        raise FormatError(
            path, offset, f"npy file of type {dtype}: only plain numbers are read, never objects"
        )
    expected = math.prod(shape) * dtype.itemsize
    if size - offset != expected:
        raise FormatError(
            path,
            offset,
            f"an array of shape {shape} has {expected} bytes, the file has {size - offset}",
        )
    return shape, fortran_order, dtype, offset


def parse_header(path: PathLike, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of an array; `file` is left at its first byte.

    Raises:
        FormatError: damaged.
    """
    begin = file.tell()
    start = file.read(_NPY_START.size)
    file.seek(begin)
    # numpy would read all of it before it finds it too long
    if len(start) == _NPY_START.size:
        _, major, _, short, high = _NPY_START.unpack(start)
        length = short if major == 1 else short + (high << 16)
        if length > _LONGEST_HEADER:
            raise FormatError(path, begin, f"damaged npy header: it would have {length} bytes")
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"npy version {version}")
    # numpy evaluates the header as a Python literal: damage shows as almost any exception
    except Exception as error:
        text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
        raise FormatError(path, begin, f"damaged npy header: {text}") from error
    if any(extent < 0 for extent in shape) or len(shape) > 16:
        raise FormatError(path, begin, f"damaged npy header: shape {shape}")
    return shape, fortran_order, dtype


def _is_complex(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("=") in (np.dtype(np.complex64), np.dtype(np.complex128))


def possible_layouts(shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[str]:
    """The layouts of gauge fields that an array can be read in."""
    possible = []
    if _is_complex(dtype):
        if is_gauge_shape(shape):
            possible.append("flowmc")
        # The directions moved to where we keep them
        if len(shape) >= 5 and is_gauge_shape((*shape[1:-2], shape[0], *shape[-2:])):
            possible.append("pyquda")
    return possible


def _choose(
    path: PathLike,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    possible: list[str],
    asked: str | None,
) -> tuple[str, list[str]]:
    """The layout to read an array in, and warnings.

    Raises:
        FormatError: it is no gauge field, or not in the layout asked for.
    """
    if asked is not None:
        if asked not in possible:
            raise FormatError(
                path,
                None,
                f"a {dtype.name} array of shape {shape} is not in the layout {asked!r}"
                + (f"; {possible[0]!r} would fit" if possible else ""),
            )
        return asked, []
    if not possible:
        raise FormatError(
            path,
            None,
            f"a {dtype.name} array of shape {shape} is not a gauge field: neither (Lt, Lz, Ly, Lx, "
            "4, N, N), nor PyQUDA's (4, Lt, Lz, Ly, Lx, N, N), nor one direction (N, N, Lx, Ly, "
            "Lz, Lt) of latticeqcd-rs; scalar and U(1) fields are read with "
            "flowmc_adapters.read_field or read_array",
        )
    if len(possible) == 1:
        return possible[0], []
    return "flowmc", [
        f"shape {shape} can be read in two ways: as (Lt, ..., directions, N, N), which was done, "
        "and as (directions, Lt, ..., N, N), as PyQUDA stores it; if the latter is meant, ask for "
        "layout='pyquda' (--layout pyquda)"
    ]
