"""The text records of ILDG and SciDAC files: read leniently, written as QIO does.

Real files have blanks around values, a newline before `<?xml`, unterminated quotes and trailing
NULs, so that an XML parser refuses many of them. Values are looked up tag by tag instead; no
entity is ever expanded beyond the three in plain text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

XML_PROLOGUE = '<?xml version="1.0" encoding="UTF-8"?>'
_ILDG_ATTRIBUTES = (
    'xmlns="http://www.lqcd.org/ildg" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://www.lqcd.org/ildg/filefmt.xsd"'
)
_KEY_LINE = re.compile(r"([A-Z][A-Z0-9_]*) ?= ?(.*)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# Written where the metadata have nothing. QIO wants a date in this form, and a fixed one keeps the
# output a function of the input.
NO_DATE = "Thu Jan  1 00:00:00 1970 UTC"
NO_FILE_NAME = "lfn://unknown"
NO_FILE_XML = f"{XML_PROLOGUE}<title>flowmc gauge configuration</title>"


def decode_text(data: bytes) -> str:
    """A text record without its trailing NULs; UTF-8, else Latin-1."""
    stripped = data.rstrip(b"\0")
    try:
        return stripped.decode("utf-8")
    except UnicodeDecodeError:
        return stripped.decode("latin-1")


def encode_text(text: str) -> bytes:
    """A text record as UTF-8; what has no encoding (lone surrogates) becomes a question mark."""
    return text.encode("utf-8", errors="replace")


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


def parse_integer(text: str | None) -> int | None:
    """A decimal integer, or None; blanks around it are fine."""
    if text is None or not _INTEGER.fullmatch(text.strip()):
        return None
    return int(text)


def parse_real(text: str | None) -> float | None:
    """A real number, or None."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def xlf_values(text: str) -> dict[str, str]:
    """The `key = value` pairs of an xlf-info record (tmLQCD), separated by commas and newlines.

    Empty values are skipped: cl2qcd writes an empty `trajectory nr = ` before the full one.
    """
    pairs = (item.split("=", 1) for item in re.split(r"[,\n]", text) if "=" in item)
    return {key.strip(): value.strip() for key, value in pairs if value.strip()}


def updated_xlf(text: str, plaquette: float, number: str | None) -> str:
    """An xlf-info text with the plaquette, and the trajectory number if given, set anew.

    The record travels with a chain from file to file; everything else in it is kept as it is.
    """
    text = re.sub(r"(?m)^(\s*plaquette = ).*$", lambda m: f"{m[1]}{plaquette:.12f}", text)
    if number is not None:
        text = re.sub(r"(?m)^( trajectory nr = )\d+$", lambda m: f"{m[1]}{number}", text)
    return text


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
    return (
        f"{XML_PROLOGUE}<usqcdInfo><version>1.0</version><plaq>{plaquette: .15f}</plaq>"
        f"<linktr>{link_trace: .15f}</linktr><info>{info}</info></usqcdInfo>"
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
