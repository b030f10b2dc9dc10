"""What ``flowmc correlate`` says about several ensembles combined, as a document."""

from __future__ import annotations

from collections.abc import Sequence

from flowmc.correlate.combine_config import CombineConfig
from flowmc.correlate.combine_sections import TOGETHER
from flowmc.correlate.combined import Combination
from flowmc.correlate.measurement import Section
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.correlate import document_of, section_of
from flowmc.reports.pieces import note, table

__all__ = ["combined_document"]

_QUANTITIES = 3  # that are drawn against the coupling
_NOTE = (
    "How likely a configuration of the ensemble of a row could be one of the ensemble of a column."
)


def combined_document(
    name: str, config: CombineConfig, combination: Combination, sections: Sequence[Section]
) -> doc.Document:
    """Return the document of several ensembles.

    Args:
        name: of the directory.
        config: what was asked.
        combination: of the ensembles.
        sections: the results.
    """
    histories = [one.series.history for one in combination.ensembles]
    facts: list[tuple[str, doc.Inline]] = [
        ("ensembles", doc.Value(len(histories))),
        ("configurations", doc.Value(sum(map(len, histories)))),
        ("targets", doc.Value(len(config.targets))),
    ]
    parts = []
    for section in sections:
        more: list[doc.Part] = []
        if section.label == TOGETHER:
            more = [*_overlap(section), *_against_coupling(config, sections)]
        elif section.weights:
            more = [_weights(combination, section.label)]
        parts.append(section_of(section, *more))
    return document_of(name, config.theory, config.action, facts, sections, parts)


def _weights(combination: Combination, label: str) -> doc.Figure:
    def logs():
        theory = combination.labels.index(label, len(combination.ensembles))
        return {label: combination.multi.log_weights(combination.actions[theory])}

    return doc.Figure(lambda: plots.correlate.weights_plot(logs()), f"Histogram of ln W, {label}")


def _overlap(section: Section) -> list[doc.Part]:
    """Return the overlap matrix as a table."""
    labels = section.details["ensembles"]
    if len(labels) < 2:
        return []
    rows = (
        (label, *(doc.Value(share, form=".1%") for share in row))
        for label, row in zip(labels, section.details["overlap"], strict=True)
    )
    return [note(_NOTE), table(("overlap", *labels), rows, doc.PAGE)]


def _against_coupling(config: CombineConfig, sections: Sequence[Section]) -> list[doc.Part]:
    """Return the first observables of ensembles and targets against the coupling that varies."""
    actions = [one.action for one in config.theories]
    varying = [
        name
        for name in config.action.parameters
        if len({one.parameters[name] for one in actions}) > 1
    ]
    if len(varying) != 1:
        return []
    # The sections are those of the ensembles and of the targets, in this order.
    points = [
        (action.parameters[varying[0]], {one.observable: one.result for one in section.entries})
        for action, section in zip(actions, sections[1:], strict=True)
    ]
    own, combined = points[: len(config.ensembles)], points[len(config.ensembles) :]
    names = [name for name in own[0][1] if not name.startswith("S(")][:_QUANTITIES]
    if not names:
        return []

    def drawn(some: Sequence) -> dict[str, list[tuple[float, float, float]]]:
        return {
            name: [(x, found[name].value, found[name].error) for x, found in some if name in found]
            for name in names
        }

    return [
        doc.Figure(
            lambda: plots.correlate.couplings_plot(varying[0], drawn(own), drawn(combined)),
            f"{', '.join(names)} against {varying[0]}",
        )
    ]
