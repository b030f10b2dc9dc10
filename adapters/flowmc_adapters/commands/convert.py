"""The command `convert`: configuration files from one format to another, one or an ensemble."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic import unfinished
from ..configuration import number_of
from ..conversion import Conversion, convert
from ..errors import CheckError, FormatError
from ..fields.files import field_format, field_numbers, is_field, read_field
from ..inspection import CHECK_FAILED, FINE, UNUSABLE
from ..naming import converted_name, number_in_name
from ..printing import printable, say
from ..registry import format_named, formats, read_header
from ..transfer import Progress
from .common import (
    add_reading_arguments,
    assignments,
    by_first_rank,
    communicator,
    only_first_rank_prints,
    reading_options,
    stopped_by_signals,
)
from .files import UNFINISHED, expand
from .made import FromFile, Source, sources_of
from .progress import ProgressLine


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `run_convert`."""
    known = formats()
    writable = [name for name, found in known.items() if found.writable]
    options = [
        f"{name}: {key} = {', '.join(values)}"
        for name, found in known.items()
        for key, values in found.options.items()
    ]
    parser.add_argument(
        "source",
        nargs="+",
        metavar="SRC",
        help="configuration files of any format; directories and patterns for whole ensembles; "
        "FILE#N for the N-th of several in a file",
    )
    parser.add_argument(
        "destination", metavar="DST", help="file to write; a directory for several files"
    )
    parser.add_argument(
        "--format", required=True, metavar="F", help=f"one of {', '.join(writable)}"
    )
    parser.add_argument(
        "--precision", type=int, choices=(32, 64), help="default: that of the source"
    )
    parser.add_argument(
        "--strip-signs",
        action="store_true",
        help="multiply links with the fermions' antiperiodic sign by -1",
    )
    parser.add_argument(
        "--reunitarize", action="store_true", help="project links that were rounded onto SU(N)"
    )
    parser.add_argument(
        "--open-boundaries",
        action="store_true",
        help="write fields with open boundaries in time also in formats whose readers take every "
        "field for a periodic one",
    )
    parser.add_argument(
        "--ignore-group",
        action="store_true",
        help="write links outside SU(N) as they are, with a warning, instead of refusing them",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"option of the format written (may be repeated); {'; '.join(options)}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata to write, e.g. SEQUENCE_NUMBER=400 (may be repeated)",
    )
    parser.add_argument(
        "--number", type=int, help="which configuration of an HDF5 file of scalar or U(1) fields"
    )
    parser.add_argument(
        "--existing",
        choices=("refuse", "skip", "replace"),
        help="what to do about files that are there already; default: replace a single file, "
        "refuse for several",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_reading_arguments(parser)


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert files; returns the exit status, that of the worst file."""
    try:
        comm = communicator(arguments)
    except ValueError as error:
        return _refused(str(error), arguments.json)
    with only_first_rank_prints(comm), stopped_by_signals():
        return _convert(arguments, comm)


def _convert(arguments: argparse.Namespace, comm: Any) -> int:
    try:
        pairs, several = by_first_rank(comm, lambda: _pairs(arguments, on_ranks=comm is not None))
        metadata = assignments(arguments.set, "--set")
        options = assignments(arguments.option, "--option")
        format_named(arguments.format).check_options(options)
        if several and "SEQUENCE_NUMBER" in metadata:
            raise ValueError("--set SEQUENCE_NUMBER would give all files the same number")
    except (ValueError, OSError) as error:
        return _refused(str(error), arguments.json)
    progress = ProgressLine(len(pairs))
    results: list[dict[str, Any]] = []
    status = FINE
    for source, destination in pairs:
        progress.begin(source.label)
        result, code = _convert_one(
            arguments, source, destination, metadata, options, progress, comm
        )
        progress.end()
        progress.clear()
        status = max(status, code)
        results.append(result)
        if not arguments.json:
            _report(result)
    if arguments.json:
        print(json.dumps(results if several or not results else results[0], indent=2))
    elif not pairs:
        say("nothing to do: all files are there already")
    elif several:
        failed = sum(result["error"] is not None for result in results)
        say(f"{len(results)} files: {len(results) - failed} converted, {failed} failed")
    return status


def _convert_one(
    arguments: argparse.Namespace,
    source: Source,
    destination: str,
    metadata: dict[str, str],
    options: dict[str, str],
    progress: ProgressLine,
    comm: Any,
) -> tuple[dict[str, Any], int]:
    """What became of one file, and the exit status it deserves."""
    paths = {"source": source.label, "destination": destination}
    try:
        reading = reading_options(arguments)
        function = convert if comm is None else functools.partial(_parallel_convert, comm)
        with source.opened() as path:
            number = by_first_rank(comm, lambda: _number_from_name(path, metadata, reading))
            os.makedirs(os.path.dirname(destination) or ".", exist_ok=True)
            conversion = function(
                path,
                destination,
                arguments.format,
                arguments.precision,
                check_checksum=not arguments.ignore_checksum,
                check_group=not arguments.ignore_group,
                number=arguments.number,
                strip_signs=arguments.strip_signs,
                reunitarize=arguments.reunitarize,
                open_boundaries=arguments.open_boundaries,
                metadata=metadata | number,
                options=options,
                progress=progress.part,
                **reading,
            )
    except (FormatError, ValueError, OSError, MemoryError) as error:
        code = CHECK_FAILED if isinstance(error, CheckError) else UNUSABLE
        message = str(error) or type(error).__name__
        return {**paths, **_NOTHING, "error": message}, code
    if number:
        conversion.warnings.append(
            f"configuration number {number['SEQUENCE_NUMBER']} taken from the file's name"
        )
    return {**paths, **asdict(conversion), "error": None}, FINE


def _parallel_convert(
    comm: Any, *arguments: Any, progress: Progress, number: int | None, **options: Any
) -> Conversion:
    from .. import parallel

    return parallel.convert(comm, *arguments, **options)


_NOTHING: dict[str, Any] = dict.fromkeys(Conversion.__dataclass_fields__)


def _number_from_name(
    source: str, metadata: dict[str, str], reading: dict[str, Any]
) -> dict[str, str]:
    """The configuration number in the name, for files that do not hold one."""
    number = number_in_name(source)
    if number is None or "SEQUENCE_NUMBER" in metadata:
        return {}
    if is_field(source, reading["layout"]):
        stored = field_numbers(source) if field_format(source) == "hdf5" else []
        if stored or read_field(source, check_checksum=False).number is not None:
            return {}
    elif number_of(read_header(source, **reading).metadata) is not None:
        return {}
    return {"SEQUENCE_NUMBER": str(number)}


def _pairs(
    arguments: argparse.Namespace, *, on_ranks: bool = False
) -> tuple[list[tuple[Source, str]], bool]:
    """(source, destination) of every file still to be written, and whether the destination is a
    directory; `on_ranks` says whether several ranks are to read each source.

    Raises:
        ValueError: two files would get the same name, or files are there already.
    """
    chosen = expand(arguments.source)
    if not arguments.json:
        for path, reason in chosen.skipped:
            say(f"skipped {printable(path)}: {printable(reason)}", sys.stderr)
    destination = arguments.destination
    maker = getattr(arguments, "maker", None)
    sources = [source for path in chosen.files for source in sources_of(path, maker)]
    if on_ranks and not all(isinstance(source, FromFile) for source in sources):
        raise ValueError(
            "--mpi shares the work on files that are there: make those of a file of seeds with "
            "`mpirun flowmc regenerate`"
        )
    several = chosen.many or len(sources) > 1 or os.path.isdir(destination)
    if not sources:
        raise ValueError(f"no configuration file in {', '.join(arguments.source)}")
    if not several:
        pairs = [(sources[0], destination)]
    else:
        Path(destination).mkdir(parents=True, exist_ok=True)
        suffix = format_named(arguments.format).suffix or f".{arguments.format}"
        names = [_name_below(source, suffix) for source in sources]
        doubles = sorted(name for name, count in Counter(names).items() if count > 1)
        if doubles:
            raise ValueError(
                f"several sources would be written to {', '.join(doubles[:3])}: convert them to "
                "different directories"
            )
        pairs = [
            (source, os.path.join(destination, name))
            for source, name in zip(sources, names, strict=True)
        ]
    if not arguments.json:
        for left in unfinished(destination):
            say(f"note: {printable(str(left))}: {UNFINISHED}", sys.stderr)
    existing = arguments.existing or ("refuse" if several else "replace")
    there = [path for _, path in pairs if os.path.lexists(path)]
    if there and existing == "refuse":
        raise ValueError(
            f"{there[0]} is there already{f' (and {len(there) - 1} more)' if there[1:] else ''}: "
            "choose another directory, or --existing skip or replace"
        )
    if existing == "skip":
        pairs = [(source, path) for source, path in pairs if not os.path.lexists(path)]
    return pairs, several


def _name_below(source: Source, suffix: str) -> str:
    """The name of a converted file below its directory: configurations that are made may have a
    directory for each chain."""
    name = converted_name(source.name, suffix)
    is_file = isinstance(source, FromFile)
    return name if is_file else os.path.join(os.path.dirname(source.name), name)


def _report(result: dict[str, Any]) -> None:
    if result["error"] is not None:
        say(f"error: {printable(result['error'])}", sys.stderr)
        return
    source, destination = printable(result["source"]), printable(result["destination"])
    for warning in result["warnings"]:
        say(f"warning: {source}: {printable(warning)}", sys.stderr)
    say(
        f"{source} ({result['source_format']}, {result['source_precision']} bit) -> "
        f"{destination} ({result['format']}, {result['precision']} bit)"
    )


def _refused(message: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message}, indent=2))
    else:
        say(f"error: {printable(message)}", sys.stderr)
    return UNUSABLE
