"""The page of several runs compared: a single file that loads nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flowmc_adapters import atomic_write
from matplotlib.ticker import NullLocator

from flowmc.jobs.own_files import naming
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_html import (
    document_html,
    html_table,
    image,
    payoff_html,
    theory_text,
    title_of,
)
from flowmc.reports.as_text import duration, duration_text, value_text
from flowmc.reports.plots.style import (
    GREY,
    SERIES,
    FigureLayout,
    drawn_twice,
    label_decades,
    legend_above,
    svg_text,
)

__all__ = ["write_comparison_page"]

_MARKS = {"none": "", "lower": "≥ ", "upper": "≤ ", "unknown": "? "}
PULL = 4.0  # standard deviations between two means that are worth a warning


def write_comparison_page(
    analyses: Sequence[Analysis], document: Mapping[str, Any], path: str | Path
) -> Path:
    """Write the page, replacing an older one atomically.

    Args:
        analyses: of the runs.
        document: of :func:`flowmc.commands.report.compare`.
        path: where.

    Raises:
        OSError: if it cannot be written.
    """
    paths = [str(analysis.run.path) for analysis in analyses]
    names = _names(paths)
    text = document_html(
        f"Comparison of {len(paths)} runs",
        theory_text(analyses[0].run.config.get("theory", {})),
        [
            (name, f"{analysis.run.updates:,} updates, {analysis.run.chains} chains")
            for name, analysis in zip(names, analyses, strict=True)
        ],
        _warnings(analyses, document, names),
        [payoff_html(document["pays"], _next(analyses, names)), _costs(document, names)],
    )
    path = Path(path)
    with naming(path), atomic_write(path) as file:
        file.write(text.encode())
    return path


def _names(paths: Sequence[str]) -> list[str]:
    """Return the last parts of paths that tell them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _warnings(
    analyses: Sequence[Analysis], document: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    found = [
        f"{names[index]} and {names[0]} disagree in {name} by {entry['pull']:+.1f} standard "
        "deviations: they do not sample the same distribution, or an error is too small"
        for name, entries in document["observables"].items()
        for index, entry in enumerate(entries)
        if math.isfinite(entry["pull"]) and abs(entry["pull"]) > PULL
    ]
    theories = [analysis.run.config.get("theory", {}) for analysis in analyses]
    if any(theory != theories[0] for theory in theories):
        found.append("the runs are of different theories: their costs are not for the same answer")
    found += document["warnings"]
    for name, analysis in zip(names, analyses, strict=True):
        found += [f"{name}: {text}" for text in analysis.warnings]
    return found


def _next(analyses: Sequence[Analysis], names: Sequence[str]) -> list[str]:
    from flowmc.reports.analysis.payoff import payoff_of

    return [
        f"{name}: {text}"
        for name, analysis in zip(names, analyses, strict=True)
        for text in payoff_of(analysis).next
    ]


def _costs(document: Mapping[str, Any], names: Sequence[str]) -> str:
    table = document["observables"]
    if not table:
        return ""
    rows, classes = [], []
    for observable, entries in table.items():
        for index, (name, entry) in enumerate(zip(names, entries, strict=True)):
            mark = "≥ " if entry["is_lower_bound"] else ""
            cost = duration_text(entry["seconds_per_independent_sample"], entry["error"])
            row = [escape(f"{title_of(observable)}, {name}")]
            row += [_marked(mark, cost), _marked(mark, duration(entry["with_training"]))]
            if index:
                gain = value_text(entry["gain"], entry["gain_error"])
                row.append(_marked(_MARKS[entry["gain_bound"]], gain))
                samples, mark = entry["break_even_samples"], _MARKS[entry["break_even_bound"]]
                row.append("–" if not samples else _marked(mark, _samples(samples)))
                row.append(f"{entry['pull']:+.1f}")
            else:
                row += ["", "", ""]
            rows.append(row)
            classes.append("part" if index else "")
    header = [
        "observable, run",
        "time per independent sample",
        "with training",
        "gain",
        "independent samples that repay the training",
        "pull",
    ]
    note = (
        f'<p class="note">Gain: how many times cheaper than {escape(names[0])}, without training. '
        "Of vectors: the mean of the components. Pull: difference of the means in standard "
        "deviations.</p>"
    )
    return (
        "<h2>Cost of an independent sample</h2>"
        + image(cost_plot(table, names), "Costs of all observables in all runs")
        + html_table(header, rows, numbers=range(1, 6), classes=classes)
        + note
    )


def _samples(count: float) -> str:
    return f"{count:,.3g}" if math.isfinite(count) else "never"


def _marked(mark: str, text: str) -> str:
    text = escape(text)
    return f'<span class="bound">{mark}{text}</span>' if mark else text


@drawn_twice
def cost_plot(
    layout: FigureLayout, table: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> str:
    """Return the seconds per independent sample, a row for each observable, bounds as arrows."""
    height = 0.9 + (0.2 + 0.17 * len(names)) * len(table)
    titles = [title_of(name) for name in table]
    with layout.figure(height, (1.0,), narrow_height=height + 0.2 * len(table)) as (
        figure,
        (axes,),
    ):
        known = []
        for run, name in enumerate(names):
            place = (run - (len(names) - 1) / 2) * 0.5 / len(names)
            for row, entries in enumerate(table.values()):
                entry = entries[run]
                seconds, error = entry["seconds_per_independent_sample"], entry["error"]
                if not math.isfinite(seconds):
                    continue
                known.append(seconds)
                bound = entry["is_lower_bound"]
                axes.errorbar(
                    seconds,
                    row + place,
                    xerr=None if bound else min(error, 0.9 * seconds),
                    fmt=">" if bound else "o",
                    markersize=5,
                    capsize=2.5,
                    color=SERIES[run % len(SERIES)],
                    label=name if row == 0 else None,
                )
        if known and max(known) > 4 * min(known):
            axes.set_xscale("log")
            label_decades(axes, "x")
        axes.set_ylim(len(table) - 0.5, -0.6)
        axes.yaxis.set_minor_locator(NullLocator())
        if layout.is_narrow:
            axes.set_yticks([])
            for row, title in enumerate(titles):
                axes.text(
                    0.01, row - 0.25, title, transform=axes.get_yaxis_transform(), va="bottom"
                )
        else:
            axes.set_yticks(range(len(titles)), titles)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_xlabel("seconds per independent sample")
        legend_above(figure, axes, layout)
        return svg_text(figure)
