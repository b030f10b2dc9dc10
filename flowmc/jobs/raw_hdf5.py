"""HDF5 files whose datasets are bytes at known places, written by several processes.

HDF5 itself sees such a file only while rank 0 creates it.  Afterwards every rank writes its own
datasets as raw bytes at their offsets, so that a kill at any instant cannot damage the structure.

The dataset ``checksums`` holds the CRC-32 of every other dataset, in the order of their names, and
the attribute ``checksum`` that of everything else: attributes, names, shapes, types and checksums.
A CRC-32 finds every change within 32 neighbouring bits and misses one in 2^32 of all others.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from flowmc_adapters.atomic import atomic_path

from flowmc.jobs.own_files import datasets_in, naming
from flowmc.parallel import Communicator

__all__ = [
    "CheckedArrays",
    "checksum",
    "contiguous",
    "plain",
    "set_attributes",
    "write_all",
    "write_shared",
]

# Datasets of several writers begin on pages of their own: network file systems of clusters write
# whole pages back, and two writers of one page would overwrite each other.
_PAGE = 4096
# What is smaller goes to rank 0, which writes it.
_SMALL = 1024
# Longest text of an attribute in its own place: HDF5 has no room for more than 64 KiB there.
_LONGEST = 60_000
# Bytes that one thread sums up at a time.
_PIECE = 1 << 24

# Of a dataset: shape, dtype, checksum.
Described = tuple[tuple[int, ...], str, int]


def contiguous(
    file: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, blank: Any = None
) -> h5py.Dataset:
    """Create a dataset whose bytes are in the file from now on, filled with ``blank`` if given."""
    group = file.require_group(name.rpartition("/")[0]) if "/" in name else file
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    if blank is None:
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    else:
        properties.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
        properties.set_fill_value(np.array(blank, dtype))
    properties.set_obj_track_times(False)
    identifier = h5py.h5d.create(
        group.id,
        name.rpartition("/")[2].encode(),
        h5py.h5t.py_create(dtype, logical=True),
        h5py.h5s.create_simple(shape),
        dcpl=properties,
    )
    return h5py.Dataset(identifier)


def set_attributes(item: h5py.Group | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    """Create attributes; texts are of fixed length, as far as HDF5 has room for them.

    Texts of variable length lie in a heap of the file, and HDF5 crashes, or never ends, where that
    is damaged.
    """
    for key, value in attributes.items():
        content = value.encode() if isinstance(value, str) else b""
        if isinstance(value, str) and len(content) <= _LONGEST:
            kind = h5py.string_dtype("utf-8", max(1, len(content)))
            item.attrs.create(key, content, dtype=kind)
        else:
            item.attrs[key] = value


def plain(value: Any) -> Any:
    """Return what an attribute holds without numpy: a text, a number or a list."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the bytes of an array; of pieces, on all threads, if it is large."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    if len(data) <= _PIECE:
        return zlib.crc32(data)
    pieces = [data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        sums = np.array(list(threads.map(zlib.crc32, pieces)), "<u4")
    return zlib.crc32(sums.data)


class CheckedArrays:
    """The arrays of a file of :func:`write_shared`, each compared with its checksum when read.

    Args:
        file: open for reading.

    Attributes:
        attributes: of the file.
        names: of all datasets.
        is_checked: False for a file of earlier versions, which has no checksums.

    Raises:
        ValueError: the file is not as it was written.
    """

    def __init__(self, file: h5py.File) -> None:
        self._datasets = datasets_in(file)
        sums = self._datasets.pop("checksums", None)
        self.names = sorted(self._datasets)
        self.attributes = {key: plain(value) for key, value in file.attrs.items()}
        stored = self.attributes.pop("checksum", None)
        self.is_checked = sums is not None or stored is not None
        self._sums: dict[str, int] = {}
        if not self.is_checked:
            return
        values = [] if sums is None else sums[()].tolist()
        self._sums = dict(zip(self.names, values, strict=True))
        described = {
            name: (data.shape, data.dtype.str, self._sums[name])
            for name, data in self._datasets.items()
        }
        if stored != _checksum_of_all(self.attributes, described):
            raise ValueError("its attributes or the list of its datasets have changed")

    def read(self, name: str) -> np.ndarray:
        """Return an array.

        Raises:
            ValueError: it is not there, or not as it was written.
        """
        if name not in self._datasets:
            raise ValueError(f"it has no dataset {name}")
        value = self._datasets[name][()]
        if self.is_checked and checksum(value) != self._sums[name]:
            raise ValueError(f"the numbers of {name} have changed since they were written")
        return value

    def below(self, prefix: str) -> list[str]:
        """Return the rest of the names of all datasets that begin so."""
        first = bisect.bisect_left(self.names, prefix)
        found = itertools.takewhile(lambda name: name.startswith(prefix), self.names[first:])
        return [name.removeprefix(prefix) for name in found]


def _checksum_of_all(attributes: Mapping[str, Any], described: Mapping[str, Described]) -> int:
    text = json.dumps([dict(attributes), dict(described)], sort_keys=True)
    return zlib.crc32(text.encode())


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset of an open file.

    Raises:
        OSError: as from writing.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def write_shared(
    communicator: Communicator,
    path: str | os.PathLike[str],
    attributes: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Replace a file, atomically, by one that holds the arrays of all ranks; collective.

    The bytes do not depend on how the arrays are spread over ranks.

    Args:
        communicator: of all ranks.
        path: the file.
        attributes: of the file; those of rank 0 count.
        arrays: of this rank, by dataset; no dataset may come from two ranks.

    Raises:
        OSError, CollectiveError: on all ranks if any of them cannot write; the old file stays.
    """
    own = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    large = {name: value for name, value in own.items() if value.nbytes > _SMALL}
    small = {name: value for name, value in own.items() if name not in large}
    described = {name: _described(value) for name, value in large.items()}
    gathered = communicator.gather((small, described))
    if communicator.rank == 0:
        assert gathered is not None
        _write_as_root(communicator, path, attributes, gathered, large)
        return
    plan: dict[str, Any] = communicator.from_root(dict)
    communicator.together(lambda: _write_own(plan, path, large))
    communicator.from_root(lambda: None)


def _described(value: np.ndarray) -> Described:
    return value.shape, value.dtype.str, checksum(value)


def _write_as_root(
    communicator: Communicator,
    path: str | os.PathLike[str],
    attributes: Mapping[str, Any],
    gathered: Sequence[tuple[dict[str, np.ndarray], dict[str, Described]]],
    large: Mapping[str, np.ndarray],
) -> None:
    """Create the file, tell where things go, write the own part, put the file in its place."""
    with ExitStack() as stack:

        def create() -> dict[str, Any]:
            with naming(path):
                temporary = stack.enter_context(atomic_path(path, follow=False))
                return {"path": temporary, "offsets": _create(temporary, attributes, gathered)}

        def put_in_place() -> None:
            with naming(path):
                stack.close()

        plan = communicator.from_root(create)
        communicator.together(lambda: _write_own(plan, path, large))
        communicator.from_root(put_in_place)


def _create(
    path: Path,
    attributes: Mapping[str, Any],
    gathered: Sequence[tuple[dict[str, np.ndarray], dict[str, Described]]],
) -> dict[str, int]:
    """Create all datasets, fill the small ones, return the offsets of the others."""
    small = {name: value for arrays, _ in gathered for name, value in arrays.items()}
    large = {name: entry for _, described in gathered for name, entry in described.items()}
    offsets = {}
    described = large | {name: _described(value) for name, value in small.items()}
    names = sorted(described)
    with h5py.File(
        path, "w", locking=False, alignment_threshold=_SMALL + 1, alignment_interval=_PAGE
    ) as file:
        set_attributes(file, attributes)
        file.attrs["checksum"] = _checksum_of_all(attributes, described)
        sums = np.array([described[name][2] for name in names], "<u4")
        contiguous(file, "checksums", sums.shape, sums.dtype)[...] = sums
        # In one order whatever rank they come from: it decides where things lie.
        for name in names:
            if name in small:
                value = small[name]
                contiguous(file, name, value.shape, value.dtype)[...] = value
            else:
                shape, dtype, _ = large[name]
                dataset = contiguous(file, name, shape, np.dtype(dtype))
                offsets[name] = dataset.id.get_offset()
    return offsets


def _write_own(
    plan: Mapping[str, Any], path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write arrays where rank 0 has planned them; errors name the file that is to be."""
    if not arrays:
        return
    with naming(path):
        descriptor = os.open(plan["path"], os.O_RDWR)
        try:
            for name, value in arrays.items():
                write_all(descriptor, value.data.cast("B"), plan["offsets"][name])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
