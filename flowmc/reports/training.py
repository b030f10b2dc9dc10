"""What a training says, as a document."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmc.config.toml_text import toml_text
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.training import OTHERS, TrainingRecord
from flowmc.reports.as_json import as_json
from flowmc.reports.pieces import closed_code, note, payoff_section, seconds, table
from flowmc.reports.words import duration, theory_text

__all__ = ["training_document", "training_json"]

_BATCHES = (
    "The ESS of a batch is biased up: it cannot be below one over its size. What the finished flow "
    "is measured with is drawn in orange."
)


def training_json(record: TrainingRecord) -> dict[str, Any]:
    """Return what ``flowmc report FLOW --json`` prints; see docs/reports.md."""
    return {**record.as_dict(), "page": as_json(training_document(record))}


def training_document(record: TrainingRecord) -> doc.Document:
    """Return the document of a training."""
    planned, steps = record.planned, doc.Value(record.step)
    facts: list[tuple[str, doc.Inline]] = [
        ("steps", (steps, " of ", doc.Value(planned)) if planned else steps),
        ("training time", seconds(record.seconds)),
    ]
    for name, title in (("ess", "ESS"), ("acceptance", "acceptance")):
        if record.measured.get(name) is not None:
            facts.append((f"{title}, measured", _measured(record, name)))
    sections = [payoff_section(record.answer, record.next)]
    if len(record.steps):
        sections.append(_steps(record))
    sections.append(doc.Section("Numbers", tuple(_numbers(record))))
    if record.config:
        made = closed_code("Configuration", toml_text(dict(record.config)))
        sections.append(doc.Section("How it was made", (made,)))
    theory = record.config.get("theory", {})
    of = f" of {planned}" if planned else ""
    return doc.Document(
        f"Training of {record.path.name.removesuffix('.safetensors')}",
        theory_text(theory) if isinstance(theory, dict) else "",
        tuple(facts),
        tuple(sections),
        f"{record.path}: {record.step}{of} steps in {duration(record.seconds)}",
        tuple(record.warnings),
    )


def _measured(record: TrainingRecord, name: str) -> doc.Value:
    return doc.Value(record.measured[name], record.measured.get(f"{name}_error", np.nan))


def _steps(record: TrainingRecord) -> doc.Section:
    parts: list[doc.Part] = [
        doc.Figure(lambda: plots.training.quality_plot(record), "Loss and ESS")
    ]
    if any(np.isfinite(record.columns.get(name, np.nan)).any() for name in OTHERS):
        description = "Weights, gradient and learning rate"
        parts.append(doc.Figure(lambda: plots.training.steps_plot(record), description))
    parts.append(note(_BATCHES))
    return doc.Section("Step by step", tuple(parts))


def _numbers(record: TrainingRecord) -> list[doc.Table]:
    last = (
        (name.replace("_", " "), doc.Value(*record.at_the_end(name)))
        for name in record.columns
        if name != "learning_rate"
    )
    measured = (
        (name.replace("_", " "), _measured(record, name))
        for name, value in record.measured.items()
        if isinstance(value, int | float) and not name.endswith("_error")
    )
    return [
        table(("last tenth of the steps", "mean"), last),
        table(("measured", "value"), measured),
    ]
