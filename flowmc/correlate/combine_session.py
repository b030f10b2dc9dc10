"""The loop of ``flowmc correlate`` over several ensembles: every one read once, all analysed."""

from __future__ import annotations

from collections.abc import Callable

from flowmc.correlate.combine_columns import CombineColumns
from flowmc.correlate.combine_config import CombineConfig, EnsembleEntry, equal_seeds
from flowmc.correlate.combined import MeasuredEnsemble
from flowmc.correlate.directory import CorrelateDirectory, origin_of
from flowmc.correlate.measurement import Columns
from flowmc.correlate.stream import EnsembleStream, open_ensemble, run_live
from flowmc.ensembles.stored import ConfigurationBatch, StoredEnsemble
from flowmc.jobs.journal import Journal
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads

__all__ = ["CombineSession"]


class CombineSession:
    """One invocation of ``flowmc correlate`` with several ensembles.

    On every configuration are measured :class:`~flowmc.correlate.combine_columns.CombineColumns`.
    Fields are forgotten: in memory is one batch of one ensemble.

    Args:
        config: what to do.
        directory: where.
        resume: take up what is there already.
        say: shows a sentence to the user.

    Raises:
        ConfigError: an observable does not fit, a directory holds something else, or two ensembles
            were made with one seed.
        RunStopped: a live chain did not reach its end.
    """

    def __init__(
        self,
        config: CombineConfig,
        directory: CorrelateDirectory,
        *,
        resume: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.directory, self.say = config, directory, say
        choose_threads(Communicator())
        # What is there may only be judged while nobody else writes it.
        directory.claim()
        directory.check_free(config.resolved, resume=resume)
        # What cannot be measured should show before chains run, not after.
        theories = [one.action for one in config.theories]
        self.columns = CombineColumns(config.action, theories, config.observables)
        self.streams = [self._stream(entry, resume) for entry in config.ensembles]
        self._refuse_equal_seeds()

    def measure(self) -> list[MeasuredEnsemble]:
        """Measure all configurations that have not been measured yet; return all series.

        Raises:
            FormatError, OSError: a file cannot be read or written.
            ConfigError: an observable does not fit the theory.
        """
        self.directory.ensembles.mkdir(exist_ok=True)
        origins = {
            entry.label: origin_of(stream.ensemble)
            for entry, stream in zip(self.config.ensembles, self.streams, strict=True)
        }
        device, resolved = self.streams[0].device, self.config.resolved
        self.directory.write_config(resolved)
        self.directory.write_provenance(resolved, device, {"ensembles": origins})
        journal = Journal(self.directory.log)
        found = []
        for entry, stream in zip(self.config.ensembles, self.streams, strict=True):
            stream.announce()
            path = self.directory.series_of(entry.label)
            series = stream.measure(journal, f"measuring {entry.label}", path, self._columns)
            found.append(MeasuredEnsemble(entry.label, entry.action, series, list(stream.doubts)))
        return found

    def _refuse_equal_seeds(self) -> None:
        """Compare what the files say; runs and live chains are compared with each other before."""
        seeds: dict[int, str] = {}
        for stream in self.streams:
            seed = stream.ensemble.seed
            if seed is not None and seed in seeds:
                raise equal_seeds(stream.where, seed, seeds[seed])
            if seed is not None:
                seeds[seed] = stream.where

    def _columns(self, batch: ConfigurationBatch) -> Columns:
        return self.columns.measure(batch.members, batch.field)

    def _stream(self, entry: EnsembleEntry, resume: bool) -> EnsembleStream:
        return EnsembleStream(
            self._ensemble(entry, resume),
            entry.action,
            entry.source,
            self.say,
            where=f"[[ensemble]] {entry.label}",
        )

    def _ensemble(self, entry: EnsembleEntry, resume: bool) -> StoredEnsemble:
        if entry.live is None:
            return open_ensemble(entry.source, self.config.path, name=entry.label)
        self.say(f"chain of {entry.label}")
        # Not the label alone: pyerrors takes equal names for the same configurations.
        name = entry.source.name or f"{self.directory.word},{entry.label}"
        path = self.directory.chain / entry.label
        return run_live(entry.live, path, entry.source, name, resume=resume)
