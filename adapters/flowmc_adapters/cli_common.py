"""Arguments that `inspect` and `convert` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how files are read."""
    parser.add_argument(
        "--ignore-checksum",
        action="store_true",
        help="only warn if checksum, plaquette or link trace differ from those in the file",
    )
    parser.add_argument(
        "--dims",
        nargs=4,
        type=int,
        metavar=("LX", "LY", "LZ", "LT"),
        help="lattice extents, for files that do not state them",
    )
    parser.add_argument(
        "--layout", metavar="NAME", help="order of the numbers, for files that leave it open"
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments `dims` and `layout` of the reading functions."""
    dims = None if arguments.dims is None else tuple(arguments.dims)
    return {"dims": dims, "layout": arguments.layout}


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` arguments as a dictionary.

    Raises:
        ValueError: one of them is not of that form.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not equals or not key.strip():
            raise ValueError(f"{option} takes KEY=VALUE, not {text!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}
