"""The loop of ``flowmc run``: updates, measurements, saved configurations, checkpoints.

All chains advance in fixed blocks, each with its own random streams; every rank works on the blocks
and replicas that it owns.  What has been written beyond the last checkpoint is written again, byte
for byte, by a resumed run; nothing that enters a measurement, a saved configuration or a checkpoint
depends on the clock or on the number of ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.diagnostics import Diagnostics, Piece, leaves
from flowmc.chains.infos import of_all_ranks
from flowmc.chains.measuring import measure_replica
from flowmc.chains.motion import ChainsInMotion
from flowmc.chains.storage.checkpoint import Checkpoint, Head, write_checkpoint
from flowmc.chains.storage.configurations import ConfigurationWriter, Origins
from flowmc.chains.storage.directory import RunDirectory, identity_of
from flowmc.chains.storage.measurements import MeasurementFile, MeasurementLayout
from flowmc.chains.storage.recorder import Recorder
from flowmc.chains.storage.seeds import SeedsWriter
from flowmc.config.tables import SEEDS, seconds_of
from flowmc.jobs.interrupts import Interrupts
from flowmc.jobs.journal import Display, Journal
from flowmc.kernels import LadderState, NonFiniteStateError
from flowmc.kernels.base import UpdateFailedError
from flowmc.parallel import CollectiveError, Communicator
from flowmc.parallel.agreement import Agreement
from flowmc.parallel.devices import describe
from flowmc.parallel.distribution import Distribution
from flowmc.registry import ConfigError

__all__ = ["RunStopped", "Runner"]

_LOG_SECONDS = 60.0


class RunStopped(RuntimeError):
    """A run that cannot go on; its last checkpoint is intact.

    Attributes:
        is_unusable: whether a file could not be written, or a part of the configuration turned out
            to be none that can be run.
        kinds: as of :class:`~flowmc.parallel.CollectiveError`, if all ranks know of it.
    """

    is_unusable = False
    kinds: tuple[str, ...] = ()


class Runner(ChainsInMotion):
    """A run in its directory, ready to go; :func:`~flowmc.chains.opening.open_run` makes it.

    Args:
        config: what to run.
        assembly: of it.
        directory: of the run, claimed by rank 0.
        communicator: of all ranks.
        distribution: which rank owns what.
        checkpoint: where the run stands, as far as this rank has it.
        layout: of the measurement file.
        origins: of the saved configurations of this rank's chains, by chain.
        resumed: whether an earlier process has begun the run.

    Attributes:
        update: updates done, thermalization included.
        warnings: what users should know of the directory and the resume, on rank 0.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        directory: RunDirectory,
        communicator: Communicator,
        distribution: Distribution,
        checkpoint: Checkpoint,
        layout: MeasurementLayout,
        origins: Origins,
        *,
        resumed: bool,
    ) -> None:
        super().__init__(config, assembly, communicator, distribution, checkpoint)
        self.keep_files_in(directory.scratch)
        self.directory, head = directory, checkpoint.head
        self._checkpointed = head.update
        self._identity = identity_of(config.resolved)
        own_chains = [config.chains.blocks[block] for block in self.own]
        self.diagnostics = Diagnostics(assembly.reports(), config.chains.count, own_chains)
        pending = checkpoint.pending
        if self.tuner is not None and "ladder/tried" in pending:
            self.tuner.restore(pending)
        pending = {key: value for key, value in pending.items() if not key.startswith("ladder/")}
        if pending:
            self.diagnostics.restore(pending)
        is_root = communicator.rank == 0
        self.recorder = Recorder(
            communicator,
            MeasurementFile(directory.measurements, layout, head.rows or 0) if is_root else None,
            layout,
            self.diagnostics,
        )
        self.seeds: SeedsWriter | None = None
        self.writer: ConfigurationWriter | SeedsWriter | None = None
        if config.ensemble is not None and config.ensemble.format == SEEDS:
            self.writer = self.seeds = SeedsWriter(directory, config, assembly, origins)
        elif config.ensemble is not None:
            self.writer = ConfigurationWriter(directory.ensemble, config, origins)
        self.journal = Journal(directory.log if is_root else None)
        self.resumed = resumed
        self.warnings: list[str] = []
        self._restore_clocks()

    def warn(self, text: str) -> None:
        """Log a warning, and have the command say it."""
        self.warnings.append(text)
        self.journal.write("warning", self.update, text=text)

    @property
    def total(self) -> int:
        """Updates of the whole run, thermalization included."""
        return self.config.run.thermalization + self.config.run.updates

    def remarks(self) -> list[str]:
        """Return what users should know before a run, on rank 0; collective."""
        communicator = self.communicator
        texts = [*self.warnings, *self.assembly.remarks]
        if communicator.size == 1:
            return texts
        texts.append(describe(communicator, self.assembly.device))
        if self.distribution.idle:
            draws = self.proposals is not None and self.proposals.has_work
            texts.append(_about_idle(self.distribution, draws, self.config, self.assembly))
            if self.proposals is not None and self.proposals.uncounted:
                texts.append(
                    f"{', '.join(self.proposals.uncounted)}: takes the streams of the run and may "
                    "draw flow proposals that no other rank can count, so owners of chains draw "
                    "all of them themselves"
                )
        return texts

    def go(self, started: float) -> str:
        """Run to the end, or to a reason to stop; return "finished" or the reason.  Collective.

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
        display = Display(self.total, self.update) if self.communicator.rank == 0 else None
        agreement = Agreement(self.communicator, limit, started)
        reason: str | None = "finished"
        last_log = last_checkpoint = time.monotonic()
        try:
            with Interrupts() as interrupts:
                self._log("start", resumed=self.resumed, tuning=self._tuning())
                self._keep_checkpoint()
                while self.update < self.total:
                    if agreement.is_due:
                        now = time.monotonic()
                        due = every_seconds is not None and now - last_checkpoint >= every_seconds
                        reason, due = agreement.reach(interrupts.number, due)
                        if agreement.is_ahead and reason is None:
                            self.recorder.hand_in()
                        else:
                            self.recorder.flush()
                        if reason is not None:
                            break
                        reason = "finished"
                        if due:
                            self._checkpoint()
                            last_checkpoint = time.monotonic()
                            agreement.took(checkpoint=last_checkpoint - now)
                        if display is not None and display.is_due():
                            self._show(display)
                        if now - last_log >= _LOG_SECONDS:
                            self._log("progress", acceptance=self._acceptance())
                            last_log = now
                    begin = time.monotonic()
                    try:
                        self._advance()
                    except ConfigError as error:
                        raise self._unusable(error) from error
                    self._keep_checkpoint()
                    now = time.monotonic()
                    agreement.took(update=now - begin)
                    agreement.poke()
                    self.recorder.poke()
                    if isinstance(every, int) and self.update % every == 0:
                        if self.update < self.total:
                            self._checkpoint()
                        agreement.took(checkpoint=time.monotonic() - now)
                agreement.finish()
                if self._checkpointed != self.update:
                    self._checkpoint()
                self._log(
                    "stop",
                    reason=reason,
                    acceptance=self._acceptance(),
                    **self._traffic_of_all_ranks(),
                )
        except NonFiniteStateError as error:
            with contextlib.suppress(OSError):
                self._log("stop", reason="not finite", text=str(error))
            raise RunStopped(f"{error}; {self._last_good()}") from error
        except UpdateFailedError as error:
            with contextlib.suppress(OSError):
                self._log("stop", reason="update failed", text=str(error))
            raise RunStopped(f"{error}; {self._last_good()}") from error
        except OSError as error:
            text = f"{error.filename or self.directory.path}: {error.strerror or error}"
            raise self._unwritable(text) from error
        except CollectiveError as error:
            stopped = self._unwritable(str(error))
            stopped.kinds = error.kinds
            raise stopped from error
        finally:
            if display is not None:
                display.close()
            self.recorder.close()
        assert reason is not None
        return reason

    def _unwritable(self, text: str) -> RunStopped:
        stopped = RunStopped(
            f"cannot write while at update {self.update}: {text}; {self._last_good()}"
        )
        stopped.is_unusable = True
        return stopped

    def _unusable(self, error: ConfigError) -> RunStopped:
        """Return how to stop at what a kernel or an observable did in the next update."""
        with contextlib.suppress(OSError):
            self._log("stop", reason="unusable", text=str(error))
        stopped = RunStopped(f"update {self.update + 1}: {error}; {self._last_good()}")
        stopped.is_unusable = True
        return stopped

    def _last_good(self) -> str:
        checkpoint = self.directory.checkpoint
        if not checkpoint.exists():
            return f"{checkpoint} is gone, its last update was {self._checkpointed}"
        return f"the last good checkpoint, update {self._checkpointed}, is in {checkpoint}"

    def _move_ladder(self) -> None:
        """Give the replicas new couplings; only their fields stay."""
        assert self.tuner is not None
        couplings = self.tuner.move(self.communicator)
        self._set_ladder(self.assembly.kernel.tuning())
        self.proposals = self._share_proposals()
        for block, state in self.states.items():
            assert isinstance(state, LadderState)
            fresh = self._fresh_state(block, state)
            assert isinstance(fresh, LadderState)
            self.states[block] = replace(state, replicas=fresh.replicas)
        self._log("progress", text="the ladder moved", couplings=couplings)

    def _advance(self) -> None:
        """Do one update of all chains and everything that is due after it."""
        infos = self.move()
        update, run, kernel = self.update + 1, self.config.run, self.assembly.kernel
        for block, info in infos.items():
            first, last = self.config.chains.blocks[block]
            for name, leaf in leaves(info, kernel.parts):
                self.diagnostics.add(first, last, name, leaf)
                pair = self.diagnostics.reports[name].pair
                if self.tuner is not None and pair is not None and update <= run.thermalization:
                    self.tuner.add(first, last, pair, leaf)
        if update <= run.thermalization and kernel.adapts:
            kernel.adapt(of_all_ranks(infos, self.communicator), update - 1)
        self.update = update

        phase = "thermalization" if update <= run.thermalization else "production"
        count = update if phase == "thermalization" else update - run.thermalization
        if count % run.measure_every == 0:
            index = count // run.measure_every - 1
            self.recorder.add(phase, index, update, self._measurements(), self._couplings_row())
        if self.tuner is not None and self.tuner.is_due(update):
            self._move_ladder()
        if update == run.thermalization:
            # What is left of an unfinished row must not enter the first row of production.
            self.diagnostics.reset()
            self._log("progress", text="thermalization done, tuning frozen", tuning=self._tuning())
        if self.writer is not None and phase == "production":
            assert run.save_every is not None
            if count % run.save_every == 0:
                self._save(count)

    def _measurements(self) -> list[Piece]:
        """Measure everything on this rank."""
        pieces = [
            Piece(
                f"observables/{entry.label}",
                first,
                last,
                r,
                measure_replica(entry, self.assembly.actions[r], replica),
            )
            for first, last, r, replica in self.replicas()
            for entry in self.config.observables
        ]
        for block, state in self.states.items():
            if isinstance(state, LadderState):
                first, last = self.config.chains.blocks[block]
                walkers = state.walkers.cpu().numpy()
                pieces += [Piece("walkers", first, last, r, walkers[:, r]) for r in state.here]
        return pieces

    def _couplings_row(self) -> dict[str, np.ndarray]:
        """Return the couplings of all replicas where they may change."""
        if self.tuner is None:
            return {}
        couplings = self.tuner.couplings()
        return {f"couplings/{name}": np.array(values) for name, values in couplings.items()}

    def _save(self, production_update: int) -> None:
        assert self.writer is not None
        for first, last, r, replica in self.replicas():
            if r == 0:
                for chain in range(first, last):
                    self.writer.write(chain, production_update, replica.field[chain - first])

    def _checkpoint(self) -> None:
        """Write the checkpoint from which the run is resumed; collective."""
        self._write_checkpoint(self.directory.checkpoint)
        self._checkpointed = self.update
        self._log("checkpoint")

    def _keep_checkpoint(self) -> None:
        """Write one that stays, from which configurations are made again, if it is due."""
        count = self.update - self.config.run.thermalization
        if self.seeds is not None and self.seeds.is_kept(count):
            self._write_checkpoint(self.seeds.checkpoint(count))

    def _write_checkpoint(self, path: Path) -> None:
        self.recorder.flush()
        self.communicator.from_root(self._sync)
        if self.seeds is not None:
            # Before the checkpoint: a resumed run drops what is beyond it.
            self.seeds.store(self.update - self.config.run.thermalization, self.communicator)
        seed = self.config.chains.seed
        checkpoint = Checkpoint(
            Head(self.update, self._tuning(), seed, self._identity, self.recorder.checksum),
            self.states,
            {cell: generator.get_state() for cell, generator in self.streams.items()},
            self._pending(),
        )
        write_checkpoint(path, checkpoint, self.communicator)

    def _sync(self) -> None:
        """Have all rows on the disk, in the file that is in the directory of this run."""
        if not self.directory.is_in_place:
            text = "was removed or replaced, or its .lock was, while the run was writing into it"
            raise OSError(errno.ESTALE, text, str(self.directory.path))
        self.recorder.sync()

    def _tuning(self) -> dict[str, float]:
        ladder = {} if self.tuner is None else self.tuner.tuning()
        return dict(self.assembly.kernel.tuning()) | ladder

    def _pending(self) -> dict[str, np.ndarray]:
        pending = self.recorder.pending()
        if self.tuner is not None and self.update < self.config.run.thermalization:
            pending |= self.tuner.pending(self.communicator)
        return pending

    def _acceptance(self) -> dict[str, float]:
        """Return accepted over tried by kernel, in the rows since this process began."""
        tried = self.recorder.tried
        return {name: self.recorder.accepted[name] / tried[name] for name in tried if tried[name]}

    def _show(self, display: Display) -> None:
        thermal = self.update <= self.config.run.thermalization
        display.show(
            self.update,
            "thermalization" if thermal else "production",
            self._acceptance(),
            self.recorder.latest,
        )

    def _traffic_of_all_ranks(self) -> dict[str, Any]:
        """Return messages and bytes of all ranks together, by purpose; collective."""
        if self.communicator.size == 1:
            return {}
        total: dict[str, dict[str, int]] = {}
        for part in self.communicator.allgather(dict(self.communicator.traffic)):
            for purpose, entry in part.items():
                sums = total.setdefault(purpose, {"messages": 0, "bytes": 0})
                sums["messages"] += entry.messages
                sums["bytes"] += entry.bytes
        return {"communication_of_all_ranks": total}

    def _log(self, event: str, **values: Any) -> None:
        """Write an event to the log, with the times and messages of rank 0."""
        kernels = {
            name: {"seconds": kernel.seconds, "calls": kernel.calls}
            for name, kernel in self.assembly.timed.items()
        }
        if self.communicator.size > 1:
            values["ranks"] = self.communicator.size
            values["communication"] = {
                purpose: dataclasses.asdict(entry)
                for purpose, entry in self.communicator.traffic.items()
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


def _about_idle(
    distribution: Distribution, draws: bool, config: RunConfig, assembly: Assembly
) -> str:
    idle = len(distribution.idle)
    chains, replicas = config.chains, len(assembly.actions)
    blocks = len(chains.blocks)
    what = f"{blocks} block{'s' if blocks > 1 else ''} of chains"
    if assembly.is_ladder:
        what += f" of {replicas} replicas"
        what += "" if assembly.spreads else " that must stay together"
    verb = ("draws" if idle == 1 else "draw") + " flow proposals for the others"
    nothing = "has no work" if idle == 1 else "have no work"
    text = f"{idle} rank{'s' if idle > 1 else ''} {verb if draws else nothing}: "
    text += f"there {'is' if blocks == 1 else 'are'} {what}"
    if chains.count > blocks:
        text += "; smaller blocks ([chains] block) serve more ranks, in a new run"
    return text
