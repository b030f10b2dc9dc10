"""One ensemble on its way through measurements: a few configurations in memory, rows on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowmc.actions.base import Action
from flowmc.chains.config import RunConfig
from flowmc.chains.opening import open_run
from flowmc.chains.regeneration import open_seeds
from flowmc.chains.runner import RunStopped
from flowmc.chains.storage.directory import RunDirectory
from flowmc.correlate.config import Source
from flowmc.correlate.measurement import Columns, Series
from flowmc.correlate.store import SeriesStore, measured_before
from flowmc.ensembles.stored import ConfigurationBatch, StoredEnsemble, selection_text
from flowmc.jobs.journal import Display, Journal
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_device

__all__ = ["EnsembleStream", "kind_of_fields", "open_ensemble", "run_live"]

_BATCH_BYTES, _LARGEST_BATCH = 2**24, 256


class EnsembleStream:
    """The configurations of an ensemble, read a few at a time, each once for a file of rows.

    Args:
        ensemble: the configurations.
        action: the theory that they were made with.
        source: how to read them.
        say: shows a sentence to the user.
        where: the table of the configuration that has the couplings.

    Attributes:
        doubts: sentences about files that say something else than the theory.
    """

    def __init__(
        self,
        ensemble: StoredEnsemble,
        action: Action,
        source: Source,
        say: Callable[[str], None] = lambda text: None,
        *,
        where: str = "[theory]",
    ) -> None:
        self.where = where
        self.ensemble, self.action, self.source = ensemble, action, source
        self.dtype, self.device = kind_of_fields(source)
        self.say = say
        self.doubts: dict[str, None] = {}

    def announce(self) -> None:
        """Say what there is to read."""
        self.say(f"{selection_text(self.ensemble)} of {self.ensemble.name}")

    def measure(
        self,
        journal: Journal,
        task: str,
        path: Path,
        compute: Callable[[ConfigurationBatch], Columns],
    ) -> Series:
        """Fill in the rows of a file that are missing; return all of them.

        Args:
            journal: for starts, stops and warnings.
            task: in one word.
            path: of the rows; made if it is not there.
            compute: the columns ``(configurations, ...)`` of a batch.

        Raises:
            FormatError, OSError: a file cannot be read or written.
        """
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
                self.action,
                self.source.batch or self._batch_size(),
                dtype=self.dtype,
                device=self.device,
                skip=lambda place: keys[place] in before,
                any_order=True,
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

    def _open_store(self, path: Path, keys: list[tuple[str, int]]) -> SeriesStore | None:
        """Open what is there, with the rows of this ensemble; None if nothing is."""
        if not path.exists():
            return None
        store = SeriesStore(path)
        if store.keys == keys:
            return store
        store.close()
        return SeriesStore.create(path, self.ensemble, store.row_shapes)

    def _batch_size(self) -> int:
        shape = self.action.field_shape(1)
        bytes_of_field = int(np.prod(shape)) * (16 if self.action.group.element_shape else 8)
        return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // bytes_of_field))

    def _compare_couplings(self, batch: ConfigurationBatch) -> None:
        """Note couplings in the files' metadata that are not those of the theory."""
        for member, metadata in zip(batch.members, batch.metadata, strict=True):
            for name, value in self.action.parameters.items():
                try:
                    stored = float(metadata.get(name.upper(), "nan"))
                except ValueError:
                    continue
                if abs(stored - value) > 1e-6 * max(1.0, abs(value)):
                    text = (
                        f"{Path(member.path).name} and maybe others say {name} = {stored:g}, but "
                        f"{self.where} has {name} = {value:g}: all weights would be wrong"
                    )
                    if not self.doubts:
                        self.say(f"warning: {text}")
                        self.doubts[text] = None


def open_ensemble(
    source: Source, path_of: Callable[[str], str], *, name: str | None = None
) -> StoredEnsemble:
    """Return the configurations that ``files`` or ``run`` of a source name.

    Args:
        source: with one of the two.
        path_of: turns what is written into a path.
        name: of the ensemble; by default that of the files or the run.

    Raises:
        ConfigError, FormatError, OSError: as :meth:`StoredEnsemble.of_files`.
    """
    if source.run is not None:
        ensemble = StoredEnsemble.of_run(Path(path_of(source.run)), name=name, seeds=open_seeds)
    else:
        assert source.files is not None
        written = [source.files] if isinstance(source.files, str) else source.files
        ensemble = StoredEnsemble.of_files(
            [path_of(one) for one in written], name=name, seeds=open_seeds
        )
    return _selected(ensemble, source)


def _selected(ensemble: StoredEnsemble, source: Source) -> StoredEnsemble:
    """Return the part of an ensemble that ``first``, ``last`` and ``every`` of a source choose."""
    return ensemble.selected(first=source.first, last=source.last, every=source.every)


def kind_of_fields(source: Source) -> tuple[torch.dtype, torch.device]:
    """Return the precision of the real components of fields in memory, and where they live."""
    dtype = torch.float64 if source.precision == 64 else torch.float32
    return dtype, choose_device(source.device, Communicator())


def run_live(
    config: RunConfig, path: Path, source: Source, name: str, *, resume: bool
) -> StoredEnsemble:
    """Make configurations with the machinery of ``flowmc run``, or finish making them.

    Args:
        config: of the chain.
        path: the run directory.
        source: says which part of them is the ensemble.
        name: of the ensemble.
        resume: continue a chain that has begun.

    Raises:
        RunStopped: the chain did not reach its end.
        ConfigError: as :func:`flowmc.chains.runner.open_run`.
    """
    directory = RunDirectory(path)
    started = time.monotonic()
    try:
        runner = open_run(config, directory, Communicator(), resume=resume)
        reason = runner.go(started)
    finally:
        directory.release()
    if reason != "finished":
        raise RunStopped(
            f"the chain stopped after update {runner.update} of {runner.total} ({reason}): "
            "continue with --resume"
        )
    return _selected(StoredEnsemble.of_run(path, name=name, seeds=open_seeds), source)
