"""What is said never decides what is done: full, closed and broken standard streams."""

import shlex
import subprocess
import sys

import pytest

from tests.processes import environment, flowmc
from tests.run.small_runs import config, digests, write


def shell(line, cwd, **more):
    """Run a command line of a shell, in which ``flowmc`` is the command."""
    return subprocess.run(
        ["sh", "-c", f'flowmc() {{ "{sys.executable}" -m flowmc.cli "$@"; }}\n{line}'],
        env=environment(PYTHONUNBUFFERED="") | more,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    write(folder / "a.toml", config())
    done = subprocess.run(
        flowmc("run", "a.toml", "--output", "reference"),
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("finished 25 updates in reference\n")
    return folder


@pytest.mark.parametrize("stderr", ["/dev/full", "&-"])
def test_a_run_goes_on_without_standard_error(reference, stderr):
    name = "full" if stderr == "/dev/full" else "closed"
    if name == "full":
        command = shlex.join(flowmc("run", "a.toml", "--output", name))
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>{stderr}"], env=environment(), cwd=reference
        )
    else:  # an interpreter that begins without
        done = shell(f"flowmc run a.toml --output {name} 2>{stderr}", reference)
    assert done.returncode == 0
    assert digests(reference / name) == digests(reference / "reference")


def test_standard_output_that_is_full_or_closed_is_one_sentence(reference):
    for unbuffered in ("", "1"):
        done = shell("flowmc zoo --json >/dev/full", reference, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 2
        assert done.stderr == "flowmc: error: standard output: No space left on device\n"
    done = shell("flowmc run --help >/dev/full", reference, PYTHONUNBUFFERED="")
    assert done.returncode == 2 and "standard output: No space left" in done.stderr
    done = shell("flowmc status reference >&-", reference)
    assert done.returncode == 0 and done.stderr == ""
    done = shell("flowmc status reference >/dev/full 2>/dev/full", reference)
    assert done.returncode == 2


def test_a_reader_that_goes_away_is_no_error(reference):
    done = shell("{ flowmc zoo --json; echo $? >&2; } | true", reference)
    assert done.stderr == "0\n"
