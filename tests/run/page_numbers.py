"""Whether every number that a page shows is in the JSON document, at the same place.

The page is read as its reader sees it, without figures: headings, sentences, facts and cells in
their order.  Each one that has a number is compared with what stands at its place in the JSON
document: a value there, rounded as on the page, or the same digits in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

TOKEN = re.compile(
    r"(?<![\w.])(?P<sign>[-+−]?)(?P<digits>\d[\d,]*(?:\.\d+)?)"
    r"(?:\((?P<error>[\d.]+)\))?(?P<exponent>e[-+]\d+)?"
    r"(?: ?(?P<unit>%|d\b|h\b|min\b|s\b|ms\b|µs\b))?"
)
SCALES = {"%": 0.01, "d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6}
BLOCKS = {"h1", "h2", "h3", "p", "li", "dt", "dd", "th", "td", "summary", "pre", "strong"}


@dataclass
class Block:
    """A heading, a sentence, a cell, ...: its tag and its text or its values."""

    tag: str
    content: Any

    @property
    def tokens(self) -> list[re.Match[str]]:
        return list(TOKEN.finditer(self.content))

    @property
    def has_number(self) -> bool:
        strings, numbers = parts_of(self.content)
        return bool(numbers) or any(TOKEN.search(one) for one in strings)


class Reader(HTMLParser):
    """Collects the blocks of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self._open: list[Block] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("svg", "style", "title"):
            self._hidden += 1
        elif tag in BLOCKS and not self._hidden:
            self._open.append(Block(tag, ""))
            self.blocks.append(self._open[-1])
        elif tag == "small" and self._open:
            self._open[-1].content += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in ("svg", "style", "title"):
            self._hidden -= 1
        elif tag in BLOCKS and not self._hidden:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._hidden or not data.strip():
            return
        if not self._open:
            # Text outside of all blocks is seen, too.
            self.blocks.append(Block("loose", data))
        else:
            self._open[-1].content += data


def blocks_of_page(html: str) -> list[Block]:
    reader = Reader()
    reader.feed(html)
    return reader.blocks


def blocks_of_document(page: dict[str, Any]) -> Iterator[Block]:
    """Yield what stands in the entry ``page`` of a JSON document, in the order of the page."""
    yield Block("h1", page["title"])
    yield Block("p", page["theory"])
    for name, value in page["facts"].items():
        yield Block("dt", name)
        yield Block("dd", value)
    if page["warnings"]:
        yield Block("strong", len(page["warnings"]) if len(page["warnings"]) > 1 else "")
    for text in page["warnings"]:
        yield Block("li", text)
    for section in page["sections"]:
        yield from section_blocks(section, "h2")


def section_blocks(section: dict[str, Any], tag: str) -> Iterator[Block]:
    yield Block(tag, [section["title"], *section.get("aside", [])])
    for part in section["parts"]:
        yield from part_blocks(part)


def part_blocks(part: dict[str, Any]) -> Iterator[Block]:
    ((kind, content),) = part.items()
    if kind == "text":
        yield Block("p", content)
    elif kind == "list":
        yield from (Block("li", text) for text in content)
    elif kind == "code":
        yield Block("pre", content)
    elif kind == "section":
        yield from section_blocks(content, "h3")
    elif kind == "details":
        yield Block("summary", content["title"])
        for one in content["parts"]:
            yield from part_blocks(one)
    elif kind == "table":
        yield from (Block("th", list(column.values())) for column in content["columns"])
        for row in content["rows"]:
            yield from (Block("td", cell) for cell in row)


def parts_of(content: Any) -> tuple[list[str], list[float]]:
    """Return the strings and the numbers in a value of JSON."""
    strings: list[str] = []
    numbers: list[float] = []
    stack = [content]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            strings.append(one)
        elif isinstance(one, int | float) and not isinstance(one, bool):
            numbers.append(float(one))
        elif isinstance(one, list):
            stack += one
        elif isinstance(one, dict):
            # Of a name with a title the page shows the title.
            stack += [one["title"]] if "name" in one else one.values()
    return strings, numbers


def is_known(token: re.Match[str], content: Any) -> bool:
    """Whether a number of the page is in a value of JSON, rounded or in a sentence."""
    strings, numbers = parts_of(content)
    text = token.group().replace(",", "")
    if any(text == one.group().replace(",", "") for s in strings for one in TOKEN.finditer(s)):
        return True
    digits = token["digits"].replace(",", "")
    power = 10.0 ** int((token["exponent"] or "e0")[1:])
    unit = power * SCALES.get(token["unit"] or "", 1.0)
    last = 10.0 ** -len(digits.partition(".")[2])
    value = float(digits) * (-1 if token["sign"] in ("-", "−") else 1)

    def is_rounded(shown: float) -> bool:
        return any(abs(number / unit - shown) <= 0.5000001 * last for number in numbers)

    if not is_rounded(value):
        return False
    if token["error"] is None:
        return True
    error = token["error"]
    return is_rounded(float(error) if "." in error else float(error) * last)


def numbers_not_in(html: str, document: dict[str, Any]) -> list[str]:
    """Return what a page shows and its JSON document has not, or has elsewhere."""
    shown = [one for one in blocks_of_page(html) if one.has_number]
    known = [one for one in blocks_of_document(document["page"]) if one.has_number]
    found = []
    for one, other in zip(shown, known, strict=False):
        missing = [token.group() for token in one.tokens if not is_known(token, other.content)]
        if one.tag != other.tag or missing:
            found.append(f"{one.tag} {one.content!r} has {missing}, not in {other}")
            break
    if not found and len(shown) != len(known):
        found.append(f"{len(shown)} places with numbers on the page, {len(known)} in JSON")
    return found
