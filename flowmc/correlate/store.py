"""``series.h5``: what was measured on every configuration, one row each.

The file is created once in its final shape; afterwards rows are raw bytes at known offsets (see
:mod:`flowmc.jobs.raw_hdf5`), and a row counts as measured once its mark is set, which happens after
its numbers are on the disk.  So a process killed at any instant loses at most the last seconds.

========================= ======================================================================
``measured``              1 where the row is complete, ``(configurations,)``
``numbers``, ``replicas`` configuration number, and index into the attribute ``replica_names``
``action``                S of the ensemble's theory
``observables/LABEL``     of the ensemble's theory
``MEASUREMENT/...``       columns of a target or derivative
========================= ======================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from flowmc_adapters.atomic import atomic_path
from numpy.typing import NDArray

from flowmc.ensembles.stored import Member, StoredEnsemble
from flowmc.jobs.raw_hdf5 import contiguous, set_attributes, write_all
from flowmc.registry import ConfigError

__all__ = ["SeriesStore", "measured_before"]

_SYNC_SECONDS = 2.0
_OWN = ("measured", "numbers", "replicas")

Key = tuple[str, int]


class SeriesStore:
    """The file, open for writing rows.

    Args:
        path: the file, created by :meth:`create` for this ensemble.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._offsets: dict[str, int] = {}
        with h5py.File(path, "r", locking=False) as file:
            self.measured = file["measured"][()].astype(bool)
            self.keys = _keys(file)

            def note(name: str, item: object) -> None:
                if isinstance(item, h5py.Dataset):
                    self._shapes[name] = item.shape
                    self._offsets[name] = item.id.get_offset()

            file.visititems(note)
        self._descriptor = os.open(path, os.O_RDWR)
        self._pending: list[tuple[int, int]] = []
        self._synced = time.monotonic()

    @classmethod
    def create(
        cls, path: Path, ensemble: StoredEnsemble, shapes: Mapping[str, tuple[int, ...]]
    ) -> SeriesStore:
        """Create the file; rows of an older one at the same place are taken over.

        Args:
            path: the file.
            ensemble: its rows.
            shapes: of one row of every column.

        Raises:
            ConfigError: an older file has other columns.
        """
        old = _read_rows(path, shapes) if path.exists() else {}
        names = list(dict.fromkeys(one.replica for one in ensemble.members))
        index = {name: i for i, name in enumerate(names)}
        keep = [_key(one) in old for one in ensemble.members]
        count = len(ensemble)
        with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            texts = {"ensemble": ensemble.name, "replica_names": json.dumps(names)}
            set_attributes(file, texts)
            integers = np.dtype("<i8")
            for name in _OWN:
                contiguous(file, name, (count,), integers, 0)
            file["measured"][...] = np.array(keep, integers)
            file["numbers"][...] = [one.number for one in ensemble.members]
            file["replicas"][...] = [index[one.replica] for one in ensemble.members]
            for name, shape in sorted(shapes.items()):
                column = contiguous(file, name, (count, *shape), np.dtype("<f8"), np.nan)
                for row, one in enumerate(ensemble.members):
                    if keep[row]:
                        column[row] = old[_key(one)][name]
        return cls(path)

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of every column."""
        return {name: shape[1:] for name, shape in self._shapes.items() if name not in _OWN}

    def write(self, first: int, columns: Mapping[str, NDArray]) -> None:
        """Write consecutive rows.

        Raises:
            ValueError: columns that the file does not have, or of another shape.
            OSError: as from writing.
        """
        expected = {name for name in self._shapes if name not in _OWN}
        if set(columns) != expected:
            raise ValueError(f"columns {sorted(set(columns) ^ expected)} are missing or unknown")
        count = 0
        for name, values in columns.items():
            data = np.ascontiguousarray(values, dtype="<f8")
            count, shape = len(data), self._shapes[name][1:]
            if data.shape[1:] != shape:
                raise ValueError(f"column {name!r} has rows of shape {data.shape[1:]}, not {shape}")
            size = 8 * int(np.prod(shape, dtype=np.int64))
            if data.size:
                place = self._offsets[name] + first * size
                write_all(self._descriptor, data.data.cast("B"), place)
        self._pending.append((first, count))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have all rows on the disk, then mark them as measured."""
        os.fsync(self._descriptor)
        for first, count in self._pending:
            self.measured[first : first + count] = True
            marks = np.ones(count, "<i8")
            place = self._offsets["measured"] + 8 * first
            write_all(self._descriptor, marks.data.cast("B"), place)
        self._pending = []
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close the file."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return all columns by path, ``(configurations, ...)``."""
        with h5py.File(self.path, "r", locking=False) as file:
            return {name: file[name][()] for name in self._shapes if name not in _OWN}


def measured_before(path: Path) -> set[Key]:
    """Return replica and number of all configurations that a file has complete rows of."""
    if not path.exists():
        return set()
    with h5py.File(path, "r", locking=False) as file:
        keys, marks = _keys(file), file["measured"][()]
    return {key for key, mark in zip(keys, marks, strict=True) if mark}


def _read_rows(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[Key, dict[str, NDArray]]:
    with h5py.File(path, "r", locking=False) as file:
        found: dict[str, tuple[int, ...]] = {}

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and name not in _OWN:
                found[name] = item.shape[1:]

        file.visititems(note)
        if found != dict(shapes):
            raise ConfigError(
                f"{path} has other columns than this configuration: choose another --output"
            )
        marks, keys = file["measured"][()], _keys(file)
        columns = {name: file[name][()] for name in found}
    return {
        key: {name: values[row] for name, values in columns.items()}
        for row, (key, mark) in enumerate(zip(keys, marks, strict=True))
        if mark
    }


def _keys(file: h5py.File) -> list[Key]:
    names = json.loads(file.attrs["replica_names"])
    pairs = zip(file["replicas"][()], file["numbers"][()], strict=True)
    return [(names[replica], int(number)) for replica, number in pairs]


def _key(member: Member) -> Key:
    return member.replica, member.number
