"""The loop of ``flowmc correlate``: configurations in, rows of ``series.h5`` out, then results."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flowmc_adapters import atomic_write
from numpy.typing import NDArray

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, Identity
from flowmc.flows.files import load_flow, orient
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_device, choose_threads
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import fingerprint_of
from flowmc.run.config import ObservableEntry, changed_keys
from flowmc.run.correlate.config import CorrelateConfig
from flowmc.run.correlate.measurement import Columns, Context, Measurement, Sample, Section, Series
from flowmc.run.correlate.quantities import Derived
from flowmc.run.correlate.source_section import SourceSection
from flowmc.run.correlate.store import SeriesStore, measured_before
from flowmc.run.correlate.targets import Target
from flowmc.run.correlate.writing import CorrelatedWriter, write_weights
from flowmc.run.directory import RunDirectory, environment
from flowmc.run.journal import Display, Journal
from flowmc.run.rehearsal import measure_field
from flowmc.run.runner import RunStopped, open_run
from flowmc.run.stored_ensemble import Batch, StoredEnsemble, selection_text
from flowmc.run.toml_text import toml_text

__all__ = ["CorrelateDirectory", "Session"]

_BATCH_BYTES, _LARGEST_BATCH = 2**24, 256
# Keys that may differ when a measurement is taken up again.
_FREE_TABLES = ("analysis.",)
_FREE_KEYS = ("ensemble.files", "ensemble.batch", "ensemble.device", "ensemble.last")


class CorrelateDirectory(RunDirectory):
    """Paths of one output directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.series = path / "series.h5"
        self.survey = path / "survey.h5"
        self.results = path / "results.json.gz"
        self.table = path / "results.csv"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.correlated = path / "correlated"
        self.chain = path / "chain"

    @property
    def holds_a_run(self) -> bool:
        return any(
            path.exists()
            for path in (self.config, self.series, self.survey, self.results, self.chain)
        )


