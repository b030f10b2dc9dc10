"""Checking and converting large configuration files, beside a plain copy of the same file.

    python examples/benchmarks/file_throughput.py [--quick] [--rounds 3] [--directory DIR]

Every contender is a process of its own, as a user would start it, and they take turns: a plain
sequential copy (read 8 MiB, write 8 MiB, flush at the end), ``inspect`` (checksum, plaquettes, link
trace, group membership of every link) and ``convert`` (the same, and the file written in another
format, flushed).  Peak resident memory comes from the operating system.  Files are removed again.
Before each turn there is a pause, so that the memory of the file just removed is given up by all
alike: on a virtual machine new pages cost several times as much as pages in use, and whoever comes
right after a removal has the advantage.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flowmc_adapters.layout_format import save
from flowmc_adapters.links import LinkSource
from flowmc_adapters.registry import format_named
from machine import print_header, print_row, processor

# Lattice, precision, format of the file, format it is converted to
CASES = [
    ((48, 48, 48, 96), 32, "nersc", "ildg"),
    ((48, 48, 48, 48), 64, "ildg", "nersc"),
    ((48, 48, 48, 48), 64, "openqcd", "ildg"),
    ((48, 48, 48, 48), 64, "ildg", "hdf5"),
]
QUICK = [((16, 16, 16, 16), 64, "ildg", "nersc")]

COPY = """
import os, sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    while block := source.read(2**23):
        target.write(block)
    target.flush()
    os.fsync(target.fileno())
"""


class Random(LinkSource):
    """A field of random SU(3) links that is made as it is read."""

    def __init__(self, dims, precision):
        self.dims, self.nc, self.precision = dims, 3, precision
        rng = np.random.default_rng(1)
        unitary, _ = np.linalg.qr(rng.normal(size=(4099, 3, 3, 2)) @ [1, 1j])
        roots = np.linalg.det(unitary)[:, None, None] ** (1 / 3)
        self.pool = (unitary / roots).astype(self.complex_type)

    def read(self, slab, out, checksum=None):
        t, start, stop = slab
        for z, plane in zip(range(start, stop), out, strict=True):
            rng = np.random.default_rng((t, z))  # the same, whatever the slab
            plane[...] = self.pool[rng.integers(len(self.pool), size=plane.shape[:-2])]

    def _not_finite(self, slab, site):
        raise AssertionError


def run(words):
    """Seconds of wall clock and peak resident memory in MB of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    # The figure that the system gives at the end begins with that of the parent
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = max(peak, int(line.split()[1]) / 1024)
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed with status {process.returncode}")
    return time.perf_counter() - start, peak


def measure(folder, dims, precision, name, target, rounds, pause):
    path, other = folder / "conf", folder / "other"
    source = Random(dims, precision)
    frame, _ = format_named(name).plan(path, source, {}, None, {})
    save(path, source, frame)
    command = [sys.executable, "-m", "flowmc_adapters"]
    contenders = {
        "copy": [sys.executable, "-c", COPY, str(path), str(other)],
        "inspect": [*command, "inspect", str(path)],
        "convert": [*command, "convert", str(path), str(other), "--format", target],
    }
    seconds = {contender: [] for contender in contenders}
    memory = dict.fromkeys(contenders, 0.0)
    run(contenders["inspect"])  # compiled code and file caches
    for _ in range(rounds):
        for contender, words in contenders.items():
            other.unlink(missing_ok=True)
            time.sleep(pause)
            elapsed, resident = run(words)
            seconds[contender].append(elapsed)
            memory[contender] = max(memory[contender], resident)
    gigabytes = path.stat().st_size / 1e9
    path.unlink()
    other.unlink(missing_ok=True)
    medians = {contender: statistics.median(times) for contender, times in seconds.items()}
    cells = ["x".join(map(str, dims)), str(precision), f"{name} -> {target}", f"{gigabytes:.2f}"]
    for contender, times in seconds.items():
        cells.append(f"{medians[contender]:.2f} ({min(times):.2f})")
    for contender in ("inspect", "convert"):
        cells.append(f"{medians['copy'] / medians[contender]:.2f}")
        cells.append(f"{memory[contender]:.0f}")
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small file, to see that it works")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, help="seconds before each turn (default: 6)")
    parser.add_argument("--directory", help="where to put the files (default: the system's)")
    arguments = parser.parse_args()
    pause = arguments.pause if arguments.pause is not None else 0.0 if arguments.quick else 6.0
    print(
        f"{processor()}; seconds of wall clock, median (best); copy = 1 in the ratios; MB resident"
    )
    print_header(
        [
            "lattice",
            "bit",
            "formats",
            "GB",
            "copy",
            "inspect",
            "convert",
            "copy/inspect",
            "MB",
            "copy/convert",
            "MB",
        ]
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        for case in QUICK if arguments.quick else CASES:
            print_row(measure(Path(folder), *case, arguments.rounds, pause))


if __name__ == "__main__":
    main()
