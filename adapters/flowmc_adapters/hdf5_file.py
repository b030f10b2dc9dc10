"""HDF5 files that may be damaged or hostile: opening them, walking through them, looking at what a
dataset claims before any of it is read.

h5py is imported when the first HDF5 file is opened: reading other formats does not pay for it.
Only hard links are followed, and nothing outside the file is ever opened: soft and external links,
virtual datasets and external storage are refused.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .configuration import PathLike
from .errors import FormatError

MAGIC = b"\x89HDF\r\n\x1a\n"
# Superblock and groups that every HDF5 library since 2008 reads, with checksums in the headers;
# fixed, so that equal input gives equal bytes whatever the library's defaults.
VERSIONS = ("v108", "v108")
_MOST_OBJECTS = 100_000
_LARGEST_ATTRIBUTE = 2**24
# Deflate cannot do better than this.
MOST_COMPRESSION = 1032
_LARGEST_CHUNK = 2**26
_HEAP = b"GCOL"
_LARGEST_HEAP = 2**28
_SCAN_BYTES = 2**24


@contextmanager
def guarded(path: PathLike) -> Iterator[None]:
    """Errors of h5py as FormatError; a damaged file can raise almost any kind.

    Only h5py calls belong inside: an OSError of the other file being written is no fault of this
    one.
    """
    try:
        yield
    except (FormatError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise FormatError(
            path, None, f"the HDF5 library cannot read this: {text}; the file is damaged"
        ) from error


@contextmanager
def opened(path: PathLike, driven: Any = None) -> Iterator[Any]:
    """An HDF5 file, open for reading.

    Args:
        path: the file.
        driven: a file object to read instead, of the same file.

    Raises:
        FormatError: no HDF5 file, truncated, or damaged.
        OSError: it cannot be opened.
    """
    with guarded(path):
        import h5py

        # Without locks: they fail on many network file systems, and readers need none
        file = h5py.File(path if driven is None else driven, "r", locking=False)
    try:
        yield file
    finally:
        with guarded(path):
            file.close()


@contextmanager
def created(path: PathLike) -> Iterator[Any]:
    """A new HDF5 file; what is in it depends on what is put in only."""
    with _writable(path, "w") as file:
        yield file


@contextmanager
def completed(path: PathLike) -> Iterator[Any]:
    """A file of `created`, open for more."""
    with _writable(path, "r+") as file:
        yield file


@contextmanager
def _writable(path: PathLike, mode: str) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, mode, libver=VERSIONS, locking=False) as file:
            yield file
    except RuntimeError as error:  # a full disk, where it is noticed on closing only
        text = " ".join(str(error).split())
        number = re.search(r"errno = (\d+)", text)
        code = errno.EIO if number is None else int(number[1])
        raise OSError(code, f"the HDF5 library cannot write: {text}", os.fspath(path)) from error


def new_dataset(group: Any, name: str, shape: tuple[int, ...], kind: np.dtype[Any]) -> int:
    """Make a contiguous dataset without time stamp, all of its bytes allocated and none written.

    Args:
        group: where.
        name: of the dataset.
        shape: of the dataset.
        kind: type of an element.

    Returns:
        Offset of the first byte in the file.
    """
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    space, element = h5py.h5s.create_simple(shape), h5py.h5t.py_create(kind, logical=True)
    made = h5py.h5d.create(group.id, name.encode(), element, space, properties)
    return int(made.get_offset())


def set_attributes(
    owner: Any, attributes: Mapping[str, str | int | float | tuple[int, ...]]
) -> None:
    """Attributes of fixed length: these are covered by the checksums of the file's headers."""
    for name, value in attributes.items():
        if isinstance(value, str):
            owner.attrs[name] = np.bytes_(value.encode("ascii", errors="replace"))
        elif isinstance(value, float):
            owner.attrs[name] = np.float64(value)
        else:
            owner.attrs[name] = np.array(value, dtype="<i8")


