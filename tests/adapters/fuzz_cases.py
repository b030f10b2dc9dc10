"""One case of `fuzzing`: a damaged file, and what a reader may do with it."""

from __future__ import annotations

import json
import os
import re
import signal
import traceback
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import flowmc_adapters
from flowmc_adapters import CheckError, Configuration, FormatError
from fuzz_mutations import mutated
from fuzz_seeds import Seed, store

# Of processor time, so that other programs on the machine make no difference
SECONDS = 2.0


class TooLong(BaseException):
    """Not an Exception: no reader may catch it."""


class Failure(Exception):
    """What a reader must not do."""


def damaged(format: str, seed: int, number: int, seeds: dict[str, list[Seed]]) -> tuple[Seed, str]:
    """A damaged file with its companions, and what was done to it."""
    random = Random(f"{format}/{seed}/{number}")
    chosen = random.choice(seeds[format])
    pool = [other.main for others in seeds.values() for other in others[:3]]
    files = dict(chosen.files)
    names = list(files)
    name = names[0] if len(names) == 1 or random.random() < 0.7 else random.choice(names)
    payload = chosen.payload if name == names[0] else (0, 0)
    files[name], how = mutated(random, files[name], payload, pool)
    if len(names) > 1 and random.random() < 0.05:
        del files[random.choice(names[1:])]
        how += ", a companion is missing"
    dims, layout = chosen.dims, None
    if random.random() < 0.05:
        dims = random.choice(((2, 2, 2, 2), (2, 2, 2, 4), (2, 2), (0, 1, 2, 3), (2**62,) * 4, None))
    if random.random() < 0.1 and format in flowmc_adapters.formats():
        layout = random.choice((*flowmc_adapters.formats()[format].layouts, None))
    return replace(chosen, format=format, files=files, dims=dims, layout=layout), how


def examine(path: Path, seed: Seed) -> str:
    """Read a file in all ways; returns the outcome, raises whatever a reader should not."""
    if seed.format == "fields":
        return _examine_field(path)
    how = {"dims": seed.dims, "layout": seed.layout}
    try:
        flowmc_adapters.read_header(path, **how)
    except FormatError as error:
        _require_good(error, path)
        if path.stat().st_size % 8 == 0:  # of some, to save time
            _require_refusal(flowmc_adapters.inspect(path, **how))
        return "refused"
    found = None
    try:
        found = flowmc_adapters.read(path, **how)
        outcome = "read"
    except FormatError as error:
        _require_good(error, path)
        outcome = "check failed" if isinstance(error, CheckError) else "refused in the links"
    report = flowmc_adapters.inspect(path, **how)
    json.dumps(report, allow_nan=False)
    _require_memory(str(report["error"]))
    if found is not None:
        if report["error"] is not None:
            raise Failure(f"read, but inspect says {report['error']}")
        if report["dims"] != list(found.dims):
            raise Failure(f"extents {found.dims}, but inspect says {report['dims']}")
        if found.checksum is not None and found.checksum.binding and not found.checksum.ok:
            raise Failure("a wrong checksum went unnoticed")
        _convert(path, seed, found)
    else:
        try:
            flowmc_adapters.read(path, check_checksum=False, **how)
        except FormatError as error:
            _require_good(error, path)
    return outcome


def _convert(path: Path, seed: Seed, found: Configuration) -> None:
    """What can be read is converted: either that is refused, or the copy is sound."""
    digest = zlib.crc32(seed.main)
    writable = [name for name, format in flowmc_adapters.formats().items() if format.writable]
    target, copy = writable[digest % len(writable)], path.with_name("copy")
    try:
        flowmc_adapters.convert(path, copy, target, dims=seed.dims, layout=seed.layout)
        again = flowmc_adapters.read(copy)
    except FormatError as error:
        _require_memory(error.reason)
        if Path(error.path) == copy and copy.exists():
            raise Failure(f"a converted file is not readable: {error}") from error
    else:
        if again.links.tobytes() != found.links.astype(again.links.dtype).tobytes():
            raise Failure(f"other links after conversion to {target}")
        inspection = flowmc_adapters.examine(copy)
        if inspection.status:
            raise Failure(f"converted to {target}, but inspect says {inspection.reason}")
    finally:
        for written in path.parent.glob("copy*"):
            written.unlink()


def _require_good(error: FormatError, path: Path) -> None:
    """The message names the file, the place lies in it, and memory was not the trouble."""
    if Path(error.path).parent != path.parent or not error.reason:
        raise Failure(f"no file or reason in {error}") from error
    place = Path(error.path)
    size = place.stat().st_size if place.exists() else 0
    if error.offset is not None and not 0 <= error.offset <= size:
        raise Failure(f"impossible offset in {error}") from error
    _require_memory(error.reason)


def _require_memory(reason: str) -> None:
    # The HDF5 library refuses by itself to get memory for a size that it then finds damaged
    if "HDF5 library" not in reason and re.search("memory|allocate", reason, re.IGNORECASE):
        raise Failure(f"memory: {reason}")


def _require_refusal(report: dict[str, Any]) -> None:
    json.dumps(report, allow_nan=False)
    # A plain array is no gauge field, but a sound file
    if report["error"] is None and not report["warnings"] and report["kind"] in (None, "gauge"):
        raise Failure("refused, but inspect finds nothing wrong")


def _examine_field(path: Path) -> str:
    """The same for files of scalar and U(1) fields."""
    report = flowmc_adapters.inspect(path)
    json.dumps(report, allow_nan=False)
    _require_memory(str(report["error"]))
    outcome = "refused"
    try:
        numbers = flowmc_adapters.field_numbers(path)
    except FormatError as error:
        _require_good(error, path)
        numbers = []
    for number in [None, *numbers[:3]]:
        try:
            field = flowmc_adapters.read_field(path, number=number)
        except FormatError as error:
            _require_good(error, path)
            if isinstance(error, CheckError):
                outcome = "check failed"
            continue
        if field.checksum is not None and not field.checksum.ok:
            raise Failure("a wrong checksum went unnoticed")
        outcome = "read"
    return outcome


def run(seed: Seed, folder: Path) -> str:
    """Outcome of one case, with the reason after a colon if it is a failure."""
    descriptors = len(os.listdir("/proc/self/fd"))
    path = store(seed, folder)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = examine(path, seed)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if len(os.listdir("/proc/self/fd")) > descriptors:
            raise Failure("a file was left open")
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"failures: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    finally:
        for name in seed.files:
            (folder / name).unlink(missing_ok=True)
    return outcome


def alarm(*_: object) -> None:
    """Handler of SIGPROF."""
    raise TooLong
