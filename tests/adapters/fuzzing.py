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
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "adapters")]

from fuzz_cases import alarm, damaged, examine, run  # noqa: E402
from fuzz_seeds import Seed, kept_seeds, store  # noqa: E402

MEMORY = 256 * 2**20
# Of wall clock, for a library that does not come back, so that no Python code runs, or that waits
_HANG = 60.0
_BATCH = 5000
_WARMING = 30
OUTCOMES = ("refused", "refused in the links", "check failed", "read", "failures")


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
        signal.signal(signal.SIGPROF, alarm)
        warnings.simplefilter("ignore")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        seeds = self.seeds[self.format]
        for seed in seeds[:: -(-len(seeds) // _WARMING)]:  # imports, caches: no case's fault
            run(seed, self._folder)
        _limit_memory()
        for number in range(first, stop):
            self._progress[:] = struct.pack("q", number)
            seed, _ = damaged(self.format, self.seed, number, self.seeds)
            outcome = run(seed, self._folder)
            kind, _, reason = outcome.partition(": ")
            failed = [(number, reason)] if reason else []
            line = {"counts": {kind: 1}, "failures": failed}
            os.write(into, json.dumps(line).encode() + b"\n")
        os._exit(0)

    def _fail(self, number: int, reason: str) -> None:
        self.failures.append((number, reason))
        seed, how = damaged(self.format, self.seed, number, self.seeds)
        print(
            f"FAILURE {self.format} --seed {self.seed} --only {number}: {reason}\n"
            f"  from seed file '{seed.name}': {how}",
            flush=True,
        )
        if self.keep is not None and len(self.failures) <= 100:
            folder = self.keep / f"{self.format}-{self.seed}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            store(seed, folder)
            print(f"  kept in {folder}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", help="this one only")
    parser.add_argument("--only", type=int, help="this case only, with its traceback")
    parser.add_argument("--keep", type=Path, help="folder for the files of failures")
    parser.add_argument("--seeds", type=Path, help="file that keeps the sound files between calls")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    seeds = kept_seeds(chosen.seeds)
    if chosen.only is not None:
        seed, how = damaged(chosen.format, chosen.seed, chosen.only, seeds)
        print(f"seed file '{seed.name}': {how}")
        folder = chosen.keep or Path(tempfile.mkdtemp(prefix="fuzzing"))
        folder.mkdir(parents=True, exist_ok=True)
        path = store(seed, folder)
        print(f"written to {path}, read with {seed.dims=}, {seed.layout=}", flush=True)
        print(examine(path, seed))
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
