"""The loop of ``flowmc correlate``: configurations in, rows of ``series.h5`` out, then results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowmc.actions.base import Action
from flowmc.chains.storage.directory import flows_entry
from flowmc.correlate.config import CorrelateConfig
from flowmc.correlate.directory import CorrelateDirectory, origin_of
from flowmc.correlate.measurement import (
    Columns,
    Context,
    Measurement,
    Section,
    Series,
    given_flow,
)
from flowmc.correlate.passes import Passes, disordered_field, observe
from flowmc.correlate.quantities import Derived
from flowmc.correlate.stream import EnsembleStream, kind_of_fields, open_ensemble, run_live
from flowmc.correlate.targets import Target
from flowmc.correlate.writing import CorrelatedWriter, write_weights
from flowmc.ensembles.stored import ConfigurationBatch, StoredEnsemble
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import load_flow
from flowmc.flows.cards.matching import orient
from flowmc.jobs.journal import Journal
from flowmc.parallel import Communicator
from flowmc.parallel.devices import choose_threads
from flowmc.registry import ConfigError

__all__ = ["Session"]


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
        self.dtype, self.device = kind_of_fields(config.source)
        self.fingerprints: dict[str, str] = {}
        self.cards: dict[str, Mapping[str, Any]] = {}
        # What is there may only be judged while nobody else writes it.
        directory.claim()
        directory.check_free(config.resolved, resume=resume)
        self.context = Context(
            config.action,
            config.observables,
            Derived.of(config.observables, config.analysis.times_of_masses),
            self.dtype,
            self.device,
            self._load_flow,
        )
        if config.live is not None:
            # What cannot be measured should show before the chain runs, not after.
            self._rehearse()
            self._measurements("live", several=False)
        self.ensemble = self._ensemble(resume)
        self.stream = EnsembleStream(self.ensemble, config.action, config.source, say)
        several = len(self.ensemble.history.numbers) > 1
        self.passes = Passes(self.context, self._measurements(self.ensemble.name, several=several))
        if directory.provenance.exists():
            directory.check_flows(self.fingerprints)

    def measure(self) -> Series:
        """Measure all configurations that have not been measured yet; return all series.

        Raises:
            FormatError, OSError: a file cannot be read or written.
            ConfigError: an observable does not fit the theory.
        """
        directory = self.directory
        self._write_provenance()
        journal = Journal(directory.log)
        self.stream.announce()
        if self.passes.has_survey:
            survey = self.stream.measure(journal, "surveying", directory.survey, self._survey)
            self.passes.settle(survey)
        return self.stream.measure(journal, "measuring", directory.series, self._measure)

    def analyse(self, series: Series) -> list[Section]:
        """Return the results, the ensemble's own first."""
        sections = self.passes.analyse(series, list(self.stream.doubts))
        for measurement in self.passes.measurements:
            if isinstance(measurement, Target) and measurement.writer is not None:
                write_weights(
                    measurement.writer.folder / "weights.csv",
                    series.history,
                    series.columns[f"{measurement.label}/log_weight"],
                )
        return sections

    def _survey(self, batch: ConfigurationBatch) -> Columns:
        return self.passes.survey(batch.members, batch.field)

    def _measure(self, batch: ConfigurationBatch) -> Columns:
        return self.passes.measure(batch.members, batch.field)

    def _ensemble(self, resume: bool) -> StoredEnsemble:
        config = self.config
        if config.live is None:
            return open_ensemble(config.source, config.path, name=config.source.name)
        # Not "live" for all: pyerrors takes equal names for the same configurations.
        name = config.source.name or self.directory.word
        return run_live(config.live, self.directory.chain, config.source, name, resume=resume)

    def _rehearse(self) -> None:
        """Measure a disordered field, for the errors that it may raise."""
        field = disordered_field(self.config.action, self.dtype, self.device)
        for entry in self.config.observables:
            observe(entry, self.config.action, field)

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

    def _load_flow(self, written: Any, target: Action, where: str) -> Flow:
        if not isinstance(written, str) or written == "identity":
            return given_flow(written, target, where)
        action = self.config.action
        source = written if written.startswith("zoo:") else self.config.path(written)
        try:
            loaded = load_flow(source, lattice=action.lattice, device=self.device)
            flow = orient(loaded.card, loaded.flow.to(self.dtype), action, target)
        except ConfigError as error:
            raise ConfigError(f"{where}: flow = {written!r}: {error}") from error
        self.cards[written] = loaded.card
        self.fingerprints[written] = loaded.flow.fingerprint()
        return flow.eval()

    def _write_provenance(self) -> None:
        flows = flows_entry(self.fingerprints, self.cards)
        content = {"ensemble": origin_of(self.ensemble), "flows": flows}
        self.directory.write_config(self.config.resolved)
        self.directory.write_provenance(self.config.resolved, self.device, content)
