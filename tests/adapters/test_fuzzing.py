"""Damaged files of every format are refused: see `fuzzing`, which anyone can run for longer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flowmc_adapters
import pytest
from flowmc_adapters import formats

FUZZER = Path(__file__).with_name("fuzzing.py")


def fuzz(tmp_path, *arguments, source=Path(flowmc_adapters.__file__).parents[1]):
    """Output and status of the fuzzer, its own temporary files beside the others."""
    done = subprocess.run(
        [sys.executable, str(FUZZER), "--keep", str(tmp_path / "kept"), *arguments],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr, done.returncode


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Where the first of the processes leaves its seeds for the others."""
    return tmp_path_factory.mktemp("fuzzing") / "seeds"


def outcomes(text, format):
    (row,) = re.findall(rf"(?m)^{format} +(.*)$", text)
    return [int(number) for number in row.split()[:5]]


def test_a_few_cases_of_every_format(tmp_path, seeds):
    same = ["--seed", "1", "--seeds", str(seeds)]
    text, status = fuzz(tmp_path, "--cases", "600", *same)
    assert status == 0, text
    for name in (*formats(), "fields"):
        refused, _, check_failed, read, failures = outcomes(text, name)
        assert failures == 0
        # Neither only garbage nor only harmless scratches
        assert refused > 12
        assert refused + check_failed > 0
        assert read > 0
    # The same cases again, by another process.
    found = outcomes(text, "nersc")
    again, _ = fuzz(tmp_path, "--cases", str(sum(found)), *same, "--format", "nersc")
    assert outcomes(again, "nersc") == found


@pytest.mark.slow
def test_many_cases_of_every_format(tmp_path, share):
    cases = 240_000 // share
    text, status = fuzz(tmp_path, "--cases", str(cases), "--seed", "7")
    assert status == 0, text
    assert sum(sum(outcomes(text, name)) for name in (*formats(), "fields")) >= cases


# What a reader must not do, planted, and how the fuzzer says that it saw it.
PLANTED = {
    "raise KeyError('DIMENSION_1')": "KeyError",
    "while True: pass": "TooLong",
    "bytearray(2**33)": "MemoryError",
    "leaked.append(open(path, 'rb'))": "a file was left open",
    "os.kill(os.getpid(), 11)": "the process died",
}

PROGRAM = """
import os, sys
from pathlib import Path

sys.path.insert(0, os.environ["FUZZER"])
import fuzz_cases, fuzzing
from flowmc_adapters.nersc import archive as nersc

fuzz_cases.SECONDS = 0.2
sound, seeds, leaked = nersc.check_size, fuzzing.kept_seeds(Path(sys.argv[2])), []
for fault in sys.argv[3:]:
    def planted(path, layout, size, fault=compile(fault, "fault", "exec")):
        if layout.dims[0] > 2:  # larger than the lattices of the seeds
            exec(fault)
        sound(path, layout, size)

    nersc.check_size = planted
    campaign = fuzzing.Campaign("nersc", 1, seeds, Path(sys.argv[1]))
    campaign.run(0, 50)
    print("PLANTED", len(campaign.failures), "=", campaign.counts["failures"])
nersc.check_size = lambda *_: None
campaign = fuzzing.Campaign("nersc", 1, seeds, None)
campaign.run(0, 400)
print("UNCHECKED", len(campaign.failures))
"""


def test_faults_are_seen(tmp_path, seeds):
    """Readers that go wrong in all the ways there are, and one that believes any size."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "kept"), str(seeds), *PLANTED],
        env=os.environ
        | {
            "FUZZER": str(FUZZER.parent),
            "PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *parts, unchecked = done.stdout.split("PLANTED ")
    assert len(parts) == len(PLANTED)
    for number, (part, message) in enumerate(zip(parts, PLANTED.values(), strict=True)):
        assert re.search(rf"FAILURE nersc --seed 1 --only [0-9]+: .*{message}", part), message
        following = [*parts, unchecked][number + 1]
        count, counted = re.match("([0-9]+) = ([0-9]+)", following).groups()
        assert count == counted != "0"
    assert int(re.search("UNCHECKED ([0-9]+)", unchecked)[1]) > 0
    assert re.search("FAILURE .*(Memory|memory|array)", unchecked)
    assert os.listdir(tmp_path / "kept")
