"""What several runs say side by side, as a document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.payoff import payoff_of
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.pieces import note, payoff_section, seconds, table
from flowmc.reports.words import theory_text

__all__ = ["comparison_document", "warnings_between"]

PULL = 4.0  # standard deviations between two means that are worth a warning
_NOTES = (
    "Gain: how many times cheaper than the first run, without training. Break-even: independent "
    "samples that repay the training.",
    "Of vectors: the mean of the components.",
    "Pull: difference of the means from the first run in standard deviations.",
)


def comparison_document(analyses: Sequence[Analysis], found: Mapping[str, Any]) -> doc.Document:
    """Return the document of a comparison.

    Args:
        analyses: of the runs.
        found: the entries of :func:`flowmc.commands.report.compare`.
    """
    names = _names(analyses)
    facts: list[tuple[str, doc.Inline]] = [
        (
            name,
            (
                doc.Value(analysis.run.updates),
                " updates, ",
                doc.Value(analysis.run.chains),
                " chains",
            ),
        )
        for name, analysis in zip(names, analyses, strict=True)
    ]
    following = [
        f"{name}: {text}"
        for name, analysis in zip(names, analyses, strict=True)
        for text in payoff_of(analysis).next
    ]
    own = [
        f"{name}: {text}"
        for name, analysis in zip(names, analyses, strict=True)
        for text in analysis.warnings
    ]
    run = analyses[0].run
    return doc.Document(
        f"Comparison of {len(analyses)} runs",
        theory_text(run.config.get("theory", {}), run.theory_title),
        tuple(facts),
        (
            payoff_section(found["pays"], following, shown=doc.PAGE),
            _costs(analyses, found["observables"], names),
        ),
        warnings=(*warnings_between(analyses, found), *own),
    )


def warnings_between(analyses: Sequence[Analysis], found: Mapping[str, Any]) -> list[str]:
    """Return what to doubt about the comparison, beside what the runs say themselves."""
    names = _names(analyses)
    warnings = [
        f"{names[index]} and {names[0]} disagree in {name} by {entry['pull']:+.1f} standard "
        "deviations: they do not sample the same distribution, or an error is too small"
        for name, entries in found["observables"].items()
        for index, entry in enumerate(entries)
        if math.isfinite(entry["pull"]) and abs(entry["pull"]) > PULL
    ]
    theories = [analysis.run.config.get("theory", {}) for analysis in analyses]
    if any(theory != theories[0] for theory in theories):
        warnings.append(
            "the runs are of different theories: their costs are not for the same answer"
        )
    return [*warnings, *found["warnings"]]


def _names(analyses: Sequence[Analysis]) -> list[str]:
    """Return the last parts of the runs' paths that tell them apart."""
    parts = [analysis.run.path.resolve().parts for analysis in analyses]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(analysis.run.path) for analysis in analyses]


def _costs(
    analyses: Sequence[Analysis],
    numbers: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Sequence[str],
) -> doc.Section:
    heading = "Cost of an independent sample"
    if not numbers:
        nothing = (
            "Nothing to compare: the runs have no observable in common, or no timings in log.jsonl."
        )
        return doc.Section(heading, (doc.Paragraph(nothing),))
    run = analyses[0].run
    rows = [
        _row(doc.Name(observable, run.title(observable)), name, entry, is_first=not index)
        for observable, entries in numbers.items()
        for index, (name, entry) in enumerate(zip(names, entries, strict=True))
    ]
    header = (
        "observable",
        doc.Column("run", kind="words"),
        doc.Column("time per independent sample", short="per independent sample"),
        "with training",
        "gain",
        doc.Column("independent samples that repay the training", short="break-even"),
        "pull",
    )
    titles = [run.title(name) for name in numbers]
    figure = doc.Figure(
        lambda: plots.comparison.cost_plot(numbers, titles, names),
        "Costs of all observables in all runs",
    )
    bounds = doc.Paragraph(">=, <=, ~: bounds, as a tau_int is one.", shown=doc.TEXT)
    notes = (note(text, doc.EVERYWHERE) for text in _NOTES)
    return doc.Section(heading, (figure, table(header, rows), bounds, *notes))


def _row(title: doc.Name, name: str, entry: Mapping[str, Any], is_first: bool) -> doc.Row:
    is_bound = entry["is_lower_bound"]
    cells: tuple[doc.Inline, ...] = (
        title,
        doc.Name(entry["path"], name),
        seconds(entry["seconds_per_independent_sample"], entry["error"], is_bound),
        seconds(entry["with_training"], is_bound=is_bound),
    )
    if is_first:
        return doc.Row((*cells, None, None, None))
    gain = doc.Value(entry["gain"], entry["gain_error"], bound=entry["gain_bound"])
    pull = doc.Value(entry["pull"], form="+.1f")
    return doc.Row((*cells, gain, _break_even(entry), pull), is_part=True)


def _break_even(entry: Mapping[str, Any]) -> doc.Inline:
    samples, bound = entry["break_even_samples"], entry["break_even_bound"]
    if not samples:
        return doc.Value(None)
    if math.isinf(samples):
        return "never" if bound in ("none", "lower") else "?"
    return doc.Value(samples, form=",.3g", bound=bound)
