"""The text records of ILDG and SciDAC files: read leniently, written as QIO does.

Real files have blanks around values, a newline before `<?xml`, unterminated quotes and trailing
NULs, so that an XML parser refuses many of them. Values are looked up tag by tag instead; no
entity is ever expanded beyond the three in plain text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from .text import _KEY_LINE, _REAL, parse_integer, parse_real, xlf_values

XML_PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>'
_ILDG_ATTRIBUTES = (
    'xmlns="http://www.lqcd.org/ildg" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd"'
)
# Written where the metadata have nothing. QIO wants a date in this form, and a fixed one keeps the
# output a function of the input.
NO_DATE = "Thu Jan  1 00:00:00 1970 UTC"
NO_FILE_NAME = "lfn://unknown"
NO_FILE_XML = f"{XML_PROLOGUE}<title>flowmc gauge configuration</title>"


def tag_text(text: str, tag: str) -> str | None:
    """Content of the first `<tag>...</tag>`, without surrounding blanks, or None."""
    opening = re.search(rf"<{re.escape(tag)}(?:\s[^<>]*)?>", text)
    if opening is None:
        return None
    closing = text.find(f"</{tag}>", opening.end())
    return None if closing < 0 else text[opening.end() : closing].strip()


def tag_integer(text: str, tag: str) -> int | None:
    """Content of the first `<tag>` as an integer, or None."""
    return parse_integer(tag_text(text, tag))


def tag_real(text: str, tag: str) -> float | None:
    """Content of the first `<tag>` as a real number, or None."""
    return parse_real(tag_text(text, tag))


def updated_xlf(text: str, plaquette: float, number: str | None) -> str:
    """An xlf-info text with the plaquette, and the trajectory number if given, brought up to date.

    The record travels with a chain from file to file; everything else in it is kept as it is, and
    so is a plaquette that is right to its last digit.
    """
    text = re.sub(
        r"(?m)^([ \t]*plaquette = )(.*)$",
        lambda match: match[1] + renewed(match[2], plaquette, ".12f"),
        text,
    )
    number = " ".join((number or "").split())
    if number:
        text = re.sub(
            r"(?m)^([ \t]*trajectory nr = )(\S.*)$",
            lambda match: match[0] if match[2].strip() == number else f"{match[1]}{number}",
            text,
        )
        if "trajectory nr" not in xlf_values(text):
            end = "" if text.endswith("\n") or not text else "\n"
            text += f"{end} trajectory nr = {number}\n"
    return text


def updated_usqcd(
    text: str, plaquette: float, link_trace: float, pairs: Mapping[str, str] | None
) -> str:
    """A text with a usqcdInfo in it, its numbers and `KEY = VALUE` lines brought up to date.

    What is right stays as it is; any other text is returned unchanged.

    Args:
        text: the record.
        plaquette: of the links.
        link_trace: of the links.
        pairs: what the lines with upper-case keys must say; None leaves them alone.
    """
    if tag_text(text, "usqcdInfo") is None:
        return text
    for tag, value in (("plaq", plaquette), ("linktr", link_trace)):
        match = re.search(rf"<{tag}>([^<]*)</{tag}>", text)
        if match is not None:
            text = text[: match.start(1)] + renewed(match[1], value, ".15g") + text[match.end(1) :]
    if pairs is None:
        return text
    begin = text.find("<info>", text.index("<usqcdInfo"))
    end = text.find("</info>", begin)
    if begin < 0 or end < 0:
        begin = end = text.index("</usqcdInfo>")
        rest, old = split_info("")
    else:
        rest, old = split_info(text[begin + len("<info>") : end])
        end += len("</info>")
    if old == dict(pairs):
        return text
    return f"{text[:begin]}<info>{join_info(rest, pairs)}</info>{text[end:]}"


def renewed(text: str, value: float, form: str) -> str:
    """A printed number as it is if it is `value` to its last digit, else `value` printed anew.

    Args:
        text: the number as it was printed.
        value: what it should be.
        form: how to print it, e.g. ".12f".
    """
    match = _REAL.fullmatch(text.strip())
    if match is not None:
        unit = 10.0 ** (min(int(match[2] or 0), 99) - len(match[1] or ""))
        # Sums in another order differ in the last bits; few digits are no excuse for a wrong one
        if abs(float(text) - value) <= min(unit / 2, 1e-5) + 1e-12:
            return text
    return f"{value:{form}}"


def ildg_format(dims: tuple[int, ...], nc: int, precision: int) -> str:
    """The ildg-format record."""
    extents = "".join(
        f"<l{name}>{extent}</l{name}>" for name, extent in zip("xyzt", dims, strict=True)
    )
    return (
        f"{XML_PROLOGUE}<ildgFormat {_ILDG_ATTRIBUTES}><version>1.0</version>"
        f"<field>su{nc}gauge</field><precision>{precision}</precision>{extents}</ildgFormat>"
    )


def private_file(dims: tuple[int, ...]) -> str:
    """The scidac-private-file-xml record of a single-file volume."""
    extents = "".join(f"{extent} " for extent in dims)  # QIO leaves the trailing blank
    return (
        f"{XML_PROLOGUE}<scidacFile><version>1.1</version><spacetime>{len(dims)}</spacetime>"
        f"<dims>{extents}</dims><volfmt>0</volfmt></scidacFile>"
    )


def private_record(nc: int, precision: int, date: str) -> str:
    """The scidac-private-record-xml record of a gauge field."""
    letter = "F" if precision == 32 else "D"
    return (
        f"{XML_PROLOGUE}<scidacRecord><version>1.1</version><date>{html.escape(date)}</date>"
        f"<recordtype>0</recordtype><datatype>QDP_{letter}{nc}_ColorMatrix</datatype>"
        f"<precision>{letter}</precision><colors>{nc}</colors><spins>1</spins>"
        f"<typesize>{2 * nc * nc * precision // 8}</typesize><datacount>4</datacount>"
        "</scidacRecord>"
    )


def scidac_checksum(suma: int, sumb: int) -> str:
    """The scidac-checksum record; unpadded, because SIMULATeQCD compares the text."""
    return (
        f"{XML_PROLOGUE}<scidacChecksum><version>1.0</version><suma>{suma:x}</suma>"
        f"<sumb>{sumb:x}</sumb></scidacChecksum>"
    )


def usqcd_info(plaquette: float, link_trace: float, info: str) -> str:
    """The usqcdInfo user record; `info` goes in as it is.

    Equally long whatever the numbers are, with a blank in place of a plus sign, so that it can be
    written after the links.
    """
    plaq, linktr = (
        # Links outside the group may need the exponent
        f"{value: .15f}" if abs(value) < 10 else f"{value: .10e}".rjust(18)
        for value in (plaquette, link_trace)
    )
    return (
        f"{XML_PROLOGUE}<usqcdInfo><version>1.0</version><plaq>{plaq}</plaq>"
        f"<linktr>{linktr}</linktr><info>{info}</info></usqcdInfo>"
    )


def split_info(info: str) -> tuple[str, dict[str, str]]:
    """Take the `KEY = VALUE` lines with upper-case keys, ours, out of an info text.

    Returns:
        The text without them, and the pairs.
    """
    kept: list[str] = []
    pairs: dict[str, str] = {}
    for line in info.split("\n"):
        match = _KEY_LINE.fullmatch(line)
        if match is None:
            kept.append(line)
        else:
            pairs[match[1]] = html.unescape(match[2])
    return "\n".join(kept).strip("\n"), pairs


def join_info(text: str, pairs: Mapping[str, str]) -> str:
    """The inverse of `split_info`."""
    lines = [
        f"{key} = {html.escape(' '.join(value.splitlines()), quote=False)}"
        for key, value in pairs.items()
    ]
    return "\n".join([*([text] if text else []), *lines])
