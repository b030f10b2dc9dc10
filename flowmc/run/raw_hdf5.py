"""HDF5 files whose datasets are bytes at known places, written by several processes.

HDF5 itself sees such a file only while rank 0 creates it.  Afterwards every rank writes its own
datasets as raw bytes at their offsets, so that a kill at any instant cannot damage the structure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flowmc_adapters.atomic import atomic_path

from flowmc.parallel import Communicator

__all__ = ["contiguous", "write_all", "write_shared"]

# Datasets of several writers begin on pages of their own: network file systems of clusters write
# whole pages back, and two writers of one page would overwrite each other.
_PAGE = 4096
# What is smaller goes to rank 0, which writes it.
_SMALL = 1024


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
    described = {name: (value.shape, value.dtype.str) for name, value in large.items()}
    gathered = communicator.gather((small, described))
    if communicator.rank == 0:
        assert gathered is not None
        _write_as_root(communicator, path, attributes, gathered, large)
        return
    plan: dict[str, Any] = communicator.from_root(dict)
    communicator.together(lambda: _write_own(plan["path"], plan["offsets"], large))
    communicator.from_root(lambda: None)


def _write_as_root(
    communicator: Communicator,
    path: str | os.PathLike[str],
    attributes: Mapping[str, Any],
    gathered: list[tuple[dict[str, np.ndarray], dict[str, tuple[tuple[int, ...], str]]]],
    large: Mapping[str, np.ndarray],
) -> None:
    """Create the file, tell where things go, write the own part, put the file in its place."""
    with ExitStack() as stack:

        def create() -> dict[str, Any]:
            temporary = stack.enter_context(atomic_path(path))
            return {"path": temporary, "offsets": _create(temporary, attributes, gathered)}

        plan = communicator.from_root(create)
        communicator.together(lambda: _write_own(plan["path"], plan["offsets"], large))
        communicator.from_root(stack.close)


def _create(
    path: Path,
    attributes: Mapping[str, Any],
    gathered: list[tuple[dict[str, np.ndarray], dict[str, tuple[tuple[int, ...], str]]]],
) -> dict[str, int]:
    """Create all datasets, fill the small ones, return the offsets of the others."""
    small = {name: value for arrays, _ in gathered for name, value in arrays.items()}
    large = {name: entry for _, described in gathered for name, entry in described.items()}
    offsets = {}
    with h5py.File(path, "w", alignment_threshold=_SMALL + 1, alignment_interval=_PAGE) as file:
        for key, value in attributes.items():
            file.attrs[key] = value
        # In one order whatever rank they come from: it decides where things lie.
        for name in sorted({*small, *large}):
            if name in small:
                value = small[name]
                contiguous(file, name, value.shape, value.dtype)[...] = value
            else:
                shape, dtype = large[name]
                dataset = contiguous(file, name, shape, np.dtype(dtype))
                offsets[name] = dataset.id.get_offset()
    return offsets


def _write_own(path: Path, offsets: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> None:
    if not arrays:
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        for name, value in arrays.items():
            write_all(descriptor, value.data.cast("B"), offsets[name])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