def walk(file: Any, path: PathLike) -> tuple[list[tuple[str, Any]], list[str]]:
    """All groups and datasets reached by hard links, parents first, siblings by name.

    Returns:
        Paths and objects, the root group included, and the paths of links that were not followed.

    Raises:
        FormatError: damaged, or more objects than can be meant.
    """
    import h5py

    objects: list[tuple[str, Any]] = [("/", file["/"])]
    skipped: list[str] = []
    seen: set[int] = set()
    with guarded(path):
        # Grows on the way: breadth first, and no recursion that a damaged file could deepen
        for place, group in objects:
            if not isinstance(group, h5py.Group):
                continue
            for name in group:
                inner = f"{place.rstrip('/')}/{name}"
                link = group.id.links.get_info(name.encode())
                if link.type != h5py.h5l.TYPE_HARD:
                    skipped.append(inner)
                # The address is that in the link: to ask the object for it makes the library look
                # through indices that may be damaged, in which it crashes (HDF5 2.0)
                elif link.u not in seen:
                    seen.add(link.u)
                    found = group[name]
                    if isinstance(found, h5py.Group | h5py.Dataset):
                        objects.append((inner, found))
                if len(objects) + len(skipped) > _MOST_OBJECTS:
                    raise FormatError(path, None, f"more than {_MOST_OBJECTS} objects")
    return objects, skipped


def member(group: Any, name: str) -> Any:
    """The object behind a hard link in a group, or None."""
    import h5py

    if not group.id.links.exists(name.encode()):
        return None
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        return None
    return group[name]


@dataclass(frozen=True)
class NumberType:
    """What the elements of a dataset are.

    Attributes:
        element: numpy type of one number: real or complex, with its byte order.
        inner: shape of the array that each element of the dataset is, () for a plain number.
    """

    element: np.dtype[Any]
    inner: tuple[int, ...]

    @property
    def byte_order(self) -> str:
        """ ">" or "<"."""
        return ">" if self.element.newbyteorder(">") == self.element else "<"


def number_type(dataset: Any) -> NumberType | None:
    """The type of a dataset of real or complex numbers of 32 or 64 bits, or of small arrays of
    them; None for anything else. A compound of two equal reals is a complex number, whatever they
    are called.
    """
    dtype: np.dtype[Any] = dataset.dtype
    inner: tuple[int, ...] = ()
    while dtype.subdtype is not None:
        dtype, more = dtype.subdtype
        inner += more
    if dtype.names is not None and len(dtype.names) == 2 and dtype.fields is not None:
        (first, begin), (second, middle) = (dtype.fields[name][:2] for name in dtype.names)
        if first != second or first.kind != "f" or (begin, middle) != (0, first.itemsize):
            return None
        if dtype.itemsize != 2 * first.itemsize or first.itemsize not in (4, 8):
            return None
        order = ">" if first.newbyteorder(">") == first else "<"
        dtype = np.dtype(f"{order}c{2 * first.itemsize}")
    if (dtype.kind, dtype.itemsize) not in (("c", 8), ("c", 16), ("f", 4), ("f", 8)):
        return None
    return NumberType(dtype, inner)


def place_of(dataset: Any, path: PathLike) -> int | None:
    """Where in the file a dataset begins, if it is stored in one piece, unfiltered; else None.

    Raises:
        FormatError: its bytes are outside this file or missing, or its claimed size does not fit
            the file.
    """
    import h5py

    name, size = dataset.name, math.prod(dataset.shape) * dataset.dtype.itemsize
    file_bytes = Path(path).stat().st_size
    with guarded(path):
        properties = dataset.id.get_create_plist()
        kind = properties.get_layout()
        stored = int(dataset.id.get_storage_size())
        if kind == h5py.h5d.VIRTUAL or properties.get_external_count():
            raise FormatError(
                path,
                None,
                f"the numbers of dataset {name} are in other files, which are never opened: copy "
                "the dataset into one file (h5repack)",
            )
        if kind == h5py.h5d.CONTIGUOUS:
            offset = dataset.id.get_offset()
            if offset is None or stored == 0:
                raise FormatError(path, None, f"dataset {name} was never written")
            if stored < size or offset + size > file_bytes:
                raise FormatError(
                    path,
                    min(offset, file_bytes),
                    f"dataset {name} of shape {dataset.shape} has {size} bytes from byte {offset} "
                    f"on, the file {file_bytes}: truncated or damaged",
                )
            return int(offset)
        if stored > file_bytes or size > MOST_COMPRESSION * max(stored, 1):
            raise FormatError(
                path,
                None,
                f"dataset {name} of shape {dataset.shape} claims {size} bytes, but {stored} are "
                "stored: parts were never written, or the file is damaged",
            )
        if dataset.chunks is not None:
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
            if chunk > max(size, _LARGEST_CHUNK):
                raise FormatError(path, None, f"chunks of {chunk} bytes in {name}: damaged")
    return None


