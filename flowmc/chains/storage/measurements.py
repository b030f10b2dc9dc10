"""The measurement file: created once in its final shape, then filled row by row in place.

HDF5 sees the file only while it is created.  Afterwards rows are raw bytes at known offsets, so
that a kill at any instant cannot damage the structure, and a resumed run rewrites the rows it
repeats with the same bytes.  :mod:`flowmc.chains` documents the layout for readers.

The CRC-32 of the rows up to a checkpoint is in the checkpoint: of the bytes of all columns of the
first row in the order of their names, ``updates`` last, then of the second row, and so on.

All attributes are written once; their CRC-32 is one itself, ``attributes_crc32`` of the file.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flowmc_adapters import atomic_write

from flowmc.jobs.own_files import datasets_in, naming, open_own, opened
from flowmc.jobs.raw_hdf5 import contiguous, set_attributes, write_all
from flowmc.registry import ConfigError

__all__ = [
    "MeasurementFile",
    "MeasurementLayout",
    "check_attributes",
    "check_rows",
    "rows_missing_in",
]

PHASES = ("thermalization", "production")
_WHAT = "measurement file"
_SEAL = "attributes_crc32"
# Bytes of rows that are held at a time.
_SLAB = 1 << 24


@dataclass(frozen=True)
class MeasurementLayout:
    """The shape of a measurement file.

    Attributes:
        rows: number of rows by phase.
        columns: shape and dtype of one row by path below the phase, e.g. ``observables/phi2``.
        attributes: of the file.
        column_attributes: JSON values of the attribute "parameters" by path.
        couplings: of the replicas of a ladder, stored as JSON in the attribute "couplings" of the
            group ``replicas``; empty without a ladder.
        declarations: of kernels and their values, attributes by path below the phase.
    """

    rows: Mapping[str, int]
    columns: Mapping[str, tuple[tuple[int, ...], str]]
    attributes: Mapping[str, Any]
    column_attributes: Mapping[str, Any] = field(default_factory=dict)
    couplings: Sequence[Mapping[str, float]] = ()
    declarations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def datasets(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of all datasets by path, in the order they have in the file."""
        return {
            f"{phase}/{path}": ((self.rows[phase], *tail), dtype)
            for phase in PHASES
            for path, (tail, dtype) in sorted(self.columns.items())
        }


