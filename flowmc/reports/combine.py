"""``report.html`` of several ensembles combined."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from flowmc.correlate.combine_config import CombineConfig
from flowmc.correlate.combine_sections import TOGETHER
from flowmc.correlate.combined import Combination
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.measurement import Section
from flowmc.reports.as_html import html_table, image
from flowmc.reports.correlate import section_html, write_parts
from flowmc.reports.plots.correlate import Points, couplings_plot, weights_plot

__all__ = ["write_combined_page"]

_QUANTITIES = 3  # that are drawn against the coupling
_NOTE = (
    "How likely a configuration of the ensemble of a row could be one of the ensemble of a column."
)


def write_combined_page(
    directory: CorrelateDirectory,
    config: CombineConfig,
    combination: Combination,
    sections: Sequence[Section],
) -> None:
    """Write the page, replacing an older one atomically.

    Raises:
        OSError: if the directory cannot be written.
    """
    histories = [one.series.history for one in combination.ensembles]
    facts = [
        ("ensembles", str(len(histories))),
        ("configurations", f"{sum(map(len, histories)):,}"),
        ("targets", str(len(config.targets))),
    ]
    parts = []
    for section in sections:
        more = []
        if section.label == TOGETHER:
            more = [_overlap(section), _against_coupling(config, sections)]
        elif section.weights:
            theory = combination.labels.index(section.label, len(histories))
            logs = combination.multi.log_weights(combination.actions[theory])
            plot = weights_plot({section.label: logs})
            more = [image(plot, f"Histogram of ln W, {section.label}")]
        parts.append(section_html(section, *more))
    write_parts(directory, config.theory, facts, sections, parts)


def _overlap(section: Section) -> str:
    """Return the overlap matrix as a table."""
    labels = section.details["ensembles"]
    if len(labels) < 2:
        return ""
    rows = [
        [escape(label), *(f"{share:.1%}" for share in row)]
        for label, row in zip(labels, section.details["overlap"], strict=True)
    ]
    header = ["overlap", *map(escape, labels)]
    table = html_table(header, rows, numbers=range(1, len(header)))
    return f'<p class="note">{_NOTE}</p>{table}'


def _against_coupling(config: CombineConfig, sections: Sequence[Section]) -> str:
    """Return the first observables of ensembles and targets against the coupling that varies."""
    actions = [one.action for one in config.theories]
    varying = [
        name
        for name in config.action.parameters
        if len({one.parameters[name] for one in actions}) > 1
    ]
    if len(varying) != 1:
        return ""
    # The sections are those of the ensembles and of the targets, in this order.
    points = [
        (action.parameters[varying[0]], {one.observable: one.result for one in section.entries})
        for action, section in zip(actions, sections[1:], strict=True)
    ]
    own, combined = points[: len(config.ensembles)], points[len(config.ensembles) :]
    names = [name for name in own[0][1] if not name.startswith("S(")][:_QUANTITIES]
    if not names:
        return ""

    def drawn(some: Sequence) -> dict[str, Points]:
        return {
            name: [(x, found[name].value, found[name].error) for x, found in some if name in found]
            for name in names
        }

    plot = couplings_plot(varying[0], drawn(own), drawn(combined))
    return image(plot, f"{', '.join(names)} against {varying[0]}")
