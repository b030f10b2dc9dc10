"""Parts that several documents have: tables, notes, estimates, the answer whether it pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flowmc.estimators.autocorrelation import Estimate
from flowmc.reports import document as doc

__all__ = [
    "ERROR_NOTE",
    "closed_code",
    "filled",
    "independent_of",
    "lower_if",
    "mean_of",
    "note",
    "payoff_section",
    "seconds",
    "table",
    "tau_int_of",
]


def table(
    header: Iterable[str | doc.Column],
    rows: Iterable[doc.Row | Sequence[doc.Inline]],
    shown: doc.Shown = doc.EVERYWHERE,
) -> doc.Table:
    """Return a table from its headers, which are of numbers but for the first, and its rows."""
    columns = (
        doc.Column(one, kind="number" if place else "words") if isinstance(one, str) else one
        for place, one in enumerate(header)
    )
    cells = (one if isinstance(one, doc.Row) else doc.Row(tuple(one)) for one in rows)
    return doc.Table(tuple(columns), tuple(cells), shown)


def note(text: doc.Inline, shown: doc.Shown = doc.PAGE) -> doc.Paragraph:
    """Return what explains the parts around it."""
    return doc.Paragraph(text, is_note=True, shown=shown)


def filled(text: str, *values: doc.Inline) -> tuple[doc.Inline, ...]:
    """Return words with a value in place of each pair of braces."""
    words = text.split("{}")
    return tuple(part for pair in zip(words, (*values, ""), strict=True) for part in pair if part)


ERROR_NOTE = note("!: the error is a lower bound.")


def seconds(number: float | None, error: float | None = None, is_bound: bool = False) -> doc.Value:
    """Return a duration, perhaps a lower bound."""
    return doc.Value(number, error, unit="s", bound=lower_if(is_bound))


def mean_of(estimate: Estimate | None) -> doc.Value:
    """Return the mean with its error."""
    return doc.Value(None) if estimate is None else doc.Value(estimate.mean, estimate.error)


def tau_int_of(estimate: Estimate | None) -> doc.Value:
    """Return tau_int with its error, marked where it is a lower bound."""
    if estimate is None:
        return doc.Value(None)
    return doc.Value(estimate.tau_int, estimate.tau_int_error, bound=lower_if(estimate.is_bound))


def independent_of(estimate: Estimate) -> doc.Value:
    """Return the number of independent samples, marked where it is an upper bound."""
    if not math.isfinite(estimate.tau_int):
        return doc.Value(None)
    number = estimate.samples / (2 * estimate.tau_int)
    return doc.Value(number, form=",.0f", bound="upper" if estimate.is_bound else "none")


def lower_if(is_bound: bool) -> doc.Bound:
    """Return how a number is marked that is perhaps a lower bound."""
    return "lower" if is_bound else "none"


def payoff_section(
    answer: Iterable[str],
    following: Sequence[str],
    numbers: doc.Table | None = None,
    shown: doc.Shown = doc.EVERYWHERE,
) -> doc.Section:
    """Return the section that says whether it pays, and what to change next.

    Args:
        answer: sentences.
        following: sentences, what to change.
        numbers: behind the answer.
        shown: where the latter sentences are.
    """
    parts: list[doc.Part] = [doc.Paragraph(text) for text in answer]
    if following:
        parts.append(doc.Listing(tuple(following), "What to change next:", "next: ", shown))
    if numbers is not None:
        parts.append(numbers)
    return doc.Section("Does it pay?", tuple(parts), is_titled=True, is_last=True)


def closed_code(title: str, text: str) -> doc.Details:
    """Return a configuration, or the like, that is shown when it is asked for."""
    return doc.Details(title, (doc.Code(text),))
