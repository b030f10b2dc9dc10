"""The loop of ``flowmc run``: updates, measurements, saved configurations, checkpoints.

All chains advance in fixed blocks, each with its own random stream.  What has been written beyond
the last checkpoint is written again, byte for byte, by a resumed run; nothing that enters a
measurement, a saved configuration or a checkpoint depends on the clock.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import torch

from flowmc.kernels import Info, LadderState, NonFiniteStateError, State
from flowmc.kernels.composition import concatenate
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import Assembly, assemble, choose_threads
from flowmc.run.checkpoint import Checkpoint, read_checkpoint, settled, write_checkpoint
from flowmc.run.config import RunConfig
from flowmc.run.diagnostics import Diagnostics, leaves
from flowmc.run.directory import RunDirectory, environment
from flowmc.run.ensemble import ConfigurationWriter, origins_of
from flowmc.run.interrupts import Interrupts
from flowmc.run.journal import Display, Journal
from flowmc.run.measurements import Layout, MeasurementFile
from flowmc.run.rehearsal import (
    kernel_names,
    measure,
    observable_shapes,
    rehearse,
    replicas_of,
)
from flowmc.run.start import initial_states, read_start_files
from flowmc.run.tables import seconds_of

__all__ = ["RunStopped", "Runner", "open_run"]

_LOG_SECONDS = 60.0


class RunStopped(RuntimeError):
    """A run that cannot go on; its last checkpoint is intact."""


class Runner:
    """A run in its directory, ready to go: use :meth:`start` or :meth:`resume`, then :meth:`go`.

    Attributes:
        update: updates done, thermalization included.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        directory: RunDirectory,
        checkpoint: Checkpoint,
        measurements: MeasurementFile,
        schema: dict[str, dict],
        origins: list[dict[str, str]],
        *,
        resumed: bool,
    ) -> None:
        self.config, self.assembly, self.directory = config, assembly, directory
        self.measurements = measurements
        self.update = self._checkpointed = checkpoint.update
        self.states = [settled(state) for state in checkpoint.states]
        self.streams = [torch.Generator(device=assembly.device) for _ in checkpoint.streams]
        for generator, state in zip(self.streams, checkpoint.streams, strict=True):
            generator.set_state(state)
        if checkpoint.tuning:
            assembly.kernel.set_tuning(checkpoint.tuning)
        self.diagnostics = Diagnostics(schema, config.chains.count)
        if checkpoint.pending:
            self.diagnostics.restore(checkpoint.pending)
        self.writer = (
            ConfigurationWriter(directory.path, config, origins) if config.ensemble else None
        )
        self.journal = Journal(directory.log)
        self.resumed = resumed
        self._restore_clocks()
        self._latest: dict[str, float] = {}

    @classmethod
    def start(cls, config: RunConfig, assembly: Assembly, directory: RunDirectory) -> Runner:
        """Prepare a new run and write its checkpoint at update 0.

        Raises:
            ConfigError, FormatError, OSError: unusable input; the directory is then not made.
        """
        files = read_start_files(config, assembly)
        states = [settled(state) for state in initial_states(config, assembly, files)]
        schema = rehearse(assembly, states[0], config.chains.seed)
        shapes = observable_shapes(config.observables, assembly.actions, states[0])
        origins = origins_of(config, files)

        directory.claim()
        directory.write_provenance(config, assembly, files, origins)
        directory.write_config(config)
        layout = _layout(config, assembly, schema, shapes)
        measurements = MeasurementFile.create(directory.measurements, layout)
        streams = [
            stream(config.chains.seed, index, "update", assembly.device).get_state()
            for index in range(len(states))
        ]
        pending = Diagnostics(schema, config.chains.count).state()
        checkpoint = Checkpoint(0, states, streams, assembly.kernel.tuning(), pending)
        write_checkpoint(directory.checkpoint, checkpoint)
        runner = cls(
            config, assembly, directory, checkpoint, measurements, schema, origins, resumed=False
        )
        for path, stored in files.stored.items():
            for note in stored.notes:
                runner.journal.write("warning", 0, file=path, text=note)
        return runner

    @classmethod
    def resume(cls, config: RunConfig, assembly: Assembly, directory: RunDirectory) -> Runner:
        """Continue from the checkpoint, with more rows if the run was extended.

        Raises:
            ConfigError: the configuration or a flow is not that of the run.
            ValueError, OSError: the directory is damaged.
        """
        directory.claim()
        directory.check_flows(assembly.fingerprints)
        checkpoint = read_checkpoint(directory.checkpoint, assembly.device)
        columns, attributes = MeasurementFile.columns_in(directory.measurements)
        schema = _schema_in(columns)
        layout = Layout(
            _rows(config), columns, _attributes(config, assembly), attributes, _couplings(assembly)
        )
        if MeasurementFile.rows_in(directory.measurements) == dict(layout.rows):
            measurements = MeasurementFile(directory.measurements, layout)
        else:
            measurements = MeasurementFile.extend(directory.measurements, layout)
        directory.write_config(config)
        provenance = directory.read_provenance()
        runner = cls(
            config,
            assembly,
            directory,
            checkpoint,
            measurements,
            schema,
            provenance["origins"],
            resumed=True,
        )
        for key, value in environment(assembly.device).items():
            if provenance.get(key) != value:
                text = f"{key} was {provenance.get(key)} and is {value}: rounding may differ"
                runner.journal.write("warning", runner.update, text=text)
        return runner

    @property
    def total(self) -> int:
        """Updates of the whole run, thermalization included."""
        return self.config.run.thermalization + self.config.run.updates

    def go(self, started: float) -> str:
        """Run to the end, or to a reason to stop; return "finished" or the reason.

        Args:
            started: ``time.monotonic()`` from which the time limit counts.

        Raises:
            RunStopped: a field is not finite, or a file cannot be written; the message names the
                update, the chain or file, and the last good checkpoint.
        """
        run = self.config.run
        limit = None if run.time_limit is None else seconds_of(run.time_limit, "[run]: time_limit")
        every = run.checkpoint_every
        every_seconds = None if isinstance(every, int) else seconds_of(every, "checkpoint_every")
        display = Display(self.total, self.update)
        reason: str | None = "finished"
        last_log = last_checkpoint = time.monotonic()
        try:
            with Interrupts(limit, started) as interrupts:
                self._log("start", resumed=self.resumed, tuning=self._tuning())
                while self.update < self.total:
                    reason = interrupts.reason()
                    if reason is not None:
                        break
                    reason = "finished"
                    begin = time.monotonic()
                    self._advance()
                    now = time.monotonic()
                    interrupts.took(update=now - begin)
                    if every_seconds is None:
                        assert isinstance(every, int)
                        due = self.update % every == 0
                    else:
                        due = now - last_checkpoint >= every_seconds
                    if due and self.update < self.total:
                        self._checkpoint()
                        last_checkpoint = time.monotonic()
                        interrupts.took(checkpoint=last_checkpoint - now)
                    if display.is_due():
                        self._show(display)
                    if now - last_log >= _LOG_SECONDS:
                        self._log("progress", acceptance=self._acceptance())
                        last_log = now
                if self._checkpointed != self.update:
                    self._checkpoint()
                self._log("stop", reason=reason, acceptance=self._acceptance())
        except NonFiniteStateError as error:
            with contextlib.suppress(OSError):
                self._log("stop", reason="not finite", text=str(error))
            raise RunStopped(f"{error}; {self._last_good()}") from error
        except OSError as error:
            text = f"{error.filename or self.directory.path}: {error.strerror or error}"
            raise RunStopped(
                f"cannot write while at update {self.update}: {text}; {self._last_good()}"
            ) from error
        finally:
            display.close()
            self.measurements.close()
        assert reason is not None
        return reason

    def _last_good(self) -> str:
        return (
            f"the last good checkpoint, update {self._checkpointed}, is in "
            f"{self.directory.checkpoint}"
        )

    def _advance(self) -> None:
        """Do one update of all chains and everything that is due after it."""
        update = self.update + 1
        thermalization = self.config.run.thermalization
        blocks = self.config.chains.blocks
        names = kernel_names(self.assembly)
        states: list[State | LadderState] = []
        infos: list[Info] = []
        for index, (first, last) in enumerate(blocks):
            try:
                state, info = self.assembly.kernel.step(self.states[index], self.streams[index])
            except NonFiniteStateError as error:
                if error.chain is None:
                    text = f"update {update}, chains {first} to {last - 1}: {error}"
                    raise NonFiniteStateError(text) from error
                raise _not_finite(update, first + error.chain) from error
            state = settled(state)
            self._check_finite(state, update, first)
            states.append(state)
            infos.append(info)
            for name, leaf in leaves(info, names):
                self.diagnostics.add(first, last, name, leaf)
        self.states = states
        if update <= thermalization:
            self.assembly.kernel.adapt(concatenate(infos, axis=0), update - 1)
        self.update = update

        phase = "thermalization" if update <= thermalization else "production"
        count = update if phase == "thermalization" else update - thermalization
        if count % self.config.run.measure_every == 0:
            self._measure(phase, count // self.config.run.measure_every - 1)
        if update == thermalization:
            # What is left of an unfinished row must not enter the first row of production.
            self.diagnostics.reset()
            self._log("progress", text="thermalization done, tuning frozen", tuning=self._tuning())
        if self.writer is not None and phase == "production":
            assert self.config.run.save_every is not None
            if count % self.config.run.save_every == 0:
                self._save(count)

    def _check_finite(self, state: State | LadderState, update: int, first: int) -> None:
        """Raise NonFiniteStateError with the chain's number in the run if a field is not finite."""
        for r, replica in enumerate(replicas_of(state)):
            field = replica.field
            finite = torch.isfinite(field.reshape(field.shape[0], -1)).all(1)
            if replica.action is not None:
                finite = finite & torch.isfinite(replica.action)
            if bool(finite.all()):
                continue
            chain = first + int((~finite).nonzero()[0])
            raise _not_finite(update, chain, f", replica {r}" if self.assembly.is_ladder else "")

    def _measure(self, phase: str, index: int) -> None:
        row: dict[str, np.ndarray] = {"updates": np.asarray(self.update)}
        for entry in self.config.observables:
            values = [measure(entry, self.assembly.actions, state) for state in self.states]
            joined = np.concatenate(values)
            row[f"observables/{entry.label}"] = joined
            if joined.ndim == 2:
                self._latest[entry.label] = float(joined[:, 0].mean())
        if self.assembly.is_ladder:
            walkers = [state.walkers for state in self.states if isinstance(state, LadderState)]
            row["walkers"] = torch.cat(walkers).cpu().numpy()
        self.measurements.write_row(phase, index, row | self.diagnostics.row())
        self.diagnostics.reset()

    def _save(self, production_update: int) -> None:
        assert self.writer is not None
        for (first, last), state in zip(self.config.chains.blocks, self.states, strict=True):
            target = replicas_of(state)[0].field
            for chain in range(first, last):
                self.writer.write(chain, production_update, target[chain - first])

    def _checkpoint(self) -> None:
        self.measurements.flush()
        checkpoint = Checkpoint(
            self.update,
            self.states,
            [generator.get_state() for generator in self.streams],
            self.assembly.kernel.tuning(),
            self.diagnostics.state(),
        )
        write_checkpoint(self.directory.checkpoint, checkpoint)
        self._checkpointed = self.update
        self._log("checkpoint")

    def _tuning(self) -> dict[str, float]:
        return dict(self.assembly.kernel.tuning())

    def _acceptance(self) -> dict[str, float]:
        """Return accepted over tried by kernel, since this process began."""
        tried = self.diagnostics.total_tried
        return {
            name: self.diagnostics.total_accepted[name] / tried[name]
            for name in tried
            if tried[name]
        }

    def _show(self, display: Display) -> None:
        thermal = self.update <= self.config.run.thermalization
        display.show(
            self.update,
            "thermalization" if thermal else "production",
            self._acceptance(),
            self._latest,
        )

    def _log(self, event: str, **values: Any) -> None:
        kernels = {
            name: {"seconds": kernel.seconds, "calls": kernel.calls}
            for name, kernel in self.assembly.timed.items()
        }
        seconds = self._seconds_before + time.monotonic() - self._clock
        self.journal.write(event, self.update, **values, seconds=seconds, kernels=kernels)

    def _restore_clocks(self) -> None:
        """Go on counting from what the log says of the checkpoint: times are nowhere else."""
        timing = self.journal.last_timing(self.update) if self.resumed else {}
        self._clock = time.monotonic()
        self._seconds_before = float(timing.get("seconds", 0.0))
        for name, kernel in self.assembly.timed.items():
            before = timing.get("kernels", {}).get(name, {})
            kernel.seconds = float(before.get("seconds", 0.0))
            kernel.calls = int(before.get("calls", 0))


def _not_finite(update: int, chain: int, replica: str = "") -> NonFiniteStateError:
    return NonFiniteStateError(
        f"update {update}: the field of chain {chain}{replica} is not finite, or its action is not"
    )


def _rows(config: RunConfig) -> dict[str, int]:
    every = config.run.measure_every
    return {
        "thermalization": config.run.thermalization // every,
        "production": config.run.updates // every,
    }


def _attributes(config: RunConfig, assembly: Assembly) -> dict[str, Any]:
    return {
        "layout": 1,
        "chains": config.chains.count,
        "replicas": len(assembly.actions),
        "measure_every": config.run.measure_every,
        "thermalization": config.run.thermalization,
        "updates": config.run.updates,
    }


def _layout(
    config: RunConfig,
    assembly: Assembly,
    schema: dict[str, dict],
    shapes: dict[str, tuple[int, ...]],
) -> Layout:
    chains, replicas = config.chains.count, len(assembly.actions)
    columns: dict[str, tuple[tuple[int, ...], str]] = {"updates": ((), "<i8")}
    for label, shape in shapes.items():
        columns[f"observables/{label}"] = (chains, replicas, *shape), "<f8"
    for name, values in schema.items():
        columns[f"kernels/{name}/accepted"] = (chains,), "<i8"
        columns[f"kernels/{name}/tried"] = (chains,), "<i8"
        for key, tail in values.items():
            columns[f"kernels/{name}/{key}"] = (chains, *tail), "<f8"
    if assembly.is_ladder:
        columns["walkers"] = (chains, replicas), "<i8"
    parameters = {f"observables/{entry.label}": entry.keys for entry in config.observables}
    return Layout(
        _rows(config), columns, _attributes(config, assembly), parameters, _couplings(assembly)
    )


def _couplings(assembly: Assembly) -> list[dict[str, float]]:
    return [action.parameters for action in assembly.actions] if assembly.is_ladder else []


def _schema_in(columns: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, dict]:
    schema: dict[str, dict] = {}
    for path, (shape, _) in columns.items():
        if path.startswith("kernels/"):
            name, _, key = path.removeprefix("kernels/").rpartition("/")
            values = schema.setdefault(name, {})
            if key not in ("accepted", "tried"):
                values[key] = shape[1:]
    return schema


def open_run(config: RunConfig, directory: RunDirectory, *, resume: bool) -> Runner:
    """Start or resume the run of a directory.

    With ``resume`` a directory without a checkpoint is started, so that one command line serves a
    job that is submitted again and again.

    Raises:
        ConfigError: the directory holds a run and ``resume`` is not set; or as
            :meth:`Runner.start` and :meth:`Runner.resume`.
    """
    resuming = resume and directory.checkpoint.exists()
    if resuming:
        directory.check_resumable(config)
    elif directory.holds_a_run and not resume:
        raise ConfigError(
            f"{directory.path} already holds a run: add --resume to continue it, or choose another "
            "--output"
        )
    choose_threads(directory.read_provenance().get("threads") if resuming else None)
    assembly = assemble(config)
    prepare = Runner.resume if resuming else Runner.start
    return prepare(config, assembly, directory)
