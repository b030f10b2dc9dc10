"""What kernels report between two measurements, reduced to one row.

Values are reduced per chain over the updates (and the repetitions) since the previous row:
``non_finite`` is summed, ``reversibility_violation`` is the largest, ``log_weights`` and
``log_weight`` are those of the last update, everything else is the mean over finite entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowmc.kernels import Info, Kernel

__all__ = ["Diagnostics", "Piece", "leaves", "schema_of"]


@dataclass(frozen=True)
class Piece:
    """A part of one row of measurements, from the rank that has it.

    Attributes:
        path: of the dataset, below the phase.
        first, last: the chains ``first <= chain < last``.
        replica: index along the second axis, or None for all of it.
        values: ``(last - first, ...)``.
    """

    path: str
    first: int
    last: int
    replica: int | None
    values: np.ndarray

    def put(self, row: Mapping[str, np.ndarray]) -> None:
        """Write the part into a row of all chains."""
        own = row[self.path][self.first : self.last]
        if self.replica is None:
            own[...] = self.values
        else:
            own[:, self.replica] = self.values


Schema = Mapping[str, Mapping[str, tuple[int, ...]]]

_SUMMED = ("non_finite",)
_LARGEST = ("reversibility_violation",)
_LAST = ("log_weights", "log_weight")
# Kept per proposal; all other values become one number per chain.
_PER_PROPOSAL = ("log_weights",)


def leaves(info: Info, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, Info]]:
    """Yield ``(name, info)`` of the elementary kernels of one update.

    Args:
        info: of a cycle or mixture.
        kernels: its parts, by their unique names.

    A kernel that is there twice is "hmc" and "hmc_2"; its replicas "hmc[0]" and "hmc[0]_2".
    """
    for top, part in info.parts.items():
        if part.is_composed:
            suffix = top.removeprefix(kernels[top].name)
            yield from ((f"{name}{suffix}", leaf) for name, leaf in _elementary(part))
        else:
            yield top, part


def _elementary(info: Info) -> Iterator[tuple[str, Info]]:
    for name, part in info.parts.items():
        if part.is_composed:
            yield from _elementary(part)
        else:
            yield name, part


def schema_of(name_and_info: Iterator[tuple[str, Info]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shape of every value behind the chain axis, by kernel and value."""
    return {
        name: {
            key: tuple(value.shape[1:]) if key in _PER_PROPOSAL else ()
            for key, value in info.values.items()
        }
        for name, info in name_and_info
    }


