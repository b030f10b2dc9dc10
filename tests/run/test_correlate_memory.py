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
for config in sys.argv[1:]:
    # The peak begins anew; not ru_maxrss, which cannot.
    open("/proc/self/clear_refs", "w").write("5")
    status = main(["correlate", config, "--output", config + ".out", "--json"])
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
    print("peak", status, peak)
"""

# What is freed goes back at once: glibc otherwise keeps up to 60 MiB, more or less as the
# threads happen to allocate, and the peak would say little of what was held.
_ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000",
}


def write_configuration(folder, count, several):
    """Write an ensemble, and the configuration of its analysis as one or two; return the path."""
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
    path = folder.with_suffix(".toml")
    path.write_text(toml_text(tables))
    return str(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_ensemble(tmp_path):
    """40 configurations more, 45 MiB, add less than 15 MiB (measured: 1), as one or as two."""
    configurations = [
        write_configuration(tmp_path / f"{several}{count}", count, several)
        for several in (False, True)
        for count in (12, 30, 70)  # the first run leaves what later ones use again
    ]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *configurations],
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("peak ")]
    assert [status for _, status, _ in found] == ["0"] * 6
    _, few, many, _, few_of_two, many_of_two = peaks = [float(peak) for *_, peak in found]
    assert many - few < 15 <= MEBIBYTES * 40 / 3, peaks
    assert many_of_two - few_of_two < 15, peaks
