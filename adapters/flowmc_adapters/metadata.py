"""Metadata as it travels from format to format.

One flat dictionary of strings. Keys in capitals are those of the NERSC header, whatever the
format; the others are LIME record types. What describes the links of one file (extents, checksum,
plaquette) is computed anew by every writer and never carried over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

_CAPITALS = re.compile(r"[A-Z][A-Z0-9_]*")

# Keys that describe the file they were read from.
DERIVED_KEYS = frozenset(
    {
        "DATATYPE",
        "DIMENSION_1",
        "DIMENSION_2",
        "DIMENSION_3",
        "DIMENSION_4",
        "CHECKSUM",
        "LINK_TRACE",
        "PLAQUETTE",
        "FLOATING_POINT",
        "HDR_VERSION",
        "STORAGE_FORMAT",
        "SCIDAC_CHECKSUMA",
        "SCIDAC_CHECKSUMB",
    }
)


def is_capital_key(key: str) -> bool:
    """Whether `key` has the form of a NERSC header key."""
    return _CAPITALS.fullmatch(key) is not None


def carried_keys(metadata: Mapping[str, str]) -> dict[str, str]:
    """The capital keys that stay true when the links are written elsewhere, in their order."""
    return {
        key: value
        for key, value in metadata.items()
        if is_capital_key(key) and key not in DERIVED_KEYS
    }


def no_text(metadata: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    """The warning, if one is due, on values that cannot be written as UTF-8: with halves of
    characters, as a JSON text may have them, or with bytes of another encoding from a command line.

    Args:
        metadata: to be written.
        keys: those that are written as plain text, not as JSON.
    """
    broken = []
    for key in sorted(metadata.keys() & set(keys)):
        try:
            metadata[key].encode()
        except UnicodeEncodeError:
            broken.append(key)
    if not broken:
        return []
    return [f"no text in UTF-8, of which parts became question marks: {', '.join(broken)}"]


def no_place(name: str, metadata: Mapping[str, str]) -> list[str]:
    """The warning, if one is due, on writing metadata to a format `name` that holds none."""
    lost = ", ".join(sorted(key for key in metadata if key not in DERIVED_KEYS))
    return [f"{name} files have no place for metadata, these were left out: {lost}"] if lost else []


def metadata_text(metadata: dict[str, str]) -> str:
    """Metadata as JSON, in ASCII."""
    return json.dumps(metadata, sort_keys=True)


def parse_metadata(text: str | None) -> dict[str, str] | None:
    """The inverse of `metadata_text`; None if the text is no JSON object of strings."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        return None
    return found
