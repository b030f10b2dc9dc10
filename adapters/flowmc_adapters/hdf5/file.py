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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..configuration import PathLike
from ..errors import FormatError

MAGIC = b"\x89HDF\r\n\x1a\n"
# Superblock and groups that every HDF5 library since 2008 reads, with checksums in the headers;
# fixed, so that equal input gives equal bytes whatever the library's defaults.
VERSIONS = ("v108", "v108")
_SMALLEST_USER_BLOCK, _LARGEST_USER_BLOCK = 512, 2**24
_MOST_OBJECTS = 100_000
# Deflate cannot do better than this.
MOST_COMPRESSION = 1032
_LARGEST_CHUNK = 2**26


def is_hdf5(head: bytes, path: PathLike) -> bool:
    """Whether a file is HDF5: by its magic at the beginning, or behind a user block of another
    program, of 512 bytes or twice, four times ... as many.

    Args:
        head: its first bytes.
        path: the file.
    """
    if head.startswith(MAGIC):
        return True
    offset, size = _SMALLEST_USER_BLOCK, Path(path).stat().st_size
    with open(path, "rb") as file:
        while offset <= min(_LARGEST_USER_BLOCK, size):
            file.seek(offset)
            if file.read(len(MAGIC)) == MAGIC:
                return True
            offset *= 2
    return False


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
    with ExitStack() as stack:
        if driven is None and os.fspath(path).startswith("/proc/self/fd/"):
            # A file without a name, for which the library looks
            driven = stack.enter_context(open(path, "rb"))
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


def stated_end(path: PathLike) -> int | None:
    """Where the file ends by its own account; None for those with a user block and odd ones.

    Source: the HDF5 file format specification, level 0A.
    """
    with open(path, "rb") as file:
        head = file.read(52)
    if len(head) < 52 or not head.startswith(MAGIC):
        return None
    version = head[8]
    base = {0: 24, 1: 28, 2: 12, 3: 12}.get(version)
    if base is None or head[9 if version > 1 else 13] != 8 or any(head[base : base + 8]):
        return None
    return int.from_bytes(head[base + 16 : base + 24], "little")


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