class Diagnostics:
    """The row that is being accumulated, for all chains.

    Args:
        schema: shapes by kernel and value, see :func:`schema_of`.
        chains: number of chains.
        own: first and one-past-last chain of every block that this rank adds to; by default all
            chains.  Only there a new row costs time.
    """

    def __init__(
        self, schema: Schema, chains: int, own: Sequence[tuple[int, int]] | None = None
    ) -> None:
        # Sorted: the order decides where things lie in a checkpoint, and a resumed run knows the
        # schema from a file, not from the kernels.
        self.schema: Schema = {name: dict(sorted(schema[name].items())) for name in sorted(schema)}
        self.chains = chains
        self._own = _merged([(0, chains)] if own is None else own)
        self._counts = {
            (name, key): np.zeros(chains, np.int64)
            for name in self.schema
            for key in ("accepted", "tried")
        }
        self._values = {
            (name, key): np.full((chains, *tail), _start(key))
            for name, values in self.schema.items()
            for key, tail in values.items()
        }
        self._entries = {
            pair: np.zeros(chains, np.int64) for pair in self._values if _is_mean(pair[1])
        }
        self._means = {pair: np.full_like(self._values[pair], np.nan) for pair in self._entries}
        self._restored = False
        self.cells: tuple[tuple[str, int, int], ...] = ()

    @property
    def is_restored(self) -> bool:
        """Whether the row was begun by another process, and holds sums of all ranks."""
        return self._restored

    def reset(self) -> None:
        """Begin a new row."""
        ranges = [(0, self.chains)] if self._restored else self._own
        for first, last in ranges:
            for (_, key), value in self._values.items():
                value[first:last] = _start(key)
            for count in (*self._counts.values(), *self._entries.values()):
                count[first:last] = 0
            for mean in self._means.values():
                mean[first:last] = np.nan
        self._restored = False

    def add(self, first: int, last: int, name: str, info: Info) -> None:
        """Add the diagnostics of the chains ``first <= chain < last`` from one update."""
        accepted = _numpy(info.is_accepted)
        self._counts[name, "accepted"][first:last] += accepted.sum(1)
        self._counts[name, "tried"][first:last] += accepted.shape[1]
        if (name, first, last) not in self.cells:
            self.cells = tuple(sorted({*self.cells, (name, first, last)}))
        for key in self.schema[name]:
            if key in info.values:
                self._reduce(first, last, name, key, _numpy(info.values[key]))

    def _reduce(self, first: int, last: int, name: str, key: str, value: np.ndarray) -> None:
        row = self._values[name, key][first:last]
        if key in _PER_PROPOSAL:
            row[...] = value
            return
        flat = value.reshape(last - first, -1).astype(np.float64)
        if key in _LAST:
            row[...] = flat[:, -1]
        elif key in _SUMMED:
            row += flat.sum(1)
        elif key in _LARGEST:
            row[...] = np.fmax(row, np.fmax.reduce(flat, axis=1))
        else:
            finite = np.isfinite(flat)
            row += np.where(finite, flat, 0.0).sum(1)
            self._entries[name, key][first:last] += finite.sum(1)

    def row(self) -> dict[str, np.ndarray]:
        """Return the row by path below a phase of the measurement file, ``kernels/NAME/VALUE``.

        The arrays change with the next :meth:`add` or :meth:`reset`.
        """
        found: dict[str, np.ndarray] = {
            f"kernels/{name}/{key}": value for (name, key), value in self._counts.items()
        }
        ranges = [(0, self.chains)] if self._restored else self._own
        for pair, value in self._values.items():
            if pair in self._entries:
                mean, sums = self._means[pair], value
                for first, last in ranges:
                    entries = self._entries[pair][first:last]
                    mean[first:last] = np.where(
                        entries > 0, sums[first:last] / np.maximum(entries, 1), np.nan
                    )
                value = mean
            found["kernels/{}/{}".format(*pair)] = value
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums of the unfinished row, for the checkpoint; chains come first in each."""
        found: dict[str, np.ndarray] = {
            f"kernels/{name}/{key}": value for (name, key), value in self._counts.items()
        }
        found |= {f"kernels/{name}/sum_{key}": value for (name, key), value in self._values.items()}
        found |= {
            f"kernels/{name}/entries_{key}": count for (name, key), count in self._entries.items()
        }
        return found

    def pieces(self, arrays: Mapping[str, np.ndarray]) -> list[Piece]:
        """Return the parts of a :meth:`row` or :meth:`state` that this rank ever added to.

        They are views.  Which rank adds to what does not change while a process lives, so a part
        to which nothing was added since the last row holds what it holds on all ranks.
        """
        by_name: dict[str, list[str]] = {}
        for path in arrays:
            by_name.setdefault(path.removeprefix("kernels/").rpartition("/")[0], []).append(path)
        return [
            Piece(path, first, last, None, arrays[path][first:last])
            for name, first, last in self.cells
            for path in by_name[name]
        ]

    def restore(self, stored: Mapping[str, np.ndarray]) -> None:
        """Continue the row of :meth:`state`."""
        own = self.state()
        if {key: value.shape for key, value in own.items()} != {
            key: value.shape for key, value in stored.items()
        }:
            raise ValueError("the unfinished row of the checkpoint is of other kernels")
        for key, value in own.items():
            value[...] = stored[key]
        self._restored = True


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges in order, neighbours joined."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


def _is_mean(key: str) -> bool:
    return key not in (*_SUMMED, *_LARGEST, *_LAST)


def _start(key: str) -> float:
    return np.nan if key in (*_LARGEST, *_LAST) else 0.0


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
