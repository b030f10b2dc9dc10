"""``flowmc train``: from a configuration file to a flow file.

Beside ``NAME.safetensors`` lie ``NAME.checkpoint.safetensors`` (replaced atomically, everything a
resume needs) and ``NAME.log.jsonl`` (one JSON object per logged step).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np
import torch

from flowmc import messages
from flowmc.commands.finishing import finish
from flowmc.config.settings import as_words
from flowmc.durations import seconds_of
from flowmc.evaluation.density import DensityError
from flowmc.flows.cards.files import FlowFileError, read_card
from flowmc.jobs.interrupts import Interrupts
from flowmc.jobs.lock import Lock
from flowmc.jobs.stopping import OUT_OF_TIME, Deadline
from flowmc.parallel import CollectiveError, Communicator, world
from flowmc.parallel.devices import check_device, choose_device, choose_threads, describe
from flowmc.registry import ConfigError
from flowmc.training.loop import Trainer, TrainingError, TrainingStep
from flowmc.training.plan import TrainingPlan, read_plan

__all__ = ["run", "train"]

_LOG_EVERY = 10
# Keys of [training] that decide nothing but when a training stops and saves.
_OF_ONE_INVOCATION = ("time_limit", "checkpoint_every")
_LINE_EVERY_SECONDS = 60.0


def run(args: argparse.Namespace) -> int:
    """Run ``flowmc train``; return the exit status.

    0 when the flow is written, 1 if the training failed, 2 for unusable input; with a checkpoint
    from which the same command with --resume goes on, 124 when the time limit stopped it and
    128 + n when signal n did.
    """
    started = time.monotonic()
    command = f"flowmc train {args.config} --output {args.output}"
    if args.settings:
        command += f" {shlex.join(as_words(args.settings))}"
    ranks = world()
    try:
        plan = ranks.together(lambda: read_plan(args.config, args.settings))
        device = ranks.together(lambda: _device_of_rank(args.device, ranks))
        if ranks.size > 1:
            choose_threads(ranks)
            for text in (describe(ranks, torch.device(device)), *plan.remarks(ranks.size)):
                _say(ranks, text)
        limit = plan.keys.time_limit
        seconds = None if limit is None else seconds_of(limit, "[training]: time_limit")
        out_of_time = Deadline(seconds, started)
        display = _display(plan.settings.steps) if ranks.rank == 0 else nullcontext(_nowhere)
        with Interrupts() as interrupts, display as show:

            def announce(text: str) -> None:
                _say(ranks, text)
                # The checkpoint has all steps, and measuring begins anew whenever it is stopped.
                interrupts.at_once = True

            finished = train(
                plan,
                args.output,
                resume=args.resume,
                device=device,
                progress=show,
                announce=announce,
                stop=lambda: bool(interrupts.number) or out_of_time(),
                command=command,
                communicator=ranks,
            )
    except CollectiveError as error:
        status = _status(error.kinds)
        if status is None:
            raise
        _say(ranks, str(error))
        return status
    except (TrainingError, DensityError, ConfigError) as error:
        if ranks.size > 1 and isinstance(error, ConfigError):
            raise  # of this rank alone, for all that is known
        _say(ranks, str(error))
        return 2 if isinstance(error, ConfigError) else 1
    if not finished:
        # Not every rank need have got the signal.
        number = int(ranks.maximum(np.array([float(interrupts.number)]))[0])
        reason = signal.Signals(number).name if number else "time limit"
        _say(ranks, f"stopped with a checkpoint ({reason}); --resume goes on from there")
        return 128 + number if number else OUT_OF_TIME
    return 0


def _say(ranks: Communicator, text: str) -> None:
    if ranks.rank == 0:
        messages.say(text, prefix="flowmc train: ")


def _status(kinds: tuple[str, ...]) -> int | None:
    """Return the exit status of an error that all ranks have got; None for a bug."""
    for known, status in ((ConfigError, 2), (OSError, 2), (TrainingError, 1), (DensityError, 1)):
        if f"{known.__module__}.{known.__qualname__}" in kinds:
            return status
    return None


def _device_of_rank(name: str, ranks: Communicator) -> str:
    """Return the device of this rank: "auto" and "cuda" are a GPU of its own, if there are many."""
    if name in ("auto", "cuda"):
        try:
            name = str(choose_device(name, ranks))
        except ConfigError as error:
            raise ConfigError(f"--device {name}: this machine has no usable GPU") from error
    return check_device(name)


def train(
    plan: TrainingPlan,
    output: str | os.PathLike,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[TrainingStep], None] | None = None,
    announce: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
    command: str = "",
    communicator: Communicator | None = None,
) -> bool:
    """Train, measure and write a flow; return whether all that was done.

    Over ranks every one calls this; rank 0 alone reads and writes files and reports progress.

    Args:
        plan: from :func:`read_plan`.
        output: the flow file; checkpoint and log lie beside it.
        resume: go on from the checkpoint if there is one; a flow that the same configuration has
            made is left as it is.
        device: where to train.
        progress: called after every step.
        announce: called with a sentence when all steps are done and saved, and measuring begins.
        stop: asked after every step and before measuring; True stops with a checkpoint.
        command: recorded in the card.
        communicator: of all ranks.

    Raises:
        ConfigError: if the output exists already, another process is training it, the checkpoint
            is of another configuration, or the map of a user's flow is not that of its density.
        TrainingError, DensityError: if the flow is lost.
        CollectiveError: one of these, on several ranks.
    """
    ranks = communicator or Communicator()
    output = Path(output)
    stem = output.with_suffix("") if output.suffix == ".safetensors" else output
    checkpoint = stem.with_name(f"{stem.name}.checkpoint.safetensors")
    log = stem.with_name(f"{stem.name}.log.jsonl")
    with _locked(stem, ranks):
        begin_at = ranks.from_root(lambda: _prepare(plan, output, checkpoint, resume))
        if begin_at == "the end":
            announce(f"{output} is finished")
            return True
        objective = ranks.together(lambda: plan.build(device))
        trainer = Trainer(
            objective,
            plan.settings,
            checkpoint=str(checkpoint),
            metadata={"config": plan.tables},
            communicator=ranks,
        )
        if begin_at == "the checkpoint":
            trainer.load(str(checkpoint))
        with _Log(log, trainer.step) if ranks.rank == 0 else nullcontext(_nowhere) as write:

            def report(event: TrainingStep) -> None:
                write(event)
                if progress is not None:
                    progress(event)

            trainer.progress = report
            finished = trainer.run(stop)
        # Over ranks, a request to stop need not have come everywhere.
        if not finished or bool(ranks.maximum(np.array([float(stop())]))[0]):
            return False
        training = {
            "steps": trainer.step,
            "skipped": trainer.skipped,
            "seconds": round(trainer.seconds, 1),
        }
        finish(
            plan,
            objective.module,
            output,
            training,
            device=device,
            announce=announce,
            command=command,
            communicator=ranks,
        )
        return True


@contextmanager
def _locked(stem: Path, ranks: Communicator) -> Iterator[None]:
    """Keep other processes from training the same file, before anything of it is looked at."""
    lock = Lock(stem.with_name(f".{stem.name}.lock"))

    def acquire() -> None:
        directory = stem.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the directory {directory}: {error.strerror}") from error
        lock.acquire(
            f"another flowmc process is training {stem}: wait for it, or choose another --output"
        )

    ranks.from_root(acquire)
    try:
        yield
    finally:
        lock.release(remove=True)


def _prepare(
    plan: TrainingPlan, output: Path, checkpoint: Path, resume: bool
) -> Literal["the start", "the checkpoint", "the end"]:
    """Check what there is on disk; return where to begin."""
    if not resume:
        for path in (output, checkpoint):
            if path.exists():
                raise ConfigError(
                    f"{path} exists: use --resume to go on with its training, remove it, or choose "
                    "another --output"
                )
    if output.exists() and _made_by(plan.tables, read_card(output)):
        return "the end"
    if checkpoint.exists():
        _check_same_config(plan.tables, checkpoint)
        return "the checkpoint"
    if output.exists():
        raise ConfigError(
            f"{output} is a flow of another configuration, without a checkpoint to go on from: "
            "remove it, or choose another --output"
        )
    return "the start"


def _nowhere(event: TrainingStep) -> None:
    """The log of ranks that write none."""


def _check_same_config(tables: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to mix two trainings; only a later end and other save points may differ."""
    old = read_card(checkpoint).get("config", {})
    new = _as_json(tables)
    free = {
        ("training", key)
        for key in ("steps", "evaluate_samples", "refined_steps", *_OF_ONE_INVOCATION)
    }
    for name in {**old, **new}:
        before, now = old.get(name, {}), new.get(name, {})
        if name == "size":
            before, now = {"theories": before}, {"theories": now}
        for key in {**before, **now}:
            if (name, key) not in free and before.get(key) != now.get(key):
                raise FlowFileError(
                    f"{checkpoint} belongs to a training with [{name}] {key} = "
                    f"{before.get(key)!r}, but the configuration says {now.get(key)!r}: restore "
                    "it, or choose another --output"
                )


