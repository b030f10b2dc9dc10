"""A mutation fuzzer for the readers: damaged files must be refused, quickly and in little memory.

    python tests/adapters/fuzzing.py --cases 200000 --seed 1 [--format nersc] [--keep FOLDER]
    python tests/adapters/fuzzing.py --seed 1 --format nersc --only 1234

Every case is a function of (format, seed, number). It is read by `read_header` and, if that comes
back, by `read` and `inspect`, which may return or raise `FormatError`, nothing else, within a time
and a memory limit, and leave no file open. Cases run in child processes, so that crashes, hangs
inside a library and runaway allocations are found, too. Files of failures are kept.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "adapters")]

import flowmc_adapters  # noqa: E402
from flowmc_adapters import CheckError, FormatError  # noqa: E402
from fuzz_mutations import mutated  # noqa: E402
from fuzz_seeds import Seed, all_seeds  # noqa: E402

SECONDS = 2.0
MEMORY = 256 * 2**20
_HANG = 20.0  # for a library that does not come back, so that no Python code runs
_BATCH = 5000
OUTCOMES = ("refused", "refused in the links", "check failed", "read", "failures")


class TooLong(BaseException):
    """Not an Exception: no reader may catch it."""


class Failure(Exception):
    """What a reader must not do."""


def case(format: str, seed: int, number: int, seeds: dict[str, list[Seed]]) -> tuple[Seed, str]:
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
    return Seed(format, chosen.name, files, chosen.payload, chosen.dims), how


def examine(path: Path, dims: tuple[int, ...] | None) -> str:
    """Read a file in all ways; returns the outcome, raises whatever a reader should not."""
    try:
        flowmc_adapters.read_header(path, dims=dims)
    except FormatError as error:
        _require_good(error, path)
        _require_refusal(path, dims)
        return "refused"
    found = None
    try:
        found = flowmc_adapters.read(path, dims=dims)
        outcome = "read"
    except FormatError as error:
        _require_good(error, path)
        outcome = "check failed" if isinstance(error, CheckError) else "refused in the links"
    report = flowmc_adapters.inspect(path, dims=dims)
    json.dumps(report, allow_nan=False)
    _require_memory(str(report["error"]))
    if found is not None:
        if report["error"] is not None:
            raise Failure(f"read, but inspect says {report['error']}")
        if report["dims"] != list(found.dims):
            raise Failure(f"extents {found.dims}, but inspect says {report['dims']}")
        if found.checksum is not None and found.checksum.binding and not found.checksum.ok:
            raise Failure("a wrong checksum went unnoticed")
    else:
        try:
            flowmc_adapters.read(path, dims=dims, check_checksum=False)
        except FormatError as error:
            _require_good(error, path)
    return outcome


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


def _require_refusal(path: Path, dims: tuple[int, ...] | None) -> None:
    """For some of the refused files only: `inspect` agrees and does not raise."""
    if path.stat().st_size % 8 == 0:
        report = flowmc_adapters.inspect(path, dims=dims)
        # A plain array is no gauge field, but a sound file
        if report["error"] is None and not report["warnings"]:
            raise Failure("refused, but inspect finds nothing wrong")


def run_case(files: dict[str, bytes], dims: tuple[int, ...] | None, folder: Path) -> str:
    """Outcome of one case, with the reason after a colon if it is a failure."""
    descriptors = len(os.listdir("/proc/self/fd"))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / next(iter(files))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        outcome = examine(path, dims)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if len(os.listdir("/proc/self/fd")) > descriptors:
            raise Failure("a file was left open")
    except BaseException as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"failures: {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    finally:
        for name in files:
            (folder / name).unlink(missing_ok=True)
    return outcome


def _alarm(*_: object) -> None:
    raise TooLong


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


class Campaign:
    """Many cases of one format.

    Args:
        format: name of the format.
        seed: of the random numbers.
        keep: where the files of failures go.
    """

    def __init__(
        self, format: str, seed: int, seeds: dict[str, list[Seed]], keep: Path | None
    ) -> None:
        self.format, self.seed, self.seeds, self.keep = format, seed, seeds, keep
        self.counts: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="fuzzing", dir=base))
        self._progress = mmap.mmap(-1, 8)

    def run(self, first: int, stop: int) -> None:
        """Cases first <= number < stop."""
        try:
            while first < stop:
                first = self._batch(first, min(stop, first + _BATCH))
        finally:
            shutil.rmtree(self._folder)

    def _batch(self, first: int, stop: int) -> int:
        """A child process for some cases; returns the number to go on with."""
        out, into = os.pipe()
        self._progress[:] = struct.pack("q", first)
        child = os.fork()
        if child == 0:
            os.close(out)
            self._child(first, stop, into)
        os.close(into)
        with open(out, "rb", buffering=0) as results:
            status, text = self._watch(child, results)
        for line in text.decode().splitlines():
            found = json.loads(line)
            self.counts.update(found["counts"])
            for number, reason in found["failures"]:
                self._fail(number, reason)
        if status == 0:
            return stop
        (number,) = struct.unpack("q", self._progress[:])
        self._fail(number, f"failures: the process died, status {status}")
        self.counts["failures"] += 1
        return int(number) + 1

    def _watch(self, child: int, results) -> tuple[int, bytes]:  # type: ignore[no-untyped-def]
        text, last, since = b"", self._progress[:], time.monotonic()
        os.set_blocking(results.fileno(), False)
        while True:
            part = results.read()
            text += part or b""
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status, text + (results.read() or b"")
            if self._progress[:] != last:
                last, since = self._progress[:], time.monotonic()
            elif time.monotonic() - since > _HANG:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)

    def _child(self, first: int, stop: int, into: int) -> None:
        signal.signal(signal.SIGALRM, _alarm)
        warnings.simplefilter("ignore")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for seed in self.seeds[self.format]:  # imports, caches: not the fault of any case
            run_case(seed.files, seed.dims, self._folder)
        _limit_memory()
        for number in range(first, stop):
            self._progress[:] = struct.pack("q", number)
            seed, _ = case(self.format, self.seed, number, self.seeds)
            outcome = run_case(seed.files, seed.dims, self._folder)
            kind, _, reason = outcome.partition(": ")
            failed = [(number, reason)] if reason else []
            line = {"counts": {kind: 1}, "failures": failed}
            os.write(into, json.dumps(line).encode() + b"\n")
        os._exit(0)

    def _fail(self, number: int, reason: str) -> None:
        self.failures.append((number, reason))
        seed, how = case(self.format, self.seed, number, self.seeds)
        print(
            f"FAILURE {self.format} --seed {self.seed} --only {number}: {reason}\n"
            f"  from seed file '{seed.name}': {how}",
            flush=True,
        )
        if self.keep is not None and len(self.failures) <= 100:
            folder = self.keep / f"{self.format}-{self.seed}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in seed.files.items():
                (folder / name).write_bytes(content)
            print(f"  kept in {folder}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", help="this one only")
    parser.add_argument("--only", type=int, help="this case only, with its traceback")
    parser.add_argument("--keep", type=Path, help="folder for the files of failures")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    seeds = all_seeds()
    if chosen.only is not None:
        seed, how = case(chosen.format, chosen.seed, chosen.only, seeds)
        print(f"seed file '{seed.name}': {how}")
        folder = chosen.keep or Path(tempfile.mkdtemp(prefix="fuzzing"))
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seed.files.items():
            (folder / name).write_bytes(content)
        path = folder / next(iter(seed.files))
        print(f"written to {path}", flush=True)
        print(examine(path, seed.dims))
        return 0
    names = [chosen.format] if chosen.format else [name for name in seeds if seeds[name]]
    share, failed = -(-chosen.cases // len(names)), 0
    print(f"{'format':<10}" + "".join(f"{outcome:>22}" for outcome in OUTCOMES) + f"{'s':>8}")
    for name in names:
        begin = time.monotonic()
        campaign = Campaign(name, chosen.seed, seeds, chosen.keep)
        campaign.run(0, share)
        counts = "".join(f"{campaign.counts[outcome]:>22}" for outcome in OUTCOMES)
        print(f"{name:<10}{counts}{time.monotonic() - begin:>8.1f}", flush=True)
        if sum(campaign.counts.values()) != share:
            raise RuntimeError(f"{share} cases asked for, {campaign.counts} counted")
        failed += len(campaign.failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
