"""The command `inspect`: what configuration files hold, and whether they are sound."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import Any

from ..inspection import CHECK_FAILED, FINE, UNUSABLE, Inspection, examine
from ..metadata import DERIVED_KEYS
from ..naming import number_in_name
from ..printing import printable, say
from .common import (
    add_reading_arguments,
    by_first_rank,
    communicator,
    only_first_rank_prints,
    reading_options,
    stopped_by_signals,
)
from .files import expand, number_gaps
from .progress import ProgressLine

_BOUNDARIES = {
    "open": "open in time",
    "schroedinger": "Schroedinger functional",
    "charge conjugation": "charge conjugation (G-parity or C*)",
}
_VERDICTS = {FINE: "ok", CHECK_FAILED: "FAILED", UNUSABLE: "UNUSABLE"}


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_inspect`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="configuration files, directories, patterns; FILE#N for the N-th of several in a file",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--brief",
        action="store_true",
        help="one line for each file and a summary (the default for directories and patterns)",
    )
    add_reading_arguments(parser)


def run_inspect(arguments: argparse.Namespace) -> int:
    """Print what the files hold; returns the exit status, that of the worst file."""
    try:
        comm = communicator(arguments)
    except ValueError as error:
        say(f"error: {error}", sys.stderr)
        return UNUSABLE
    # A temporary copy of a compressed file has a name on some systems
    with only_first_rank_prints(comm), stopped_by_signals():
        return _inspect(arguments, comm)


def _inspect(arguments: argparse.Namespace, comm: Any) -> int:
    chosen = by_first_rank(comm, lambda: expand(arguments.files))
    brief = arguments.brief or chosen.many
    progress = ProgressLine(len(chosen.files))
    found = []
    for i, path in enumerate(chosen.files):
        progress.begin(path)
        inspection = examine(
            path,
            ignore_checksum=arguments.ignore_checksum,
            progress=progress.part,
            comm=comm,
            **reading_options(arguments),
        )
        progress.end()
        found.append(inspection)
        if not arguments.json:
            progress.clear()
            say(_line(inspection) if brief else ("\n" if i else "") + _table(inspection))
            sys.stdout.flush()
    progress.clear()
    if arguments.json:
        print(json.dumps([inspection.report for inspection in found], indent=2))
    elif brief:
        for path, reason in chosen.skipped:
            say(f"skipped   {printable(path)}: {printable(reason)}")
        say(_summary(found))
    if not found:
        say("error: no configuration file among these", sys.stderr)
        return UNUSABLE
    return max(inspection.status for inspection in found)


def _line(inspection: Inspection) -> str:
    """One line: verdict, file, what it holds, or why not."""
    report = inspection.report
    path = printable(str(report["path"]))
    words = [f"{_VERDICTS[inspection.status]:<9}", path]
    if report["error"] is not None:
        # The path stands at the front already
        return " ".join([*words, "", printable(str(report["error"])).removeprefix(f"{path}: ")])
    words.append(f" {report['format']}")
    if report["dims"] is not None:
        group = report["kind"] if report["nc"] is None else f"SU({report['nc']})"
        words += ["x".join(map(str, report["dims"])), group, f"{report['precision']} bit"]
    if report["number"] is not None:
        words.append(f"number {report['number']}")
    if (report["configurations"] or 1) > 1:
        words.append(f"{report['configurations']} configurations")
    if report["boundary"] is not None:
        words.append(_BOUNDARIES[report["boundary"]])
    if report["plaquette"] is not None:
        words.append(f"plaquette {report['plaquette']:.12f}")
    checksum = report["checksum"]
    words.append("no checksum" if checksum is None else f"checksum {_checksum_word(checksum)}")
    warnings = report["warnings"]
    if inspection.status != FINE:
        words.append(f"- {printable(inspection.reason)}")
    elif warnings:
        words.append(f"({len(warnings)} warning{'s' if len(warnings) > 1 else ''})")
    return " ".join(words)


def _summary(found: list[Inspection]) -> str:
    """Counts, and what an ensemble should have in common."""
    counts = [
        f"{sum(inspection.status == status for inspection in found)} {word}"
        for status, word in _VERDICTS.items()
    ]
    lines = [f"{len(found)} files: {', '.join(counts)}"]
    kinds = {
        (tuple(report["dims"]), report["nc"], report["precision"])
        for report in (inspection.report for inspection in found)
        if report["dims"] is not None and report["nc"] is not None
    }
    if len(kinds) > 1:
        texts = sorted(
            f"{'x'.join(map(str, dims))} SU({nc}) {precision} bit" for dims, nc, precision in kinds
        )
        lines.append(f"different lattices: {', '.join(texts)}")
    numbers = [number for inspection in found if (number := _number(inspection.report)) is not None]
    step, missing = number_gaps(numbers)
    if step:
        lines.append(f"numbers {min(numbers)} to {max(numbers)} in steps of {step}")
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        lines.append(f"missing numbers: {', '.join(map(str, missing[:10]))}{more}")
    twice = sorted(number for number, count in Counter(numbers).items() if count > 1)
    if twice:
        lines.append(f"numbers that occur twice: {', '.join(map(str, twice[:10]))}")
    return "\n".join(lines)


def _number(report: dict[str, Any]) -> int | None:
    number: int | None = report["number"]
    return number_in_name(report["path"]) if number is None else number


def _checksum_word(checksum: dict[str, Any]) -> str:
    return "ok" if checksum["ok"] else "WRONG"


def _table(inspection: Inspection) -> str:
    report = inspection.report
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any, form: str = "") -> None:
        if value is not None:
            rows.append((printable(name), printable(format(value, form))))

    add("format", report["format"])
    add("writer", report["writer"])
    if report["dims"] is not None:
        add("lattice", " x ".join(map(str, report["dims"])) + "  (x y z t)")
    if report["nc"] is not None:
        add("group", f"SU({report['nc']})")
    else:
        add("field", report["kind"])
    add("configurations", report["configurations"])
    if report["nc"] is None:
        add("mean", report["mean"], ".12g")
    if report["precision"] is not None:
        add("precision", f"{report['precision']} bit")
    add("number", report["number"])
    if report["boundary"] is not None:
        add("boundaries", _BOUNDARIES[report["boundary"]])
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
    for key, value in inspection.metadata.items():
        if key in DERIVED_KEYS or key == "SEQUENCE_NUMBER":
            continue
        text = printable(" ".join(value.split()))
        add(f"  {key}", text if len(text) <= 100 else f"{text[:97]}...")
    for warning in report["warnings"]:
        add("warning", warning)
    add("error", report["error"])
    width = min(40, max([14, *(len(name) for name, _ in rows)]))
    path = printable(str(report["path"]))
    return "\n".join([path, *(f"  {name:<{width}} {value}" for name, value in rows)])