def _made_by(tables: dict[str, Any], card: dict[str, Any]) -> bool:
    """Whether a card is of a finished training of these tables, however it was interrupted."""
    training = card.get("training")
    config = training.get("config") if isinstance(training, dict) else None
    if not isinstance(config, dict):
        return False
    own, other = (
        {
            name: {key: value for key, value in table.items() if key not in _OF_ONE_INVOCATION}
            if isinstance(table, dict)
            else table
            for name, table in one.items()
        }
        for one in (_as_json(tables), config)
    )
    return own == other


def _as_json(tables: dict[str, Any]) -> dict[str, Any]:
    """Return tables as they come back from the JSON of a card or a checkpoint."""
    return json.loads(json.dumps(tables))


class _Log:
    """The JSON-lines log: every tenth step, and none twice after a resume."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # half a line of a killed process
                if entry.get("step", math.inf) <= step:
                    kept.append(line + "\n")
        path.write_text("".join(kept), encoding="utf-8")

    def __enter__(self) -> Callable[[TrainingStep], None]:
        self._file = self.path.open("a", encoding="utf-8")
        return self._write

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _write(self, event: TrainingStep) -> None:
        if event.step % _LOG_EVERY:
            return
        entry = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(event).items()
        }
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


@contextmanager
def _display(steps: int):
    """Show progress on standard error: a bar on a terminal, else one line per minute."""
    stream = messages.Unfailing(sys.stderr)
    if stream.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(file=cast(TextIO, stream))) as bar:
            task = bar.add_task("", total=steps)
            yield lambda event: bar.update(
                task,
                completed=event.step,
                description=f"loss {event.loss:.4g}  ESS {event.ess:.3f}",
            )
        return
    last = time.monotonic()

    def line(event: TrainingStep) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_SECONDS or event.step == steps:
            last = now
            messages.say(
                f"step {event.step}/{steps}  loss {event.loss:.5g}  ESS {event.ess:.3f}  "
                f"gradient {event.gradient_norm:.3g}  skipped {event.skipped}  "
                f"{event.seconds:.0f} s",
                prefix="",
            )

    yield line