class Session:
    """One invocation of ``flowmc correlate``.

    Args:
        config: what to do.
        directory: where.
        resume: take up what is there already.
        say: shows a sentence to the user.

    Raises:
        ConfigError: a flow that does not fit, a directory that holds something else.
    """

    def __init__(
        self,
        config: CorrelateConfig,
        directory: CorrelateDirectory,
        *,
        resume: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.directory, self.say = config, directory, say
        choose_threads(Communicator())
        self.device = choose_device(config.source.device, Communicator())
        self.dtype = torch.float64 if config.source.precision == 64 else torch.float32
        self.fingerprints: dict[str, str] = {}
        self.doubts: dict[str, None] = {}
        self.cards: dict[str, Mapping[str, Any]] = {}
        if directory.holds_a_run:
            if not resume:
                raise ConfigError(
                    f"{directory.path} holds results already: take them up with --resume, or "
                    "choose another --output"
                )
            self._check_resumable()
        self.context = Context(
            config.action,
            config.observables,
            self.dtype,
            self.device,
            self._load_flow,
            derived_of(config),
        )
        if config.live is not None:
            # What cannot be measured should show before the chain runs, not after.
            self._rehearse()
            self._measurements("live", several=False)
        self.ensemble = self._ensemble(resume)
        several = len(self.ensemble.history.numbers) > 1
        self.measurements = self._measurements(self.ensemble.name, several=several)
        if directory.provenance.exists():
            directory.check_flows(self.fingerprints)

    def measure(self) -> Series:
        """Measure all configurations that have not been measured yet; return all series.

        Raises:
            FormatError, OSError: a file cannot be read or written.
            ConfigError: an observable does not fit the theory.
        """
        directory, ensemble = self.directory, self.ensemble
        directory.claim()
        self._write_provenance()
        journal = Journal(directory.log)
        self.say(f"{selection_text(ensemble)} of {ensemble.name}")
        surveying = [one for one in self.measurements if one.has_survey]
        if surveying:
            survey = self._pass(journal, "surveying", directory.survey, self._survey_batch)
            for measurement in surveying:
                measurement.settle(survey)
        return self._pass(journal, "measuring", directory.series, self._measure_batch)

    def _pass(
        self, journal: Journal, task: str, path: Path, compute: Callable[[Batch], Columns]
    ) -> Series:
        """Fill in the rows of a file that are missing; return all of them."""
        ensemble = self.ensemble
        before = measured_before(path)
        keys = [(one.replica, one.number) for one in ensemble.members]
        done = sum(key in before for key in keys)
        if before:
            self.say(f"{done} of them are measured already")
        journal.write("start", done, task=task, resumed=bool(before), configurations=len(ensemble))
        display = Display(len(ensemble), done)
        store = self._open_store(path, keys)
        try:
            batches = ensemble.batches(
                self.config.action,
                self.config.source.batch or self._batch_size(),
                dtype=self.dtype,
                device=self.device,
                skip=lambda place: keys[place] in before,
            )
            for batch in batches:
                self._compare_couplings(batch)
                columns = compute(batch)
                for note in batch.notes:
                    journal.write("warning", batch.first, text=note)
                if store is None:
                    shapes = {name: values.shape[1:] for name, values in columns.items()}
                    store = SeriesStore.create(path, ensemble, shapes)
                store.write(batch.first, columns)
                done += len(batch.members)
                if display.is_due():
                    latest = {
                        name.removeprefix("observables/"): float(values.mean())
                        for name, values in columns.items()
                        if name.startswith("observables/") and values.ndim == 1
                    }
                    display.show(done, task, {}, latest)
        finally:
            display.close()
            if store is not None:
                store.close()
        assert store is not None
        for text in self.doubts:
            journal.write("warning", done, text=text)
        journal.write("stop", done, task=task)
        return Series(ensemble.history, store.columns())

    def analyse(self, series: Series) -> list[Section]:
        """Return the results, the ensemble's own first."""
        source = SourceSection("source", self.context).analyse(series)
        sections = [replace(source, warnings=[*self.doubts, *source.warnings])]
        for measurement in self.measurements:
            sections.append(measurement.analyse(series))
            if isinstance(measurement, Target) and measurement.writer is not None:
                write_weights(
                    measurement.writer.folder / "weights.csv",
                    series.history,
                    series.columns[f"{measurement.label}/log_weight"],
                )
        return sections

    def _survey_batch(self, batch: Batch) -> Columns:
        with torch.no_grad():
            energy = self.config.action(batch.field)
        sample = Sample(batch.members, batch.field, energy, {})
        return {
            f"{measurement.label}/{path}": array
            for measurement in self.measurements
            for path, array in measurement.survey(sample).items()
        }

    def _compare_couplings(self, batch: Batch) -> None:
        """Note couplings in the files' metadata that are not those of the theory."""
        for member, metadata in zip(batch.members, batch.metadata, strict=True):
            for name, value in self.config.action.parameters.items():
                try:
                    stored = float(metadata.get(name.upper(), "nan"))
                except ValueError:
                    continue
                if abs(stored - value) > 1e-6 * max(1.0, abs(value)):
                    text = (
                        f"{Path(member.path).name} and maybe others say {name} = {stored:g}, but "
                        f"[theory] has {name} = {value:g}: all weights would be wrong"
                    )
                    if not self.doubts:
                        self.say(f"warning: {text}")
                        self.doubts[text] = None

    def _measure_batch(self, batch: Batch) -> Columns:
        action = self.config.action
        values: dict[str, NDArray[np.float64]] = {}
        with torch.no_grad():
            energy = action(batch.field)
        for entry in self.config.observables:
            values[entry.label] = self._observe(entry, batch.field)
        sample = Sample(batch.members, batch.field, energy, values)
        columns = {f"observables/{label}": array for label, array in values.items()}
        columns["action"] = energy.cpu().numpy()
        for measurement in self.measurements:
            for path, array in measurement.measure(sample).items():
                columns[f"{measurement.label}/{path}"] = array
        return columns

    def _open_store(self, path: Path, keys: list[tuple[str, int]]) -> SeriesStore | None:
        """Open what is there, with the rows of this ensemble; None if nothing is."""
        if not path.exists():
            return None
        store = SeriesStore(path)
        if store.keys == keys:
            return store
        store.close()
        return SeriesStore.create(path, self.ensemble, store.row_shapes)

    def _ensemble(self, resume: bool) -> StoredEnsemble:
        source = self.config.source
        if self.config.live is not None:
            self._run_live(resume)
            # Not "live" for all: pyerrors takes equal names for the same configurations.
            name = source.name or self.directory.path.resolve().name.replace("|", "_")
            ensemble = StoredEnsemble.of_run(self.directory.chain, name=name)
        elif source.run is not None:
            ensemble = StoredEnsemble.of_run(Path(self.config.path(source.run)), name=source.name)
        else:
            assert source.files is not None
            written = [source.files] if isinstance(source.files, str) else source.files
            paths = [self.config.path(one) for one in written]
            ensemble = StoredEnsemble.of_files(paths, name=source.name)
        return ensemble.selected(first=source.first, last=source.last, every=source.every)

    def _run_live(self, resume: bool) -> None:
        """Make the configurations with the machinery of ``flowmc run``, or finish making them."""
        assert self.config.live is not None
        directory = RunDirectory(self.directory.chain)
        started = time.monotonic()
        try:
            runner = open_run(self.config.live, directory, Communicator(), resume=resume)
            reason = runner.go(started)
        finally:
            directory.release()
        if reason != "finished":
            raise RunStopped(
                f"the chain stopped after update {runner.update} of {runner.total} ({reason}): "
                "continue with --resume"
            )

    def _rehearse(self) -> None:
        """Measure a disordered field, for the errors that it may raise."""
        rng = stream(0, 0, "rehearsal")
        field = self.config.action.hot(1, rng, self.dtype).to(self.device)
        for entry in self.config.observables:
            self._observe(entry, field)

    def _observe(self, entry: ObservableEntry, field: torch.Tensor) -> NDArray[np.float64]:
        try:
            return measure_field(entry, self.config.action, field)
        except (ConfigError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise ConfigError(f"[measure]: {entry.label}: {error}") from error

    def _measurements(self, name: str, *, several: bool) -> list[Measurement]:
        found: list[Measurement] = []
        for entry in self.config.targets:
            where = f"[[target]] {entry.label}"
            writer = None
            if entry.save is not None:
                writer = CorrelatedWriter(
                    self.directory.correlated / entry.label,
                    name,
                    entry.action,
                    entry.flow,
                    format=entry.save,
                    precision=entry.precision,
                    several=several,
                )
            flow = self._load_flow(entry.flow, entry.action, where)
            found.append(Target(entry.label, self.context, entry.action, flow, writer))
        for derivative in self.config.derivatives:
            try:
                found.append(
                    derivative.component(derivative.label, self.context, **derivative.keys)
                )
            except (ValueError, TypeError) as error:
                text = str(error)
                where = f"[[derivative]] {derivative.label}"
                raise ConfigError(text if text.startswith("[[") else f"{where}: {text}") from error
        return found

    def _load_flow(self, written: str, target: Action, where: str) -> Flow:
        if written == "identity":
            return Identity()
        action = self.config.action
        source = written if written.startswith("zoo:") else self.config.path(written)
        try:
            loaded = load_flow(source, lattice=action.lattice, device=self.device)
            flow = orient(loaded.card, loaded.flow.to(self.dtype), action, target)
        except ConfigError as error:
            raise ConfigError(f"{where}: flow = {written!r}: {error}") from error
        self.cards[written] = loaded.card
        self.fingerprints[written] = fingerprint_of(loaded.flow)
        return flow.eval()

    def _batch_size(self) -> int:
        shape = self.config.action.field_shape(1)
        bytes_of_field = int(np.prod(shape)) * (16 if self.config.action.group.element_shape else 8)
        return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // bytes_of_field))

    def _check_resumable(self) -> None:
        try:
            text = self.directory.config.read_text(encoding="utf-8")
            old = tomllib.loads(text)
        except FileNotFoundError:
            return  # killed before anything was measured
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.directory.config} cannot be read: {error}") from error
        new = tomllib.loads(toml_text(self.config.resolved))
        for key, (before, after) in changed_keys(old, new).items():
            if key in _FREE_KEYS or key.startswith(_FREE_TABLES):
                continue
            raise ConfigError(
                f"{key} was {before!r} when the measurements in {self.directory.path} were begun "
                f"and is {after!r} now: restore it to resume, or choose another --output"
            )

    def _write_provenance(self) -> None:
        text = toml_text(self.config.resolved)
        content = {
            **environment(self.device),
            "command": shlex.join(sys.argv),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "ensemble": {
                "name": self.ensemble.name,
                "replicas": {
                    name: {
                        "configurations": len(numbers),
                        "first": int(numbers[0]),
                        "last": int(numbers[-1]),
                    }
                    for name, numbers in self.ensemble.history.numbers.items()
                },
                "folders": sorted({str(Path(one.path).parent) for one in self.ensemble.members}),
            },
            "flows": {
                name: {"fingerprint": digest, "card": self.cards[name]}
                for name, digest in self.fingerprints.items()
            },
        }
        for path, data in (
            (self.directory.config, text),
            (self.directory.provenance, json.dumps(content, indent=2) + "\n"),
        ):
            with atomic_write(path) as file:
                file.write(data.encode())


def derived_of(config: CorrelateConfig) -> Derived:
    """Return the quantities that are made of the means of a configuration's observables."""
    with_vacuum = [
        entry.label
        for entry in config.observables
        if getattr(entry.function, "has_vacuum_column", False)
    ]
    masses = {one.of: (one.first, one.last) for one in config.analysis.masses}
    return Derived(with_vacuum, masses)
