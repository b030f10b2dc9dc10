"""What a result consists of: a document, from which text, page and JSON are written.

A :class:`Document` holds numbers, not their digits, and words without markup.  The writers round,
mark and escape: :func:`~flowmc.reports.words.as_text` for a terminal,
:func:`~flowmc.reports.as_html.as_html` for a page, :func:`~flowmc.reports.as_json.as_json` for
scripts, which get every number unrounded.  Nothing is drawn before a page is written.

Words are plain: ``tau_int``, ``t_{0}``, ``>= 3``; a page sets subscripts and signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from flowmc.reports.plots.style import Drawing

__all__ = [
    "EVERYWHERE",
    "PAGE",
    "TEXT",
    "Code",
    "Column",
    "Details",
    "Document",
    "Figure",
    "Inline",
    "Listing",
    "Name",
    "Paragraph",
    "Part",
    "Row",
    "Section",
    "Shown",
    "Table",
    "Value",
    "Verdict",
]

Bound = Literal["none", "lower", "upper", "unknown"]


class Shown(Enum):
    """Where a part of a document is written; JSON holds what a page shows."""

    EVERYWHERE = "everywhere"
    TEXT = "text"
    PAGE = "page"


EVERYWHERE, TEXT, PAGE = Shown.EVERYWHERE, Shown.TEXT, Shown.PAGE


@dataclass(frozen=True)
class Value:
    """A number, and what is known about it.

    Attributes:
        number: None or NaN if it is not known.
        error: one standard deviation, NaN if it is not known; None for a number that has none.
        form: how a number without error is rounded, as in a format string; three digits if empty,
            all of a whole number.
        unit: behind the number; "s" for durations, which are written in the unit that suits them.
        bound: "lower" or "upper" if the number is only that, "unknown" if it can be off either way.
        error_is_bound: the error is a lower bound.
    """

    number: float | None
    error: float | None = None
    form: str = ""
    unit: str = ""
    bound: Bound = "none"
    error_is_bound: bool = False


@dataclass(frozen=True)
class Name:
    """What has a name in files, and a title for people: a terminal shows the name.

    Attributes:
        name: as in files and on the command line.
        title: as in headings.
    """

    name: str
    title: str


@dataclass(frozen=True)
class Verdict:
    """Whether something passed.

    Attributes:
        passed: whether it did.
        words: that say so.
        mark: in their place in a terminal.
    """

    passed: bool
    words: str
    mark: str


# What stands in a cell, or in a line: nothing, words, a number, or several of them in a row.
Inline: TypeAlias = "str | Value | Name | Verdict | tuple[Inline, ...] | None"


@dataclass(frozen=True)
class Paragraph:
    """A sentence or two; a note explains what stands around it."""

    text: Inline
    is_note: bool = False
    shown: Shown = EVERYWHERE


@dataclass(frozen=True)
class Listing:
    """Sentences one below the other.

    Attributes:
        items: the sentences.
        lead: a line above them on a page.
        prefix: of each in a terminal.
    """

    items: tuple[str, ...]
    lead: str = ""
    prefix: str = ""
    shown: Shown = EVERYWHERE


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its header.
        unit: of all its numbers, behind the title.
        short: the header in a terminal, where it is not the title.
        kind: "number", "words", or "share" for parts of a whole, drawn as bars.
        shown: where.
    """

    title: str
    unit: str = ""
    short: str | None = None
    kind: Literal["number", "words", "share"] = "number"
    shown: Shown = EVERYWHERE


@dataclass(frozen=True)
class Row:
    """The cells of a row, one per column; a part belongs to the row above."""

    cells: tuple[Inline, ...]
    is_part: bool = False
    shown: Shown = EVERYWHERE


@dataclass(frozen=True)
class Table:
    """Numbers in columns, of which the first says what a row is about."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    shown: Shown = EVERYWHERE


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        draw: makes it; called when a page is written, and by nothing else.
        description: for those who cannot see it.
    """

    draw: Callable[[], Drawing]
    description: str


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is on a page: a configuration."""

    text: str


@dataclass(frozen=True)
class Details:
    """Parts that a page shows when they are asked for."""

    title: str
    parts: tuple[Part, ...]
    shown: Shown = PAGE


@dataclass(frozen=True)
class Section:
    """A part with a heading.

    Attributes:
        title: the heading.
        parts: what stands below it.
        aside: beside the heading, smaller.
        is_titled: whether a terminal shows the heading.
        is_last: whether a terminal shows the section at the end, where it is seen.
    """

    title: str
    parts: tuple[Part, ...]
    aside: tuple[Inline, ...] = ()
    is_titled: bool = False
    is_last: bool = False
    shown: Shown = EVERYWHERE


Part: TypeAlias = "Paragraph | Listing | Table | Figure | Code | Details | Section"


@dataclass(frozen=True)
class Document:
    """A result.

    Attributes:
        title: of the page.
        theory: the line below it.
        facts: name and value of the numbers at the top.
        sections: in the order of the page.
        headline: the first line in a terminal.
        warnings: sentences: what to look at before its numbers are used, the gravest first.
    """

    title: str
    theory: str
    facts: tuple[tuple[str, Inline], ...]
    sections: tuple[Section, ...]
    headline: str = ""
    warnings: tuple[str, ...] = ()
