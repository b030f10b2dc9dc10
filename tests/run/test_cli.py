"""The command line: quick where it can be, one sentence where it fails."""

import dataclasses
import importlib
import shutil
import subprocess
import sys

import pytest

import flowmc
from flowmc.cli import _COMMANDS, main
from flowmc.config.keys import written_parameters
from flowmc.config.kinds import KINDS
from flowmc.registry import BUILTIN, parameters, resolve, written_key
from tests.processes import ROOT, environment, forked


def fresh(*words):
    return [sys.executable, *map(str, words)]


def python(code, *arguments, start=fresh):
    return subprocess.run(
        start("-c", code, *arguments),
        env=environment(),
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
        ([], 2),
        *(([name, "--help"], 0) for name in _COMMANDS),
    ],
)
def test_light_commands_do_not_import_torch(arguments, status):
    done = python(LIGHT, *arguments)
    assert done.stdout.splitlines()[-1] == f"False {status}", done.stderr


KEYS = [
    ("run", "trajectory", "trajectroy", "[[update]] 1 (hmc): unknown key 'trajectroy'; did you"),
    ("run", "updates", "update", "[run]: unknown key 'update'; did you mean 'updates'?"),
    ("step", "[chains]", "[chain]", "unknown table [chain]; did you mean 'chains'?"),
    ("train", "kappa", "kapa", "[theory]: unknown key 'kapa'; did you mean 'kappa'?"),
    ("train", "[chains]\nseed", "[chains]\nsteppes", "[chains]: unknown key 'steppes'; did you me"),
    (
        "correlate",
        "[chains]",
        "[[derivate]]",
        "unknown table [derivate]; did you mean",
    ),
    ("free-energy", "seed = 1", "cuont = 1", "[chains]: unknown key 'cuont'; did you mean 'count'"),
]
CONFIG = """
[theory]
action = "phi4"
lattice = [4, 4]
kappa = 0.2
lambda = 0.022
[chains]
seed = 1
[[update]]
kernel = "hmc"
trajectory = 1.0
[run]
updates = 2
"""


