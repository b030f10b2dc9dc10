"""What a training says: loss, effective sample size and weights by step, cost, what it is good for.

Read from the flow file's card, and from log and checkpoint beside it; a training that goes on has
only these two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.flows.cards.files import FlowFileError, read_card
from flowmc.registry import ConfigError
from flowmc.reports.words import count_text, duration, value_text

__all__ = ["OTHERS", "TrainingRecord"]

SUFFIXES = (".log.jsonl", ".checkpoint.safetensors", ".safetensors")
COLUMNS = ("loss", "ess", "max_weight_share", "gradient_norm", "learning_rate", "density_error")
# Those beside loss and ESS that are drawn, with their labels.
OTHERS = {
    "max_weight_share": "largest weight of a batch",
    "gradient_norm": "norm of the gradient",
    "learning_rate": "learning rate",
}
LAST = 0.1  # share of the steps over which the end of a training is averaged
HEAVY_SHARE = 0.05  # of one weight in all of them


@dataclass(frozen=True)
class TrainingRecord:
    """A training as it lies on disk.

    Attributes:
        path: the flow file, whether it exists or not.
        steps: of the lines of the log, ``(lines,)``.
        columns: of the log by name, ``(lines,)``, NaN where a value was not finite; names of the
            fields of :class:`~flowmc.training.loop.TrainingStep`.
        seconds: of training so far, of all ranks together as one wall time.
        skipped: steps skipped for a gradient that was not finite.
        planned: number of steps; None if not known.
        card: of the finished flow; empty while it is trained.
        config: of the training; empty if neither card nor checkpoint is there.
    """

    path: Path
    steps: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]
    seconds: float
    skipped: int
    planned: int | None
    card: Mapping[str, Any]
    config: Mapping[str, Any]

    @staticmethod
    def belongs_to(path: str | Path) -> bool:
        """Whether a path names a training rather than a run directory."""
        path = Path(path)
        return path.name.endswith(SUFFIXES) and not path.is_dir()

    @classmethod
    def open(cls, path: str | Path) -> TrainingRecord:
        """Read a training, from the path of its flow, its checkpoint or its log.

        Raises:
            ConfigError: if neither flow nor log is there, or the log holds no step.
        """
        flow = Path(path)
        for suffix in SUFFIXES:
            if flow.name.endswith(suffix):
                flow = flow.with_name(flow.name.removesuffix(suffix) + ".safetensors")
                break
        stem = flow.name.removesuffix(".safetensors")
        log = flow.with_name(f"{stem}.log.jsonl")
        card = _card(flow)
        checkpoint = _card(flow.with_name(f"{stem}.checkpoint.safetensors"))
        training = card.get("training", {})
        lines = _lines(log)
        if not card and not lines:
            raise ConfigError(
                f"{flow} is not there, nor a log of its training with a step in it ({log}): give "
                "what `flowmc train --output` was given, or wait for its tenth step"
            )
        config = training.get("config") or checkpoint.get("config") or {}
        steps = np.array([line["step"] for line in lines], np.int64)
        columns = {
            name: np.array([_number(line.get(name)) for line in lines])
            for name in COLUMNS
            if any(name in line for line in lines)
        }
        last = lines[-1] if lines else {}
        planned = config.get("training", {}).get("steps")
        return cls(
            flow,
            steps,
            columns,
            float(training.get("seconds", last.get("seconds", math.nan))),
            int(training.get("skipped", last.get("skipped", 0))),
            planned if isinstance(planned, int) else None,
            card,
            config,
        )

    @property
    def step(self) -> int:
        """Steps done."""
        done = self.card.get("training", {}).get("steps")
        return int(done) if done is not None else int(self.steps[-1])

    @property
    def measured(self) -> Mapping[str, Any]:
        """What was measured of the finished flow; empty while it is trained."""
        return self.card.get("measured", {})

    def at_the_end(self, name: str) -> tuple[float, float]:
        """Return the mean of a column over the last tenth of the steps, and its standard error."""
        values = self.columns.get(name, np.empty(0))
        late = values[self.steps > (1 - LAST) * self.steps[-1]] if len(values) else values
        late = late[np.isfinite(late)]
        if not late.size:
            return math.nan, math.nan
        error = float(late.std(ddof=1)) / math.sqrt(late.size) if late.size > 1 else math.nan
        return float(late.mean()), error

    @property
    def trend(self) -> float:
        """How many standard errors the loss of the last tenth is below that of the tenth before."""
        loss = self.columns.get("loss", np.empty(0))
        parts = []
        for first in (1 - 2 * LAST, 1 - LAST):
            chosen = (self.steps > first * self.step) & (self.steps <= (first + LAST) * self.step)
            part = loss[chosen] if len(loss) else loss
            part = part[np.isfinite(part)]
            if part.size < 3:
                return math.nan
            parts.append(part)
        before, last = parts
        error = math.hypot(*(part.std(ddof=1) / math.sqrt(part.size) for part in parts))
        return float((before.mean() - last.mean()) / error) if error > 0 else math.nan

    @property
    def warnings(self) -> list[str]:
        """What to look at, the gravest first."""
        found = list(self.measured.get("warnings", []))
        share = self.measured.get("max_weight_share")
        if share is not None and share > HEAVY_SHARE and not found:
            found.append(
                f"one weight of the measured flow carries {share:.0%} of all: its ESS cannot be "
                "believed"
            )
        if self.skipped:
            found.append(f"{count_text(self.skipped, 'step')} skipped: the gradient was not finite")
        if not self.card:
            of = f" of {self.planned}" if self.planned else ""
            found.append(f"the training is not complete: {self.step}{of} steps are done")
        return found

    @property
    def answer(self) -> list[str]:
        """Sentences: does it pay?"""
        cost = f"the training took {duration(self.seconds)}"
        acceptance, ess = self.measured.get("acceptance"), self.measured.get("ess")
        if acceptance:
            # Of an independence chain in which every proposal is accepted with this probability.
            proposals = 2 / acceptance - 1
            quality = (
                f"an independent sample needs {proposals:.3g} of its proposals at least "
                f"(acceptance {value_text(acceptance, self.measured.get('acceptance_error'))})"
            )
        elif ess:
            quality = (
                f"its effective sample size is {value_text(ess, self.measured.get('ess_error'))}"
            )
        else:
            quality = "the flow is not measured yet"
        return [
            f"{cost}; {quality}",
            "a training alone cannot tell whether the flow pays: run the same theory with HMC "
            "alone, and with HMC and this flow; gain and break-even come from flowmc report "
            "HMC_RUN FLOW_RUN",
        ]

    @property
    def next(self) -> list[str]:
        """Sentences: what to change next."""
        found = []
        if self.trend > 3:
            found.append(
                f"the loss was still falling at the end ({self.trend:.1f} standard errors over the "
                "last tenth of the steps): train longer"
            )
        elif self.step > 100 and math.isfinite(self.trend):
            found.append(
                "over the last fifth of the steps the loss does not fall visibly: more of them "
                "bring little, a larger flow or another objective may"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the document that ``flowmc report FLOW --json`` prints; see docs/reports.md."""
        return {
            "path": str(self.path),
            "steps": self.step,
            "steps_requested": self.planned,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "loss": self.at_the_end("loss")[0],
            "loss_error": self.at_the_end("loss")[1],
            "ess_of_batches": self.at_the_end("ess")[0],
            "measured": dict(self.measured),
            "log": {
                "step": self.steps.tolist(),
                **{name: values.tolist() for name, values in self.columns.items()},
            },
            "warnings": self.warnings,
            "pays": {"verdict": "undecided", "answer": self.answer, "next": self.next},
        }


def _card(path: Path) -> dict[str, Any]:
    try:
        return read_card(path)
    except (FlowFileError, OSError):
        if path.exists() and path.stat().st_size:
            raise
        return {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a log; half a line of a killed process is skipped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
