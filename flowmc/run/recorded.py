"""A run directory as others read it: measurements, diagnostics, log, configuration.

Nothing here writes, and nothing assumes that the run has ended: rows not written yet are left out,
a half-written last line of the log is skipped.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowmc import zoo
from flowmc.registry import ConfigError

__all__ = ["Phase", "RecordedRun"]

LAYOUT = 1


@dataclass(frozen=True)
class Phase:
    """What one phase of a run, thermalisation or production, has written so far.

    Attributes:
        updates: ``(rows,)``, the number of the update after which each row was measured.
        observables: by name, each ``(rows, chains, replicas, ...)``.
        kernels: by name of the kernel and of the value, each ``(rows, chains, ...)``.
        walkers: ``(rows, chains, replicas)``, which walker sits at replica r; None without ladder.
        planned_rows: number of rows when the phase is complete.
        couplings: of a tuned ladder, by name, each ``(rows, replicas)``.
        parameters: keys of the observables that have some, by name.
    """

    updates: NDArray[np.int64]
    observables: Mapping[str, NDArray] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, NDArray]] = field(default_factory=dict)
    walkers: NDArray[np.int64] | None = None
    planned_rows: int = 0
    couplings: Mapping[str, NDArray] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all planned rows are written."""
        return self.rows >= self.planned_rows

    @property
    def rows(self) -> int:
        """Number of measurements per chain."""
        return len(self.updates)


