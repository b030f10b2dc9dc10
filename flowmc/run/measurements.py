"""The measurement file: created once in its final shape, then filled row by row in place.

HDF5 sees the file only while it is created.  Afterwards rows are raw bytes at known offsets, so
that a kill at any instant cannot damage the structure, and a resumed run rewrites the rows it
repeats with the same bytes.  :mod:`flowmc.run` documents the layout for readers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flowmc_adapters import atomic_write

from flowmc.run.raw_hdf5 import contiguous, write_all

__all__ = ["Layout", "MeasurementFile"]

PHASES = ("thermalization", "production")


@dataclass(frozen=True)
class Layout:
    """The shape of a measurement file.

    Attributes:
        rows: number of rows by phase.
        columns: shape and dtype of one row by path below the phase, e.g. ``observables/phi2``.
        attributes: of the file.
        column_attributes: JSON values of the attribute "parameters" by path.
        couplings: of the replicas of a ladder, stored as JSON in the attribute "couplings" of the
            group ``replicas``; empty without a ladder.
    """

    rows: Mapping[str, int]
    columns: Mapping[str, tuple[tuple[int, ...], str]]
    attributes: Mapping[str, Any]
    column_attributes: Mapping[str, Any] = field(default_factory=dict)
    couplings: Sequence[Mapping[str, float]] = ()

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

    Raises:
        ValueError: the file has another layout.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout) -> None:
        self.path, self.layout = Path(path), layout
        self._offsets: dict[str, int] = {}
        with h5py.File(path, "r") as file:
            found = _shapes(file)
            if found != layout.datasets():
                raise ValueError(f"{path} does not have the datasets of this configuration")
            for name, (shape, _) in found.items():
                if shape[0]:
                    self._offsets[name] = file[name].id.get_offset()
        self._descriptor = os.open(path, os.O_RDWR)

    @classmethod
    def create(cls, path: str | os.PathLike[str], layout: Layout) -> MeasurementFile:
        """Create the file with all rows "not yet written", atomically."""
        _create(Path(path), layout, None)
        return cls(path, layout)

    @classmethod
    def extend(cls, path: str | os.PathLike[str], layout: Layout) -> MeasurementFile:
        """Replace a file of fewer rows by one of this layout that begins with the same rows."""
        with h5py.File(path, "r") as old:
            shorter = {name: (shape[1:], dtype) for name, (shape, dtype) in _shapes(old).items()}
            wanted = {
                name: (shape[1:], dtype) for name, (shape, dtype) in layout.datasets().items()
            }
            if shorter != wanted:
                raise ValueError(f"{path} does not have the datasets of this configuration")
            _create(Path(path), layout, old)
        return cls(path, layout)

    @staticmethod
    def rows_in(path: str | os.PathLike[str]) -> dict[str, int]:
        """Return the number of rows of a file by phase."""
        with h5py.File(path, "r") as file:
            return {phase: len(file[f"{phase}/updates"]) for phase in PHASES}

    @staticmethod
    def columns_in(
        path: str | os.PathLike[str],
    ) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, Any]]:
        """Return ``columns`` and ``column_attributes`` of a file; see :class:`Layout`."""
        with h5py.File(path, "r") as file:
            group = file[PHASES[0]]
            shapes = _shapes(group)
            columns = {name: (shape[1:], dtype) for name, (shape, dtype) in shapes.items()}
            attributes = {
                name: json.loads(group[name].attrs["parameters"])
                for name in columns
                if "parameters" in group[name].attrs
            }
        return columns, attributes

    def write_row(self, phase: str, index: int, row: Mapping[str, np.ndarray]) -> None:
        """Write one row; ``updates`` last, so that a reader who finds it finds the rest.

        Raises:
            OSError: as from writing.
        """
        for name in sorted(row, key=lambda name: name == "updates"):
            tail, dtype = self.layout.columns[name]
            value = np.asarray(row[name], dtype)
            if value.shape != tail:
                raise ValueError(f"{name}: a row has shape {tail}, not {value.shape}")
            data = np.ascontiguousarray(value)
            path = f"{phase}/{name}"
            offset = self._offsets[path] + index * data.nbytes
            write_all(self._descriptor, memoryview(data.tobytes()), offset)

    def flush(self) -> None:
        """Have all rows on the disk before a checkpoint counts on them."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _create(path: Path, layout: Layout, old: h5py.File | None) -> None:
    with atomic_write(path) as target, h5py.File(target, "w") as file:
        for key, value in layout.attributes.items():
            file.attrs[key] = value
        if layout.couplings:
            file.create_group("replicas").attrs["couplings"] = json.dumps(layout.couplings)
        for name, (shape, dtype) in layout.datasets().items():
            blank = -1 if dtype == "<i8" else np.nan
            dataset = contiguous(file, name, shape, np.dtype(dtype), blank)
            path_below = name.partition("/")[2]
            if path_below in layout.column_attributes:
                text = json.dumps(layout.column_attributes[path_below])
                dataset.attrs["parameters"] = text
            if old is not None and name in old:
                rows = min(len(old[name]), shape[0])
                # In slabs: a long run's log-weights need not fit in memory twice.
                for begin in range(0, rows, 1024):
                    dataset[begin : min(begin + 1024, rows)] = old[name][
                        begin : min(begin + 1024, rows)
                    ]


def _shapes(file: h5py.Group) -> dict[str, tuple[tuple[int, ...], str]]:
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item.shape, item.dtype.str

    file.visititems(visit)
    return found