@pytest.mark.parametrize(("command", "right", "wrong", "message"), KEYS)
def test_misspelt_keys_are_found_before_torch_is_imported(command, right, wrong, message, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(CONFIG.replace(right, wrong))
    more = {"step": ["in", "out", "--config"], "train": ["--output", "x"]}.get(command, [])
    done = python(LIGHT, command, *more, str(path))
    assert done.stdout.splitlines()[-1] == "False 2", done.stderr
    assert message in done.stderr


def test_misspelt_settings_are_found_before_torch_is_imported(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(CONFIG)
    done = python(LIGHT, "run", path, "--set", "run.update=3")
    assert done.stdout.splitlines()[-1] == "False 2", done.stderr
    assert "did you mean 'updates'" in done.stderr


@pytest.mark.parametrize(
    ("typed", "found", "missing"),
    [
        (["fr"], {"free-energy"}, {"run"}),
        (["init", "pro"], {"production"}, {"ladder"}),
        (["zoo", "u1_2d_b7.00"], {"u1_2d_b7.00", "u1_2d_b7.00_defect4_1.00_0.34"}, set()),
        (["run", "--re"], {"--resume"}, {"--reference"}),
        (["run", "my"], {"my.toml"}, {"other.toml"}),
    ],
)
def test_bash_completes_words_options_and_files(typed, found, missing, tmp_path, completion):
    (tmp_path / "my.toml").write_text("")
    (tmp_path / "other.toml").write_text("")
    ask = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_flowmc; '
    done = subprocess.run(
        ["bash", "-c", ask + 'printf "%s\\n" "${COMPREPLY[@]}"', completion, "flowmc", *typed],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    words = set(done.stdout.split())
    assert found <= words and not missing & words, done.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    done = python(LIGHT, "completion", "bash")
    *script, last = done.stdout.splitlines(keepends=True)
    assert last == "False 0\n", done.stderr
    path = tmp_path_factory.mktemp("completion") / "flowmc"
    path.write_text("".join(script))
    return path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_is_one_that_it_reads(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in _COMMANDS) and "resume" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script)
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NAMES = """
import sys, time
import flowmc
assert set(flowmc.__all__) <= set(dir(flowmc))
print("torch" in sys.modules, ":mod:`.kernels`" in flowmc.__doc__)
for name in flowmc.__all__:
    getattr(flowmc, name)
print(flowmc.sample is flowmc.chains.sample, flowmc.kernels.HMC.__name__)
"""


def test_the_package_has_its_main_names_and_imports_them_when_they_are_asked_for():
    done = python(NAMES)
    assert done.stdout.splitlines() == ["False True", "True HMC"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        flowmc.smaple  # noqa: B018


def test_misspelt_commands_get_a_hint(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reprot"])
    assert stopped.value.code == 2
    assert "unknown command 'reprot'; did you mean 'report'?" in capsys.readouterr().err


# What a constructor without a definition of its own takes, the source does not say.
SILENT = {"flowmc.flows:Identity"}


@pytest.mark.parametrize("kind", BUILTIN)
def test_keys_read_from_the_source_are_those_of_the_signature(kind):
    for name, target in BUILTIN[kind].items():
        found = written_parameters(target)
        keys = {written_key(key) for key in parameters(resolve(kind, name))}
        assert found == keys or (found is None and target in SILENT), name


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_tables_read_from_the_source_are_the_fields_of_their_dataclass(kind):
    for target in {one for table in KINDS[kind] for one in table.declared}:
        module, _, name = target.partition(":")
        fields = dataclasses.fields(getattr(importlib.import_module(module), name))
        assert written_parameters(target) == {written_key(field.name) for field in fields}, target


def test_a_module_beside_the_configuration_is_found(tmp_path):
    (tmp_path / "my_theory.py").write_text(
        "from flowmc.actions import Phi4\nclass Mine(Phi4):\n    name = 'mine'\n"
    )
    path = tmp_path / "a.toml"
    path.write_text(CONFIG.replace('"phi4"', '"my_theory:Mine"'))
    done = python(LIGHT, "run", path, "--output", tmp_path / "out", start=forked)
    assert done.stdout.splitlines()[-1] == "True 0", done.stderr
    path.write_text(CONFIG.replace('"phi4"', '"your_theory:Mine"'))
    done = python(LIGHT, "run", path, "--output", tmp_path / "none", start=forked)
    assert "folder is that of the configuration file, or is named in PYTHONPATH" in done.stderr


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


def test_examples_are_listed_and_copied_with_what_they_need(tmp_path, capsys):
    assert main(["example"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) == 2 and not line[1].startswith("flowmc ") for line in lines), lines
    listed = [line[0] for line in lines]
    there = [p for kind in ("toml", "py", "sh") for p in (ROOT / "examples").rglob(f"*.{kind}")]
    assert sorted(listed) == sorted(p.relative_to(ROOT / "examples").as_posix() for p in there)
    where = ["--directory", str(tmp_path)]
    assert main(["example", "su3_hybrid", *where]) == 0
    said = capsys.readouterr()
    names = ["examples/su3_hybrid.toml", "examples/data/su3_4x4x4x8_b6.0.1000"]
    assert said.out.split() == [str(tmp_path / name) for name in names]
    assert "flowmc run examples/su3_hybrid.toml" in said.err
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    assert main(["example", "campaigns/u1_ladders.py", *where]) == 0
    assert (tmp_path / "examples/campaigns/ladder_costs.py").exists()
    capsys.readouterr()
    assert main(["example", "extending/smearing.toml", *where]) == 0
    names = [f"examples/extending/smearing{end}" for end in (".toml", ".py", "_train.toml")]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert main(["example", "extending/rescale.py", *where]) == 0
    assert not (tmp_path / "examples/zoo/phi4_8x8_tutorial.toml").exists()


def test_examples_overwrite_nothing(tmp_path, capsys):
    mine = tmp_path / "examples/phi4_hmc.toml"
    mine.parent.mkdir()
    mine.write_text("my own")
    assert main(["example", "phi4_hmc.toml", "--directory", str(tmp_path)]) == 2
    assert "another content" in capsys.readouterr().err
    assert mine.read_text() == "my own"
    assert main(["example", "phi4_hcm.toml"]) == 2
    assert "did you mean 'phi4_hmc.toml'?" in capsys.readouterr().err