@dataclass(frozen=True)
class RecordedRun:
    """A run directory read into memory; see :meth:`open`.

    Attributes:
        path: the directory.
        attributes: of ``measurements.h5``: chains, replicas, measure_every, thermalization, ...
        couplings: of the ladder, one mapping (or number) per replica; empty without ladder.
        thermalization: what was measured before adaptation was frozen.
        production: what counts.
    """

    path: Path
    attributes: Mapping[str, Any]
    couplings: tuple[Any, ...]
    thermalization: Phase
    production: Phase

    @classmethod
    def open(cls, path: str | Path) -> RecordedRun:
        """Read a run directory.

        Raises:
            ConfigError: if it is not one, is of an unknown layout, or has no production row yet.
        """
        path = Path(path)
        if not path.is_dir():
            raise ConfigError(f"{path} is not a directory: give the output of `flowmc run`")
        file = path / "measurements.h5"
        if not file.is_file():
            raise ConfigError(
                f"{path} holds no measurements.h5: it is not a run directory, or the run stopped "
                "before its first measurement"
            )
        try:
            # The run may still be writing, and some file systems of clusters know no locks.
            with h5py.File(file, "r", locking=False) as handle:
                attributes = {key: _plain(value) for key, value in handle.attrs.items()}
                layout = attributes.get("layout")
                if layout != LAYOUT:
                    raise ConfigError(
                        f"{file} has layout {layout!r}, this flowmc reads {LAYOUT}: use the "
                        "version of flowmc that made it"
                    )
                thermalization = _phase(handle.get("thermalization"))
                production = _phase(handle.get("production"))
                couplings = _tuned(_couplings(handle), production)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
        if production.rows == 0:
            raise ConfigError(
                f"{path} holds no production measurement yet ({thermalization.rows} rows of "
                "thermalisation are written): let the run go on, then report again"
            )
        return cls(path, attributes, couplings, thermalization, production)

    @property
    def chains(self) -> int:
        """Number of chains over all ranks."""
        return int(self.attributes.get("chains", 1))

    @property
    def replicas(self) -> int:
        """Number of replicas of each chain; 1 without ladder."""
        return int(self.attributes.get("replicas", 1))

    def replica_name(self, index: int) -> str:
        """Return the couplings of a replica that differ along the ladder, ``"beta=5.8"``."""
        if index >= len(self.couplings):
            return f"replica {index}"
        own = self.couplings[index]
        if not isinstance(own, Mapping):
            return f"{own:g}" if isinstance(own, float) else str(own)
        varying = [
            key
            for key in own
            if any(
                other.get(key) != own[key] for other in self.couplings if isinstance(other, Mapping)
            )
        ]
        return " ".join(f"{key}={own[key]:g}" for key in varying or own)

    @property
    def measure_every(self) -> int:
        """Updates between two measurements."""
        return int(self.attributes.get("measure_every", 1))

    @property
    def offset(self) -> int:
        """Number of the last update of the thermalisation, from which production counts."""
        return int(self.attributes.get("thermalization", 0))

    @property
    def updates(self) -> int:
        """Production updates done: up to the last written measurement, or all if complete."""
        if self.production.is_complete and "updates" in self.attributes:
            return int(self.attributes["updates"])
        return int(self.production.updates[-1]) - self.offset

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The events of ``log.jsonl``; lines that are not JSON objects are skipped."""
        events = []
        for line in self._text("log.jsonl").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.append(event)
        return events

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if missing or damaged."""
        try:
            return tomllib.loads(self.config_text)
        except tomllib.TOMLDecodeError:
            return {}

    @cached_property
    def config_text(self) -> str:
        """The resolved configuration as it stands in ``config.toml``."""
        return self._text("config.toml")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, machines and flows of the run; empty if missing or damaged."""
        try:
            value = json.loads(self._text("provenance.json"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def kernel_times(self) -> dict[str, dict[str, float]]:
        """Return ``{kernel: {seconds, calls}}`` since the start, from the last line that has it."""
        for event in reversed(self.log):
            if isinstance(event.get("kernels"), dict):
                return event["kernels"]
        return {}

    @property
    def seconds(self) -> float | None:
        """Wall seconds of the run so far, thermalisation included; None without a log."""
        return next((event["seconds"] for event in reversed(self.log) if _timed(event)), None)

    def seconds_per_update(self) -> float | None:
        """Return the wall seconds per production update of all chains; None without a log.

        From the difference of the last line of the log and the first one of production, which
        leaves out thermalisation and start-up; from the totals if there is only one such line.
        """
        lines = [event for event in self.log if _timed(event)]
        if not lines:
            return None
        last = lines[-1]
        start = self.offset
        first = next((event for event in lines if event["update"] >= start), last)
        updates, seconds = last["update"], last["seconds"]
        # The difference of two nearby lines would be all noise.
        if updates - first["update"] >= 0.2 * (updates - start):
            updates, seconds = updates - first["update"], seconds - first["seconds"]
        return seconds / updates if updates > 0 and seconds > 0 else None

    def step_sizes(self) -> dict[str, list[float]]:
        """Return the mean step size of each HMC kernel, one per replica, from the checkpoint."""
        try:
            with h5py.File(self.path / "checkpoint.h5", "r", locking=False) as handle:
                tuning = json.loads(handle.attrs["tuning"])
        except (OSError, KeyError, ValueError):
            return {}
        lengths = self._trajectories()
        sizes: dict[str, list[float]] = {}
        for key, value in tuning.items():
            parts = key.split("/")
            if parts[-1] == "log_step_size":
                length = lengths.get(parts[0], 1.0)
                # The number of steps is an integer: as HMC.steps rounds it.
                steps = max(1, math.ceil(round(length / math.exp(value), 9)))
                sizes.setdefault(parts[0], []).append(length / steps)
        return sizes

    def _trajectories(self) -> dict[str, float]:
        """Return the trajectory length of each HMC kernel by its unique name in the cycle."""
        lengths: dict[str, float] = {}
        seen: dict[str, int] = {}
        for table in self.config.get("update", []):
            name = table.get("kernel", "")
            seen[name] = seen.get(name, 0) + 1
            unique = name if seen[name] == 1 else f"{name}_{seen[name]}"
            lengths[unique] = float(table.get("trajectory", 1.0))
        return lengths

    def training_seconds(self) -> float:
        """Return the training time of all flows the run used, from their cards.

        With that of the flows from which they began (``start_from``), each once.
        """
        return self._training[0]

    @property
    def untold_trainings(self) -> tuple[str, ...]:
        """Flows from which others began and whose training time is not known."""
        return self._training[1]

    @cached_property
    def _training(self) -> tuple[float, tuple[str, ...]]:
        total, ancestors, untold = 0.0, dict[str, float](), set[str]()
        for training in _trainings(self.provenance.get("flows")):
            total += float(training["seconds"])
            for name, seconds in zoo.ancestors(training).items():
                if seconds is None:
                    untold.add(name)
                else:
                    ancestors[name] = seconds
        return total + sum(ancestors.values()), tuple(sorted(untold))

    @property
    def machine(self) -> dict[str, Any]:
        """What the wall time was spent on: ranks, threads of each, device, processor."""
        keys = ("ranks", "threads", "device", "device_name", "cpu")
        return {key: self.provenance.get(key) for key in keys}

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _timed(event: Mapping[str, Any]) -> bool:
    return all(isinstance(event.get(key), int | float) for key in ("update", "seconds"))


def _trainings(entry: Any) -> Iterator[Mapping[str, Any]]:
    """Find ``training = {seconds = ...}`` at any depth: cards may stand inside entries of flows."""
    if isinstance(entry, Mapping):
        training = entry.get("training")
        if isinstance(training, Mapping) and isinstance(training.get("seconds"), int | float):
            yield training
        else:
            for value in entry.values():
                yield from _trainings(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _trainings(value)


def _phase(group: h5py.Group | None) -> Phase:
    if group is None or "updates" not in group:
        return Phase(np.empty(0, np.int64))
    updates = group["updates"][()]
    unwritten = np.flatnonzero(updates < 0)
    rows = int(unwritten[0]) if unwritten.size else len(updates)
    walkers = group.get("walkers")
    return Phase(
        updates[:rows],
        {name: data[:rows] for name, data in group.get("observables", {}).items()},
        {
            name: {key: data[:rows] for key, data in values.items()}
            for name, values in group.get("kernels", {}).items()
        },
        None if walkers is None else walkers[:rows],
        len(updates),
        {name: data[:rows] for name, data in group.get("couplings", {}).items()},
        {
            name: json.loads(data.attrs["parameters"])
            for name, data in group.get("observables", {}).items()
            if "parameters" in data.attrs
        },
    )


def _couplings(handle: h5py.File) -> tuple[Any, ...]:
    value = handle["replicas"].attrs.get("couplings") if "replicas" in handle else None
    if value is None:
        value = handle.attrs.get("couplings")
    if value is None:
        return ()
    value = _plain(value)
    return tuple(json.loads(value) if isinstance(value, str) else value)


def _tuned(couplings: tuple[Any, ...], production: Phase) -> tuple[Any, ...]:
    """Return the couplings that production used, where tuning moved them from those written."""
    if not production.couplings or not production.rows:
        return couplings
    last = {name: values[-1] for name, values in production.couplings.items()}
    replicas = len(next(iter(last.values())))
    fixed = couplings if len(couplings) == replicas else ({},) * replicas
    return tuple(
        {**(own if isinstance(own, Mapping) else {}), **{k: float(v[r]) for k, v in last.items()}}
        for r, own in enumerate(fixed)
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
