"""A run directory as others read it: measurements, diagnostics, log, configuration.

Nothing here writes, and nothing assumes that the run has ended: rows not written yet are left out,
a half-written last line of the log is skipped.  What is damaged is refused in one sentence.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from flowmc import zoo
from flowmc.chains.measured import Measured, Phase
from flowmc.chains.storage.checkpoint import Head, read_head
from flowmc.chains.storage.declarations import (
    declarations_in,
    observable_title,
    reports_in,
    titles_in,
)
from flowmc.chains.storage.directory import identity_of
from flowmc.chains.storage.measurements import check_attributes, check_rows
from flowmc.jobs.own_files import datasets_in, opened, read_text
from flowmc.jobs.raw_hdf5 import plain
from flowmc.kernels import KernelReport
from flowmc.registry import ConfigError, built_in_title

__all__ = ["RecordedRun", "read_run"]

LAYOUT = 1


@dataclass(frozen=True)
class RecordedRun(Measured):
    """A run directory read into memory; see :meth:`open`.

    Attributes:
        path: the directory.
        attributes: of ``measurements.h5``: chains, replicas, measure_every, thermalization, ...
        couplings: of the ladder, one mapping (or number) per replica; empty without ladder.
        thermalization: what was measured before adaptation was frozen.
        production: what counts.
        head: what the checkpoint says about itself; None without one.
        discarded: updates of production that were moved to the thermalisation.
        reports: what the kernels report, by their names in the file.
        titles: of observables, by label; files of earlier versions have none.
    """

    path: Path
    attributes: Mapping[str, Any]
    couplings: tuple[Any, ...]
    thermalization: Phase
    production: Phase
    head: Head | None = None
    discarded: int = 0
    reports: Mapping[str, KernelReport] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)

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
        # First the checkpoint: rows that it counts on stay what they are.
        head = read_head(path / "checkpoint.h5") if (path / "checkpoint.h5").exists() else None
        with opened(file, "measurement file") as handle:
            attributes = {key: plain(value) for key, value in handle.attrs.items()}
            layout = attributes.get("layout")
            if layout != LAYOUT:
                raise ConfigError(
                    f"{file} has layout {layout!r}, this flowmc reads {LAYOUT}: use the "
                    "version of flowmc that made it"
                )
            check_attributes(handle)
            datasets = datasets_in(handle)
            _check_shapes(attributes, datasets)
            thermalization = _phase(datasets, "thermalization")
            production = _phase(datasets, "production")
            couplings = _tuned(_couplings(handle), production)
            reports = _reports(handle, datasets)
            titles = titles_in(handle["production"]) if "production" in handle else {}
        if head is not None:
            check_rows(file, head.update, head.rows)
        if production.rows == 0:
            raise ConfigError(
                f"{path} holds no production measurement yet ({thermalization.rows} rows of "
                "thermalisation are written): let the run go on, then report again"
            )
        run = cls(
            path,
            attributes,
            couplings,
            thermalization,
            production,
            head,
            reports=reports,
            titles=titles,
        )
        run.check()
        return run

    def check(self) -> None:
        """Compare what stands beside the measurements with them; missing files are no error.

        Raises:
            ConfigError: naming the file that is damaged or of another run.
        """
        if (self.path / "config.toml").exists():
            _check_config(self.path / "config.toml", self.config_text, self.head)
        text = self._text("provenance.json")
        try:
            if text and not isinstance(json.loads(text), dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{self.path / 'provenance.json'} is damaged ({error}): restore it from a copy"
            ) from error

    def from_update(self, first: int) -> RecordedRun:
        """Return the run with its first production updates counted as thermalisation.

        Args:
            first: number of updates left out.

        Raises:
            ConfigError: if it is negative or nothing would be left.
        """
        if first == 0:
            return self
        left_out = int(np.count_nonzero(self.production.updates <= self.offset + first))
        if first < 0 or left_out == self.production.rows:
            raise ConfigError(
                f"{self.path}: --from {first} leaves no measurement: give a number from 0 up to "
                f"{self.updates - 1} updates of production"
            )
        attributes = {**self.attributes, "thermalization": self.offset + first}
        if isinstance(attributes.get("updates"), int):
            attributes["updates"] -= first
        earlier = self.production.part(slice(0, left_out))
        return replace(
            self,
            attributes=attributes,
            thermalization=self.thermalization.followed_by(earlier),
            production=self.production.part(slice(left_out, None)),
            discarded=first,
        )

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

    def title(self, observable: str) -> str:
        """Return how an observable is called in headings, the values of its keys behind it."""
        return observable_title(observable, self.titles)

    @property
    def theory_title(self) -> str:
        """How the action is called in texts; empty if it does not say."""
        title = str(self.attributes.get("theory_title", ""))
        return title or built_in_title("actions", str(self.config.get("theory", {}).get("action")))

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

    def parts_of(self, update: str) -> list[str]:
        """Return the recorded kernels of an ``[[update]]``, in the order of replicas or pairs."""

        def place(name: str) -> int:
            report = self.reports[name]
            index = report.pair if report.replica is None else report.replica
            return -1 if index is None else index

        return sorted(
            (n for n, report in self.reports.items() if report.update == update), key=place
        )

    def kernel_of(self, update: str) -> str:
        """Return the kernel of an ``[[update]]``, empty if it has several; a part is no update."""
        kernels = {self.reports[part].kernel for part in self.parts_of(update)}
        if kernels:
            return kernels.pop() if len(kernels) == 1 else ""
        return update  # the log may know of it before the first row

    def exchanges(self, update: str) -> bool:
        """Whether an ``[[update]]`` exchanges replicas."""
        return any(self.reports[part].pair is not None for part in self.parts_of(update))

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The events of ``log.jsonl``; lines that are not JSON objects are skipped."""
        events = []
        for line in self._text("log.jsonl").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
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
                times = event["kernels"]
                return {
                    name: own
                    for name, own in times.items()
                    if isinstance(own, dict) and _numbers(own, "seconds", "calls")
                }
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
        tuning = {} if self.head is None else self.head.tuning
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
            return read_text(self.path / name)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise ConfigError(f"{self.path / name} cannot be read: {error.strerror}") from error