def plain_numbers(values: npt.NDArray[Any], kind: NumberType) -> npt.NDArray[Any]:
    """What h5py read, as numbers in the machine's byte order."""
    if values.dtype.names is not None:
        values = np.ascontiguousarray(values).view(kind.element)
    return values.astype(kind.element.newbyteorder("="), copy=False)


def attribute(
    owner: Any, name: str, path: PathLike, *, vetted: bool = False
) -> str | int | float | list[Any] | None:
    """A short attribute as a Python value; None if absent, large, or of an odd type.

    Args:
        owner: group or dataset.
        name: of the attribute.
        path: for error messages.
        vetted: `vet_heaps` was called: texts of variable length may be read, too.
    """
    with guarded(path):
        if name not in owner.attrs:
            return None
        found = owner.attrs.get_id(name)
        if math.prod(found.shape) > 1024 or found.get_storage_size() > _LARGEST_ATTRIBUTE:
            return None
        if found.dtype.kind not in ("OSiufb" if vetted else "Siufb"):
            return None
        value = owner.attrs[name]
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode("utf-8", errors="replace")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value if isinstance(value, str | int | float | list) else None


def text_attribute(owner: Any, name: str, path: PathLike, *, vetted: bool = False) -> str | None:
    """A text attribute, or None; arguments as `attribute`."""
    value = attribute(owner, name, path, vetted=vetted)
    return value if isinstance(value, str) else None


def real_attribute(owner: Any, name: str, path: PathLike) -> float | None:
    """A number, or a text that is one, or None."""
    value = attribute(owner, name, path)
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None


def vet_heaps(path: PathLike, spared: Sequence[tuple[int, int]] = ()) -> None:
    """Check the heaps that texts of variable length are kept in.

    They have no checksum, and the library reads on forever in a damaged one.

    Args:
        path: the file.
        spared: (offset, bytes) of the parts that are known to hold numbers.

    Raises:
        FormatError: one is damaged.
    """
    size = Path(path).stat().st_size
    begin = 0
    with open(path, "rb") as file:
        for offset, length in [*sorted(spared), (size, 0)]:
            while begin < offset:
                file.seek(begin)
                part = file.read(min(_SCAN_BYTES, offset - begin))
                if not part:
                    return
                place = part.find(_HEAP)
                while place >= 0:
                    _vet_heap(path, file, begin + place, size)
                    place = part.find(_HEAP, place + 1)
                # A signature may lie across the parts
                begin += max(1, len(part) - len(_HEAP) + 1)
            begin = max(begin, offset + length)


def _vet_heap(path: PathLike, file: BinaryIO, offset: int, size: int) -> None:
    """A collection: signature, version, 3 zeros, its bytes; then objects of number, count, 4 zeros,
    bytes and data padded to 8, the last one, of number 0, the space that is left, itself included.
    """
    file.seek(offset)
    head = file.read(16)
    if len(head) < 16 or head[4:8] != b"\1\0\0\0":
        return  # these letters by chance: the library goes by the same bytes
    length = int.from_bytes(head[8:], "little")
    if length > min(size - offset, _LARGEST_HEAP):
        raise FormatError(path, offset, "damaged HDF5 file: a heap of texts exceeds the file")
    heap = file.read(length - 16)
    place = 0
    while place + 16 <= len(heap):
        number = int.from_bytes(heap[place : place + 2], "little")
        own = int.from_bytes(heap[place + 8 : place + 16], "little")
        step = own if number == 0 else 16 + own + -own % 8
        if step < 16 or place + step > len(heap):
            raise FormatError(path, offset, "damaged HDF5 file: a heap of texts is inconsistent")
        place += step
