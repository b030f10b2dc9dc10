"""Updates by another program: a configuration file in, a command line, a configuration file out."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from flowmc_adapters import FormatError
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.durations import seconds_of
from flowmc.io import check_format, load_field, write_field
from flowmc.kernels.base import Info, Kernel, State, UpdateFailedError
from flowmc.kernels.numpy_links import Request, moved_state, requests_of
from flowmc.kernels.reporting import Reported
from flowmc.programs.command import CommandLine
from flowmc.programs.running import Ended, Job, run_jobs
from flowmc.random import Randomness
from flowmc.registry import ConfigError

__all__ = ["External"]

_WORDS = {
    **dict.fromkeys(("true", "yes", "y", "accept", "accepted"), 1.0),
    **dict.fromkeys(("false", "no", "n", "reject", "rejected"), 0.0),
}
# Standard output is searched for values in its last part only.
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Task:
    """One command: whose update it is."""

    kernel: External
    request: Request
    field: Tensor


@dataclass(frozen=True)
class _Result:
    """What a command has made."""

    field: Tensor
    values: dict[str, float]


class External(Kernel):
    r"""An update by a program of one's own, such as a trajectory of any HMC code.

    Before every update the field of a chain is written to a file, the command is run, and the file
    that it has written becomes the field, bit for bit.  The command must leave the density of the
    theory invariant, which only its author can promise; all else is checked: exit status, file,
    lattice, group, numbers that are finite, links in the group.  It is run once for each update.

    Words of the command may hold placeholders: ``{input}`` and ``{output}`` (the files),
    ``{number}`` (of the update; in ``flowmc step`` of the configuration that is written),
    ``{seed}`` (63 bits from the chain's own random numbers: the same in a resumed run),
    ``{chain}``, ``{replica}``, ``{directory}`` (a folder of this chain, which lasts as long as the
    run; the files are in it, as ``input`` and ``output``), and every coupling of the theory.  No
    shell reads them; ``{{`` stands for a brace.  The command runs in the folder of the
    configuration file, without a standard input, and ends when flowmc does, however that ends.

    Args:
        action: the theory; ``action = "external"`` where only the program knows it.
        base: folder in which the command runs.
        command: the program and its arguments.
        format: of the file that the command reads, any that flowmc writes; what it writes is
            recognised by its content.
        precision: 32 or 64, of the numbers in the file that the command reads; that of the chains
            by default.  What it writes may be in single precision only if this is 32: rounding
            moves a chain.
        timeout: after which a command is ended and the run stops: "2h", "90s" or seconds.
        values: regular expressions with one group, by name: the numbers that they find last in
            the standard output are reported; ``accepted`` (0 or 1) is whether the update was
            accepted, by default whether the field has changed.
        parallel: how many commands run at the same time on a rank, for several chains of a block or
            replicas.

    Raises:
        ConfigError: for a placeholder that there is not, a program that is not found, a format that
            does not hold the field, a regular expression that is none.
    """

    name = "external"
    title = "external program"
    takes_streams = True
    is_rehearsed = False
    free_keys = ("timeout", "parallel")

    def __init__(
        self,
        action: Action,
        base: str | Path = ".",
        *,
        command: list[str],
        format: str,
        precision: Literal[32, 64] | None = None,
        timeout: float | str | None = None,
        values: dict[str, str] | None = None,
        parallel: int = 1,
    ) -> None:
        if parallel < 1:
            raise ConfigError(f"parallel = {parallel}: should be at least 1")
        self.action, self.base = action, Path(base).absolute()
        self.format, self.precision, self.parallel = format, precision, parallel
        self.timeout = None if timeout is None else seconds_of(timeout, "timeout")
        check_format(format, action, "format", precision=precision)
        # Values to try the words with.
        sample = Request(0, 0, 0, 0, action.parameters, self.base).placeholders
        self.command = CommandLine(command, {**sample, "input": "", "output": ""}, self.base)
        for name in ("input", "output"):
            if not {name, "directory"} & self.command.used:
                raise ConfigError(
                    f"command: no word holds {{{name}}}, the path of the file that the program "
                    f"{'reads' if name == 'input' else 'writes'}"
                )
        self.values = {name: _compiled(name, text) for name, text in (values or {}).items()}
        self.reports = tuple(
            Reported(name, name.replace("_", " ")) for name in self.values if name != "accepted"
        )

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        bits = _bits(field)
        check_format(self.format, self.action, "format", present=bits, precision=self.precision)
        return State(field)

    def step(self, state: State, rng: Randomness) -> tuple[State, Info]:
        ((state, info),) = self.step_replicas([self], [state], [rng])
        return state, info

    @torch.no_grad()
    def step_replicas(
        self, kernels: Sequence[Kernel], states: Sequence[Any], rngs: Sequence[Randomness]
    ) -> list[tuple[Any, Info]]:
        own = [kernel for kernel in kernels if isinstance(kernel, External)]
        if self.scratch is None:
            # Nobody has said where; it goes when the kernel does.
            folder = tempfile.mkdtemp(prefix="flowmc-external-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.scratch = Path(folder)
        tasks = []
        for kernel, state, rng in zip(own, states, rngs, strict=True):
            kernel.scratch = kernel.scratch or self.scratch
            requests = requests_of(kernel, kernel.action, state, rng)
            tasks += [
                _Task(kernel, request, state.field[i : i + 1]) for i, request in enumerate(requests)
            ]
        results: dict[int, _Result] = {}

        def finish(number: int, ended: Ended) -> None:
            task = tasks[number]
            results[number] = task.kernel._result(task, ended)

        run_jobs(
            len(tasks),
            lambda number: tasks[number].kernel._job(tasks[number]),
            finish,
            parallel=self.parallel,
            timeout=self.timeout,
        )
        found, first = [], 0
        for kernel, state in zip(own, states, strict=True):
            here = [results[first + chain] for chain in range(state.chains)]
            first += state.chains
            found.append(kernel._finished(state, here))
        return found

    def _job(self, task: _Task) -> Job:
        """Write the file that a command reads, and return the command."""
        folder = task.request.directory
        folder.mkdir(parents=True, exist_ok=True)
        self._clean(folder)
        write_field(
            folder / "input",
            task.field,
            self.action,
            format=self.format,
            precision=self.precision,
            metadata={"SEQUENCE_NUMBER": str(task.request.number)},
        )
        files = {name: str(folder / name) for name in ("input", "output")}
        words = self.command.filled({**task.request.placeholders, **files})
        return Job(words, self.base, folder / "stdout", folder / "stderr")

    def _clean(self, folder: Path) -> None:
        """Remove the files of an update: what is left over must not be taken for its result."""
        for name in ("input", "output", "stdout", "stderr"):
            (folder / name).unlink(missing_ok=True)
        # The folder stays if the program keeps something in it.
        with contextlib.suppress(OSError):
            folder.rmdir()

    def _result(self, task: _Task, ended: Ended) -> _Result:
        """Read what a command has written.

        Raises:
            UpdateFailedError: it has failed, or that is no field of the theory.
        """
        output, where = task.request.directory / "output", f"{task.request}: "

        def failed(what: str) -> UpdateFailedError:
            return UpdateFailedError(where + ended.sentence(what))

        if ended.status != 0:
            raise failed(ended.reason)
        if not output.exists():
            raise failed(f"{ended.reason} but has not written {output}")
        try:
            stored = load_field(
                output, self.action, dtype=_real(task.field), device=task.field.device
            )
        except (FormatError, OSError, ValueError) as error:
            raise failed(f"{ended.reason}, but what it has written is not usable: {error}") from (
                error
            )
        if stored.signs:
            raise failed(
                f"{ended.reason}, but the links in {output} carry the fermions' antiperiodic sign: "
                "it should read and write them without it"
            )
        is_single = 32 in (self.precision, _bits(task.field))
        if not is_single and (stored.precision == 32 or stored.moved):
            raise failed(
                f"{ended.reason}, but {output} is in single precision, or its links were computed "
                "in it, while the chains have 64 bits: have it work in double precision, or set "
                "precision = 32 if it cannot"
            )
        values = self._values(ended, where, strict=task.request.number == 1)
        # Other kernels get what was read, and the next command a file of it.
        self._clean(task.request.directory)
        return _Result(stored.field, values)

    def _values(self, ended: Ended, where: str, *, strict: bool) -> dict[str, float]:
        """Return the values in what a command has printed; NaN for what is not there.

        Args:
            ended: the command.
            where: begins messages.
            strict: refuse what is not there: in the first update of a run, when nothing is lost.
        """
        if not self.values:
            return {}
        with ended.job.out.open("rb") as file:
            file.seek(max(0, ended.job.out.stat().st_size - _MOST_BYTES))
            text = file.read().decode(errors="replace")
        found = {}
        for name, pattern in self.values.items():
            last = None
            for last in pattern.finditer(text):  # noqa: B007
                pass
            value = math.nan if last is None else _number(last[1])
            if strict and (last is None or (math.isnan(value) and not _is_nan(last[1]))):
                shown = "is not found" if last is None else f"finds {last[1]!r}, which is no number"
                raise UpdateFailedError(
                    where
                    + ended.sentence(f"has ended, but values: {name} = {pattern.pattern!r} {shown}")
                )
            found[name] = value
        return found

    def _finished(self, state: State, results: Sequence[_Result]) -> tuple[State, Info]:
        after, moved = moved_state(state, [result.field for result in results])
        accepted = [
            bool(is_moved) if math.isnan(one) else one > 0.5
            for one, is_moved in zip(
                [result.values.get("accepted", math.nan) for result in results],
                moved[:, 0].tolist(),
                strict=True,
            )
        ]
        values = {
            value.name: torch.tensor(
                [result.values[value.name] for result in results], dtype=torch.float64
            )
            for value in self.reports
        }
        return after, Info(torch.tensor(accepted)[:, None], values)


def _compiled(name: str, text: str) -> re.Pattern[str]:
    """Return a regular expression of ``values``.

    Raises:
        ConfigError: it is none, or has not one group.
    """
    try:
        pattern = re.compile(text, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"values: {name} = {text!r} is no regular expression: {error}") from error
    if pattern.groups != 1:
        raise ConfigError(
            f"values: {name} = {text!r} has {pattern.groups} groups: put the number, and nothing "
            "else, between ( and ); (?:...) groups without being one"
        )
    return pattern


def _number(text: str | None) -> float:
    """Return a number as programs print it, or NaN."""
    word = (text or "").strip().lower()
    if word in _WORDS:
        return _WORDS[word]
    with contextlib.suppress(ValueError):
        # Fortran's exponents.
        return float(re.sub(r"(?<=[\d.])d(?=[+-]?\d)", "e", word))
    return math.nan


def _is_nan(text: str | None) -> bool:
    return (text or "").strip().lower().lstrip("+-") == "nan"


def _real(field: Tensor) -> torch.dtype:
    return field.real.dtype if field.is_complex() else field.dtype


def _bits(field: Tensor) -> int:
    return torch.finfo(field.dtype).bits