def read_run(path: str | Path) -> RecordedRun:
    """Read the directory of a run, finished or not; see :class:`RecordedRun`.

    Args:
        path: what ``flowmc run`` was given as ``--output``.

    Raises:
        ConfigError: it is none, is damaged, or has no measurement of production yet.
    """
    return RecordedRun.open(path)


def _check_config(path: Path, text: str, head: Head | None) -> None:
    """Refuse a configuration that is none, or not the one of the checkpoint."""
    try:
        table = tomllib.loads(text)
        for name in ("theory", "chains", "run"):
            if not isinstance(table.get(name, {}), dict):
                raise ValueError(f"{name} is no table")
        updates = table.get("update", [])
        if not isinstance(updates, list) or not all(isinstance(one, dict) for one in updates):
            raise ValueError("update is no list of tables")
        if head is not None and head.configuration not in (None, identity_of(table)):
            raise ValueError("it is not the configuration that the checkpoint was written with")
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it from a copy") from error


def _timed(event: Mapping[str, Any]) -> bool:
    return _numbers(event, "update", "seconds")


def _numbers(entry: Mapping[str, Any], *keys: str) -> bool:
    """Whether all of these are there and finite numbers."""
    values = [entry.get(key) for key in keys]
    # Python's integers may be beyond all floats.
    return all(isinstance(v, int | float) and abs(v) < 1e300 for v in values)


# Attributes of the file, and what they may not be below.
_COUNTS = {"chains": 1, "replicas": 1, "measure_every": 1, "thermalization": 0, "updates": 0}


def _check_shapes(attributes: Mapping[str, Any], datasets: Mapping[str, h5py.Dataset]) -> None:
    """Raise ValueError if the file does not have the form that flowmc gives it."""
    for key, least in _COUNTS.items():
        value = attributes.get(key)
        if type(value) is not int or not least <= value < 2**53:
            raise ValueError(f"its attribute {key} is {value!r}")
    chains, replicas = attributes["chains"], attributes["replicas"]
    wanted = {
        "updates": ("i", ()),
        "observables": ("f", (chains, replicas)),
        "kernels": ("if", (chains,)),
        "walkers": ("i", (chains, replicas)),
        "couplings": ("f", (replicas,)),
    }
    for name, data in datasets.items():
        phase, _, rest = name.partition("/")
        kinds, leading = wanted.get(rest.partition("/")[0], ("", ()))
        rows = datasets.get(f"{phase}/updates")
        if rows is None or rows.ndim != 1 or rest.count("/") > 2:
            raise ValueError(f"{name} is not expected")
        shape = (len(rows), *leading)
        if data.dtype.kind not in kinds or data.shape[: len(shape)] != shape:
            raise ValueError(f"{name} has type {data.dtype} and shape {data.shape}")


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


def _phase(datasets: Mapping[str, h5py.Dataset], phase: str) -> Phase:
    """Read the rows of a phase that are written."""
    own = {
        name.removeprefix(f"{phase}/"): data
        for name, data in datasets.items()
        if name.startswith(f"{phase}/")
    }
    if "updates" not in own:
        return Phase(np.empty(0, np.int64))
    updates = own["updates"][()]
    unwritten = np.flatnonzero(updates < 0)
    rows = int(unwritten[0]) if unwritten.size else len(updates)
    if (updates[rows:] >= 0).any() or (np.diff(updates[:rows]) <= 0).any():
        raise ValueError(f"rows of {phase} are missing among those that are written")

    def below(group: str) -> dict[str, NDArray]:
        prefix = f"{group}/"
        return {
            name.removeprefix(prefix): data[:rows]
            for name, data in own.items()
            if name.startswith(prefix)
        }

    kernels: dict[str, dict[str, NDArray]] = {}
    for path, values in below("kernels").items():
        name, _, key = path.rpartition("/")
        kernels.setdefault(name, {})[key] = values
    return Phase(
        updates[:rows],
        below("observables"),
        kernels,
        own["walkers"][:rows] if "walkers" in own else None,
        len(updates),
        below("couplings"),
        {
            name.removeprefix("observables/"): json.loads(data.attrs["parameters"])
            for name, data in own.items()
            if name.startswith("observables/") and "parameters" in data.attrs
        },
    )


def _reports(handle: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> dict[str, KernelReport]:
    """Return what the kernels of the file report."""
    prefix = "production/"
    if prefix.rstrip("/") not in handle:
        return {}
    shapes = {
        name.removeprefix(prefix): data.shape[1:]
        for name, data in datasets.items()
        if name.startswith(prefix)
    }
    return reports_in(shapes, declarations_in(handle["production"]))


def _couplings(handle: h5py.File) -> tuple[Any, ...]:
    value = handle["replicas"].attrs.get("couplings") if "replicas" in handle else None
    if value is None:
        value = handle.attrs.get("couplings")
    if value is None:
        return ()
    value = plain(value)
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
