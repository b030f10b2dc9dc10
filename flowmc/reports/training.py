"""The page of a training, ``FLOW.report.html``: a single file that loads nothing else."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from flowmc_adapters import atomic_write

from flowmc.config.toml_text import toml_text
from flowmc.jobs.own_files import naming
from flowmc.reports.analysis.training import TrainingRecord
from flowmc.reports.as_html import document_html, html_table, image, payoff_html, theory_text
from flowmc.reports.as_text import duration, value_text
from flowmc.reports.plots.training import OTHERS, quality_plot, steps_plot

__all__ = ["training_page", "write_training_page"]


def write_training_page(record: TrainingRecord, path: str | Path | None = None) -> Path:
    """Write the page beside the flow, or to another path, replacing an older one atomically.

    Raises:
        OSError: if it cannot be written.
    """
    stem = record.path.name.removesuffix(".safetensors")
    path = record.path.with_name(f"{stem}.report.html") if path is None else Path(path)
    text = training_page(record).encode()
    with naming(path), atomic_write(path) as file:
        file.write(text)
    return path


def training_page(record: TrainingRecord) -> str:
    """Return the page as HTML text."""
    steps = f"{record.step:,}" + (f" of {record.planned:,}" if record.planned else "")
    facts = [("steps", steps), ("training time", duration(record.seconds))]
    measured = record.measured
    for name, title in (("ess", "ESS"), ("acceptance", "acceptance")):
        if measured.get(name) is not None:
            text = value_text(measured[name], measured.get(f"{name}_error"))
            facts.append((f"{title}, measured", text))
    sections = [payoff_html(record.answer, record.next)]
    if len(record.steps):
        sections.append("<h2>Step by step</h2>" + image(quality_plot(record), "Loss and ESS"))
        if any(np.isfinite(record.columns.get(name, np.nan)).any() for name in OTHERS):
            sections.append(image(steps_plot(record), "Weights, gradient and learning rate"))
        sections.append(
            '<p class="note">The ESS of a batch is biased up: it cannot be below one over its '
            "size. What the finished flow is measured with is drawn in orange.</p>"
        )
    sections.append(_numbers(record))
    if record.config:
        sections.append(
            "<h2>How it was made</h2><details><summary>Configuration</summary>"
            f"<pre>{escape(toml_text(dict(record.config)))}</pre></details>"
        )
    theory = record.config.get("theory", {})
    return document_html(
        f"Training of {record.path.name.removesuffix('.safetensors')}",
        theory_text(theory) if isinstance(theory, dict) else "",
        facts,
        record.warnings,
        sections,
    )


def _numbers(record: TrainingRecord) -> str:
    rows = [
        [escape(name.replace("_", " ")), "last tenth of the steps", value_text(*mean)]
        for name in record.columns
        if name != "learning_rate"
        for mean in [record.at_the_end(name)]
    ]
    rows += [
        [
            escape(name.replace("_", " ")),
            "the finished flow",
            escape(value_text(value, record.measured.get(f"{name}_error"))),
        ]
        for name, value in record.measured.items()
        if isinstance(value, int | float) and not name.endswith("_error")
    ]
    return "<h2>Numbers</h2>" + html_table(["quantity", "of", "value"], rows, numbers=range(2, 3))
