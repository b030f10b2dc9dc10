"""The commands `inspect` and `convert`, to be mounted by the `flowmc` command or run alone.

Exit status: 0 fine, 1 a check failed (checksum, plaquette, link trace, group membership, numbers
that are not finite), 2 unusable input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .conversion import convert
from .errors import CheckError, FormatError
from .inspection import CHECK_FAILED, FINE, UNUSABLE, Inspection, examine
from .registry import formats


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_inspect`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="configuration files")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _add_reading_arguments(parser)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_convert`."""
    writable = [name for name, known in formats().items() if known.writable]
    parser.add_argument("source", metavar="SRC", help="configuration file of any format")
    parser.add_argument("destination", metavar="DST", help="file to write")
    parser.add_argument(
        "--format", required=True, metavar="F", help=f"one of {', '.join(writable)}"
    )
    parser.add_argument(
        "--precision", type=int, choices=(32, 64), help="default: that of the source"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata to write, e.g. SEQUENCE_NUMBER=400 (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    _add_reading_arguments(parser)


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print what the files hold; returns the exit status, that of the worst file."""
    found = [
        examine(path, dims=_dims(arguments), ignore_checksum=arguments.ignore_checksum)
        for path in arguments.files
    ]
    if arguments.json:
        print(json.dumps([inspection.report for inspection in found], indent=2))
    else:
        print("\n\n".join(_table(inspection) for inspection in found))
    return max(inspection.status for inspection in found)


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert one file; returns the exit status."""
    try:
        metadata = _assignments(arguments.set)
        conversion = convert(
            arguments.source,
            arguments.destination,
            arguments.format,
            arguments.precision,
            check_checksum=not arguments.ignore_checksum,
            dims=_dims(arguments),
            metadata=metadata,
        )
    except (FormatError, ValueError, OSError, MemoryError) as error:
        status = CHECK_FAILED if isinstance(error, CheckError) else UNUSABLE
        message = str(error) or type(error).__name__
        if arguments.json:
            print(json.dumps({"error": message}, indent=2))
        else:
            print(f"error: {message}", file=sys.stderr)
        return status
    if arguments.json:
        paths = {"source": arguments.source, "destination": arguments.destination}
        print(json.dumps({**paths, **asdict(conversion), "error": None}, indent=2))
        return FINE
    for warning in conversion.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{arguments.source} ({conversion.source_format}, {conversion.source_precision} bit) -> "
        f"{arguments.destination} ({conversion.format}, {conversion.precision} bit)"
    )
    return FINE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m flowmc_adapters`."""
    parser = argparse.ArgumentParser(
        prog="flowmc_adapters", description="Inspect and convert lattice field configurations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect_parser = commands.add_parser("inspect", help="what files hold, and whether it is sound")
    add_inspect_arguments(inspect_parser)
    inspect_parser.set_defaults(run=run_inspect)
    convert_parser = commands.add_parser("convert", help="write a file in another format")
    add_convert_arguments(convert_parser)
    convert_parser.set_defaults(run=run_convert)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def _add_reading_arguments(parser: argparse.ArgumentParser) -> None:
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


def _dims(arguments: argparse.Namespace) -> tuple[int, ...] | None:
    return None if arguments.dims is None else tuple(arguments.dims)


def _assignments(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not equals or not key.strip():
            raise ValueError(f"--set takes KEY=VALUE, not {text!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _table(inspection: Inspection) -> str:
    report = inspection.report
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any, form: str = "") -> None:
        if value is not None:
            rows.append((name, format(value, form)))

    add("format", report["format"])
    if report["dims"] is not None:
        add("lattice", " x ".join(map(str, report["dims"])) + "  (x y z t)")
        add("group", f"SU({report['nc']})")
        add("precision", f"{report['precision']} bit")
    add("number", inspection.metadata.get("SEQUENCE_NUMBER"))
    add("plaquette", report["plaquette"], ".12f")
    add("  space-space", report["plaquette_space"], ".12f")
    add("  space-time", report["plaquette_time"], ".12f")
    add("link trace", report["link_trace"], ".12f")
    add("|U U^+ - 1|", report["unitarity_error"], ".1e")
    add("|det U - 1|", report["determinant_error"], ".1e")
    checksum = report["checksum"]
    if checksum is not None:
        verdict = "ok" if checksum["ok"] else f"WRONG, computed {checksum['computed']}"
        add("checksum", f"{checksum['kind']} {checksum['stored']} {verdict}")
    for warning in report["warnings"]:
        add("warning", warning)
    add("error", report["error"])
    return "\n".join([str(report["path"]), *(f"  {name:<14} {value}" for name, value in rows)])
