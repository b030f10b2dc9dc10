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


def outcomes(text, format):
    (row,) = re.findall(rf"(?m)^{format} +(.*)$", text)
    return [int(number) for number in row.split()[:5]]


def test_a_few_cases_of_every_format(tmp_path):
    text, status = fuzz(tmp_path, "--cases", "3600", "--seed", "1")
    assert status == 0, text
    for name in (*formats(), "fields"):
        refused, _, check_failed, read, failures = outcomes(text, name)
        assert failures == 0
        # Neither only garbage nor only harmless scratches
        assert refused > 20
        assert refused + check_failed > 0
        assert read > 0


@pytest.mark.slow
def test_many_cases_of_every_format(tmp_path):
    text, status = fuzz(tmp_path, "--cases", "240000", "--seed", "7")
    assert status == 0, text
    assert sum(sum(outcomes(text, name)) for name in (*formats(), "fields")) >= 240_000


def test_the_same_cases_again(tmp_path):
    first, second = (fuzz(tmp_path, "--cases", "200", "--format", "nersc")[0] for _ in range(2))
    assert outcomes(first, "nersc") == outcomes(second, "nersc")


# What a reader must not do, planted, and how the fuzzer says that it saw it.
PLANTED = {
    "another exception": ("raise KeyError('DIMENSION_1')", "KeyError"),
    "an endless loop": ("while True: pass", "TooLong"),
    "runaway memory": ("bytearray(2**33)", "MemoryError"),
    "an open file": ("open(path, 'rb').__class__; leaked.append(open(path, 'rb'))", "left open"),
    "a crash": ("import os; os.kill(os.getpid(), 11)", "the process died"),
}


@pytest.mark.parametrize("fault", list(PLANTED))
def test_faults_are_seen(tmp_path, fault):
    """A reader that goes wrong where a lattice is larger than that of the seeds."""
    statement, message = PLANTED[fault]
    kept = str(tmp_path / "kept")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "leaked = []\n"
        "def plant(check_size):\n"
        "    def checked(path, layout, file_bytes=None):\n"
        "        if layout.dims[0] > 2:\n"
        f"            {statement}\n"
        "        return check_size(path, layout, file_bytes)\n"
        "    return checked\n"
    )
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(FUZZER.parent)!r}]\n"
        "import fuzz_cases, fuzzing, sitecustomize\n"
        "from flowmc_adapters import nersc\n"
        "nersc.check_size = sitecustomize.plant(nersc.check_size)\n"
        "fuzz_cases.SECONDS = 0.2\n"
        f"arguments = ['--cases', '400', '--format', 'nersc', '--keep', {kept!r}]\n"
        "sys.exit(fuzzing.main(arguments))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stdout
    assert os.listdir(kept)


def test_a_size_that_is_not_checked_is_seen(tmp_path):
    """Without the check of the size truncated files are found only while reading."""
    program = (
        f"import sys; sys.path.insert(0, {str(FUZZER.parent)!r})\n"
        "import fuzzing\n"
        "from flowmc_adapters import nersc\n"
        "nersc.check_size = lambda *_: None\n"
        "sys.exit(fuzzing.main(['--cases', '2000', '--format', 'nersc']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search("FAILURE nersc --seed 1 --only [0-9]+: .*(Memory|memory|array)", done.stdout)
