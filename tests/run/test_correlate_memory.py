"""`flowmc correlate` holds a few configurations, however many the ensemble has."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowmc.config.toml_text import toml_text

ROOT = Path(__file__).parents[2]
EXTENT, BATCH = 384, 4
MEBIBYTES = EXTENT * EXTENT * 8 / 2**20  # of one configuration: 1.125

_MEASURE = """
import sys
from flowmc.cli import main
status = main(sys.argv[1:])
# Not ru_maxrss, which begins with that of the process that started this one
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(status, peak)
"""

# What is freed goes back at once: glibc otherwise keeps up to 60 MiB, more or less as the
# threads happen to allocate, and the peak would say little of what was held.
_ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000",
}


def peak_of(tmp_path, count, several=False):
    """Return the peak memory in MiB of the analysis of an ensemble, or of it as two."""
    folder = tmp_path / f"files{count}"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        np.save(folder / f"phi.{number}.npy", rng.normal(size=(EXTENT, EXTENT)) / 3)
    source = {"files": str(folder), "batch": BATCH, "device": "cpu"}
    tables = {
        "theory": {"action": "free", "lattice": [EXTENT, EXTENT], "m2": 1.0},
        "ensemble": source,
        "measure": {"observables": ["phi2", "susceptibility"]},
        "target": [{"m2": 1.0001}],
        "derivative": [{"method": "difference", "coupling": "m2", "steps": [0.0001]}],
        "analysis": {"report": False},
    }
    if several:
        del tables["derivative"]
        tables["ensemble"] = [
            {**source, "name": "a", "last": count // 2 - 1},
            {**source, "name": "b", "m2": 1.0002, "first": count // 2},
        ]
    config = tmp_path / f"{count}.toml"
    config.write_text(toml_text(tables))
    command = ["correlate", str(config), "--output", str(tmp_path / f"out{count}"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, peak = done.stdout.splitlines()[-1].split()
    assert status == "0"
    return float(peak)


@pytest.mark.parametrize("several", [False, True])
def test_memory_does_not_grow_with_the_ensemble(tmp_path, several):
    """80 configurations more, 90 MiB, add less than 30 MiB (measured: 1)."""
    few, many = (peak_of(tmp_path, count, several) for count in (30, 110))
    assert many - few < 30 <= MEBIBYTES * 80 / 3