class MeasurementFile:
    """A measurement file, open for writing rows.

    Args:
        path: the file, of this layout.
        layout: what it holds.

    Attributes:
        checksum: CRC-32 of the rows so far, which goes on with every row that is written.

    Raises:
        ConfigError: the file is damaged, or has another layout.
        OSError: the file cannot be opened for writing.
    """

    def __init__(
        self, path: str | os.PathLike[str], layout: MeasurementLayout, checksum: int = 0
    ) -> None:
        self.path, self.layout, self.checksum = Path(path), layout, checksum
        self._offsets: dict[str, int] = {}
        with opened(self.path, _WHAT) as file:
            found = datasets_in(file)
            if _shapes(found) != layout.datasets():
                raise ConfigError(f"{path} does not have the datasets of this configuration")
            for name, dataset in found.items():
                if len(dataset):
                    self._offsets[name] = dataset.id.get_offset()
        self._descriptor = open_own(self.path, os.O_RDWR)

    @classmethod
    def create(cls, path: str | os.PathLike[str], layout: MeasurementLayout) -> MeasurementFile:
        """Create the file with all rows "not yet written", atomically."""
        _create(Path(path), layout, None)
        return cls(path, layout)

    @classmethod
    def extend(cls, path: str | os.PathLike[str], layout: MeasurementLayout) -> MeasurementFile:
        """Replace a file of fewer rows by one of this layout that begins with the same rows."""
        with opened(Path(path), _WHAT) as file:
            old = datasets_in(file)
            shorter = {name: (shape[1:], dtype) for name, (shape, dtype) in _shapes(old).items()}
            wanted = {
                name: (shape[1:], dtype) for name, (shape, dtype) in layout.datasets().items()
            }
            if shorter != wanted:
                raise ConfigError(f"{path} does not have the datasets of this configuration")
        with h5py.File(path, "r", locking=False) as file:
            _create(Path(path), layout, datasets_in(file))
        return cls(path, layout)

    @staticmethod
    def rows_in(path: str | os.PathLike[str]) -> dict[str, int]:
        """Return the number of rows of a file by phase."""
        with opened(Path(path), _WHAT) as file:
            found = datasets_in(file)
            return {phase: len(found[f"{phase}/updates"]) for phase in PHASES}

    @staticmethod
    def is_blank(path: str | os.PathLike[str]) -> bool:
        """Whether no row has been written into a file yet."""
        with opened(Path(path), _WHAT) as file:
            found = datasets_in(file)
            return all(bool((found[f"{phase}/updates"][()] < 0).all()) for phase in PHASES)

    @staticmethod
    def columns_in(
        path: str | os.PathLike[str],
    ) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, Any]]:
        """Return ``columns`` and ``column_attributes`` of a :class:`MeasurementLayout`."""
        with opened(Path(path), _WHAT) as file:
            check_attributes(file)
            found = datasets_in(file[PHASES[0]])
            columns = {name: (shape[1:], dtype) for name, (shape, dtype) in _shapes(found).items()}
            attributes = {
                name: json.loads(dataset.attrs["parameters"])
                for name, dataset in found.items()
                if "parameters" in dataset.attrs
            }
        return columns, attributes

    def write_row(self, phase: str, index: int, row: Mapping[str, np.ndarray]) -> None:
        """Write one row; ``updates`` last, so that a reader who finds it finds the rest.

        Raises:
            OSError: as from writing.
        """
        checksum = self.checksum
        for name in sorted(row, key=_last_updates):
            tail, dtype = self.layout.columns[name]
            value = np.asarray(row[name], dtype)
            if value.shape != tail:
                raise ValueError(f"{name}: a row has shape {tail}, not {value.shape}")
            data = np.ascontiguousarray(value)
            path = f"{phase}/{name}"
            offset = self._offsets[path] + index * data.nbytes
            content = data.tobytes()
            checksum = zlib.crc32(content, checksum)
            with naming(self.path):
                write_all(self._descriptor, memoryview(content), offset)
        self.checksum = checksum

    def flush(self) -> None:
        """Have all rows on the disk before a checkpoint counts on them.

        Raises:
            OSError: the file is not there any more, or another one is; or as from writing.
        """
        with naming(self.path):
            os.fsync(self._descriptor)
        own = os.fstat(self._descriptor)
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            text = "was removed or replaced while the run was writing it"
            raise OSError(errno.ESTALE, text, str(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _rows_until(update: int, thermalization: int, measure_every: int) -> dict[str, int]:
    """Return how many rows a run has written after so many updates, by phase."""
    return {
        "thermalization": min(update, thermalization) // measure_every,
        "production": max(0, update - thermalization) // measure_every,
    }


def _missing_rows(
    datasets: Mapping[str, h5py.Dataset], rows: Mapping[str, int], layout: Mapping[str, Any]
) -> int:
    """Return how many of the rows that should be in a file are not.

    Args:
        datasets: of the file.
        rows: that should be there, by phase, see :func:`_rows_until`.
        layout: with the attributes ``thermalization`` and ``measure_every`` of the file.
    """
    every, missing = int(layout["measure_every"]), 0
    for phase, begin in (("thermalization", 0), ("production", int(layout["thermalization"]))):
        count = rows[phase]
        found = datasets[f"{phase}/updates"][:count]
        expected = begin + every * np.arange(1, count + 1)
        missing += count - int((found == expected[: len(found)]).sum())
    return missing


def rows_missing_in(path: Path, update: int) -> int:
    """Return how many rows up to an update are not in a file.

    Raises:
        ConfigError: the file is damaged.
    """
    with opened(path, _WHAT) as file:
        every, thermalization = (int(file.attrs[k]) for k in ("measure_every", "thermalization"))
        rows = _rows_until(update, thermalization, every)
        return _missing_rows(datasets_in(file), rows, file.attrs)


def check_attributes(file: h5py.File) -> None:
    """Compare the attributes of a file with their checksum; earlier versions wrote none.

    Raises:
        ValueError: they have changed since they were written.
    """
    if _SEAL in file.attrs and int(file.attrs[_SEAL]) != _attributes_checksum(file):
        raise ValueError("its attributes have changed since they were written")


def _attributes_checksum(file: h5py.File) -> int:
    found = {"": _attributes_of(file)}
    file.visititems(lambda name, item: found.update({name: _attributes_of(item)}))
    return zlib.crc32(json.dumps(found, sort_keys=True).encode())


def _attributes_of(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    values = {key: np.asarray(item.attrs[key]).tolist() for key in item.attrs if key != _SEAL}
    return {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}


def check_rows(path: Path, update: int, checksum: int | None) -> int:
    """Compare a file with what a checkpoint says of it; return the checksum of its rows.

    Args:
        path: the file.
        update: of the checkpoint.
        checksum: of the rows up to there; None if the checkpoint knows of none.

    Raises:
        ConfigError: the file is damaged, or rows are missing or have changed.
    """
    with opened(path, _WHAT) as file:
        found = datasets_in(file)
        every, thermalization = (int(file.attrs[k]) for k in ("measure_every", "thermalization"))
        rows = _rows_until(update, thermalization, every)
        missing = _missing_rows(found, rows, file.attrs)
        if missing:
            raise ConfigError(
                f"{missing} of {sum(rows.values())} rows up to update {update} of the checkpoint "
                f"are missing in {path}: it is older than the checkpoint; restore the one that "
                "belongs to it"
            )
        own = _checksum(found, rows)
        if checksum is not None and own != checksum:
            raise ConfigError(
                f"rows up to update {update} of the checkpoint have changed in {path} since they "
                "were written: restore the file from a copy"
            )
        return own


def _checksum(datasets: Mapping[str, h5py.Dataset], rows: Mapping[str, int]) -> int:
    checksum = 0
    for phase in PHASES:
        names = sorted((n for n in datasets if n.startswith(f"{phase}/")), key=_last_updates)
        columns = [datasets[name] for name in names]
        width = sum(column.nbytes // max(1, len(column)) for column in columns)
        slab = max(1, _SLAB // max(1, width))
        for begin in range(0, rows[phase], slab):
            end = min(begin + slab, rows[phase])
            parts = [
                np.ascontiguousarray(column[begin:end]).reshape(end - begin, -1).view(np.uint8)
                for column in columns
            ]
            checksum = zlib.crc32(np.concatenate(parts, axis=1).data, checksum)
    return checksum


def _last_updates(name: str) -> tuple[bool, str]:
    """Sort names, those of the update numbers last."""
    return name.endswith("updates"), name


def _create(path: Path, layout: MeasurementLayout, old: Mapping[str, h5py.Dataset] | None) -> None:
    with (
        naming(path),
        atomic_write(path, follow=False) as target,
        h5py.File(target, "w", locking=False) as file,
    ):
        set_attributes(file, layout.attributes)
        if layout.couplings:
            couplings = {"couplings": json.dumps(layout.couplings)}
            set_attributes(file.create_group("replicas"), couplings)
        for name, (shape, dtype) in layout.datasets().items():
            blank = -1 if dtype == "<i8" else np.nan
            dataset = contiguous(file, name, shape, np.dtype(dtype), blank)
            path_below = name.partition("/")[2]
            if path_below in layout.column_attributes:
                text = json.dumps(layout.column_attributes[path_below])
                set_attributes(dataset, {"parameters": text})
            set_attributes(dataset, layout.declarations.get(path_below, {}))
            if old is not None and name in old:
                rows = min(len(old[name]), shape[0])
                # In slabs: a long run's log-weights need not fit in memory twice.
                for begin in range(0, rows, 1024):
                    dataset[begin : min(begin + 1024, rows)] = old[name][
                        begin : min(begin + 1024, rows)
                    ]
        for phase in PHASES:
            for path_below, attributes in layout.declarations.items():
                if path_below not in layout.columns:
                    set_attributes(file[f"{phase}/{path_below}"], attributes)
        file.attrs[_SEAL] = _attributes_checksum(file)


def _shapes(datasets: Mapping[str, h5py.Dataset]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (dataset.shape, dataset.dtype.str) for name, dataset in datasets.items()}
