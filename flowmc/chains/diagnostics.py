"""What kernels report between two measurements, reduced to one row.

Values are reduced per chain over the updates (and the repetitions) since the previous row, each as
its kernel declares (:class:`~flowmc.kernels.Reported`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from flowmc.kernels import Info, Kernel, KernelReport, Reported
from flowmc.kernels.base import report_of, title_of
from flowmc.registry import ConfigError

__all__ = ["Diagnostics", "Piece", "leaves", "reports_of"]


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


def reports_of(kernels: Mapping[str, Kernel]) -> dict[str, KernelReport]:
    """Return what all kernels of a cycle report, by the names of :func:`leaves`.

    Args:
        kernels: by their unique names in the cycle.

    Raises:
        ConfigError: two kernels report different values under one name.
    """
    found: dict[str, KernelReport] = {}
    for update, kernel in kernels.items():
        suffix = update.removeprefix(kernel.name)
        number = int(suffix.removeprefix("_")) if suffix else 1
        for name, own in kernel.reports_of_parts() or [(kernel.name, report_of(kernel))]:
            placed = replace(own, update=update, update_title=title_of(kernel), number=number)
            _enter(found, f"{name}{suffix}", placed)
    return found


def _enter(found: dict[str, KernelReport], name: str, report: KernelReport) -> None:
    """Add a report; kernels inside of others may share a name, and then their columns."""
    known = found.setdefault(name, report)
    ours, theirs = ({value.name: value for value in one.values} for one in (report, known))
    for key in sorted({*ours, *theirs}):
        one, other = theirs.get(key), ours.get(key)
        if one is None or other is None or not one.is_reduced_like(other):
            raise ConfigError(
                f"[[update]] {known.update} and {report.update} both report as {name!r}, but "
                f"their values {key!r} differ ({_in_words(one)}; {_in_words(other)}): give the "
                "kernel inside one of them another name"
            )


def _in_words(value: Reported | None) -> str:
    if value is None:
        return "none"
    number = f"{value.per_proposal} proposals" if value.per_proposal else "one number per chain"
    return f"{number}, {value.reduce}"


class Diagnostics:
    """The row that is being accumulated, for all chains.

    Args:
        reports: by kernel, see :func:`reports_of`.
        chains: number of chains.
        own: first and one-past-last chain of every block that this rank adds to; by default all
            chains.  Only there a new row costs time.
    """

    def __init__(
        self,
        reports: Mapping[str, KernelReport],
        chains: int,
        own: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.reports = reports
        # Sorted: the order decides where things lie in a checkpoint.
        self._declared = {
            name: {value.name: value for value in sorted(reports[name].values, key=_name)}
            for name in sorted(reports)
        }
        self.chains = chains
        self._own = _merged([(0, chains)] if own is None else own)
        self._counts = {
            (name, key): np.zeros(chains, np.int64)
            for name in self._declared
            for key in ("accepted", "tried")
        }
        self._values = {
            (name, key): np.full((chains, *value.shape), _start(value))
            for name, values in self._declared.items()
            for key, value in values.items()
        }
        self._entries = {
            (name, key): np.zeros((chains, *value.shape), np.int64)
            for name, values in self._declared.items()
            for key, value in values.items()
            if value.reduce == "mean"
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
            for (name, key), value in self._values.items():
                value[first:last] = _start(self._declared[name][key])
            for count in (*self._counts.values(), *self._entries.values()):
                count[first:last] = 0
            for mean in self._means.values():
                mean[first:last] = np.nan
        self._restored = False

    def add(self, first: int, last: int, name: str, info: Info) -> None:
        """Add the diagnostics of the chains ``first <= chain < last`` from one update.

        Raises:
            ConfigError: they are not what the kernel declares.
        """
        if name not in self._declared:
            raise ConfigError(
                f"the info of a kernel has a part {name!r} that reports_of_parts of this kernel "
                "does not return: add it there, with what it reports"
            )
        chains, accepted = last - first, _numpy(info.is_accepted)
        if accepted.ndim != 2 or len(accepted) != chains:
            raise ConfigError(
                f"{name}: is_accepted should have the shape (chains, proposals), with "
                f"{chains} chain(s), but has {accepted.shape}"
            )
        self._counts[name, "accepted"][first:last] += accepted.sum(1)
        self._counts[name, "tried"][first:last] += accepted.shape[1]
        if (name, first, last) not in self.cells:
            self.cells = tuple(sorted({*self.cells, (name, first, last)}))
        declared = self._declared[name]
        for key, tensor in info.values.items():
            if key not in declared:
                raise ConfigError(
                    f"{name}: the info of a step has a value {key!r} that the kernel does not "
                    f"declare: add Reported({key!r}, title, unit, reduce=...) to its reports"
                )
            value = _numpy(tensor)
            if value.shape[:1] != (chains,) or (
                declared[key].per_proposal and value.shape[1:] != declared[key].shape
            ):
                wanted = ", ".join(map(str, (chains, *declared[key].shape)))
                raise ConfigError(
                    f"{name}: the value {key!r} of a step should have the shape ({wanted}) that "
                    f"its declaration says, but has {value.shape}"
                )
            self._reduce(first, last, name, declared[key], value)

    def _reduce(
        self, first: int, last: int, name: str, declared: Reported, value: np.ndarray
    ) -> None:
        row = self._values[name, declared.name][first:last]
        # The last axis is reduced: values beyond those that the row keeps.
        entries = value.reshape(*row.shape, -1).astype(np.float64)
        if not entries.size:
            return
        if declared.reduce == "last":
            row[...] = entries[..., -1]
        elif declared.reduce == "sum":
            row += entries.sum(-1)
        elif declared.reduce == "max":
            row[...] = np.fmax(row, np.fmax.reduce(entries, axis=-1))
        else:
            finite = np.isfinite(entries)
            row += np.where(finite, entries, 0.0).sum(-1)
            self._entries[name, declared.name][first:last] += finite.sum(-1)

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


def _start(value: Reported) -> float:
    return np.nan if value.reduce in ("max", "last") else 0.0


def _name(value: Reported) -> str:
    return value.name


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
