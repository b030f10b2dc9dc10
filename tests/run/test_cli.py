"""The command line: quick where it can be, one sentence where it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowmc
from flowmc.cli import main

ROOT = Path(__file__).parents[2]


def python(code, *arguments):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


LIGHT = """
import sys
from flowmc.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print("torch" in sys.modules, status)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["inspect", "--help"], 0),
        (["inspect", "/no/such/file"], 2),
        (["convert", "/no/such/file", "/tmp/x", "--format", "nersc"], 2),
        (["frobnicate"], 2),
    ],
)
def test_light_commands_do_not_import_torch(arguments, status):
    done = python(LIGHT, *arguments)
    assert done.stdout.splitlines()[-1] == f"False {status}", done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"flowmc {flowmc.__version__}\n"


@pytest.mark.parametrize("name", ["run", "step", "train", "evaluate", "correlate", "report", "zoo"])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"flowmc {name}" in capsys.readouterr().out


def test_unusable_input_is_one_sentence(tmp_path, capsys):
    assert main(["run", str(tmp_path / "none.toml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("flowmc: error: ") and said.count("\n") == 1
    (tmp_path / "a.toml").write_text("[theory\n")
    assert main(["run", str(tmp_path / "a.toml")]) == 2
    assert "not a TOML file" in capsys.readouterr().err
