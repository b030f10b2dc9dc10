"""`--set table.key=value`: the configuration of a command with some values replaced."""

import json
import tomllib

import pytest

from flowmc.actions import Phi4
from flowmc.cli import main
from flowmc.config.settings import as_words, with_settings
from flowmc.flows.cards.files import read_card
from flowmc.io import write_field
from flowmc.random import stream
from flowmc.registry import ConfigError
from tests.run.small_runs import config, digests, save_untrained_flow, write

TABLES = {"run": {"updates": 3}, "update": [{"kernel": "hmc", "steps": 3}, {"kernel": "sign_flip"}]}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("run.updates=10", ("run", "updates"), 10),
        (" run.updates = 1_0 ", ("run", "updates"), 10),
        ("run.checkpoint_every=10m", ("run", "checkpoint_every"), "10m"),
        ('run.time_limit="90"', ("run", "time_limit"), "90"),
        ("run.report=false", ("run", "report"), False),
        ("theory.m2=-1.5e0", ("theory", "m2"), -1.5),
        ("theory.lattice=[4, 8]", ("theory", "lattice"), [4, 8]),
        ("update[1].steps=20", ("update", 0, "steps"), 20),
        ("update.2.kernel=my.module:Flip", ("update", 1, "kernel"), "my.module:Flip"),
        ("update[2]={kernel = 'hmc'}", ("update", 1), {"kernel": "hmc"}),
        ("ladder.flows=[a", None, "no TOML value"),
        ("chains.file=a=b.1000", ("chains", "file"), "a=b.1000"),
        ("exchange.from.m2=1.0", ("exchange", "from", "m2"), 1.0),
        ("update[3].steps=1", None, r"there is no update\[3\]: the configuration has 2"),
        ("update[0].steps=1", None, r"there is no update\[0\]"),
        ("update.steps=1", None, r"update is a list of 2: say which one, from update\[1\]"),
        ("run.updates.all=1", None, "run.updates is no table: it is 3"),
        ("run.updates", None, r"should be table.key=value"),
        ("run.updates=", None, r"should be table.key=value"),
        ("run..updates=1", None, "is no name of a key"),
        ("run.updates=1\nseed=2", None, "should be one value"),
        ("run.updates=a\nb", None, "no TOML value"),
    ],
)
def test_settings_are_toml_or_words(setting, path, value):
    if path is None:
        with pytest.raises(ConfigError, match=value):
            with_settings(TABLES, [setting])
        return
    found = with_settings(TABLES, [setting])
    for step in path:
        found = found[step]
    assert found == value and type(found) is type(value)
    assert TABLES["run"] == {"updates": 3} and TABLES["update"][0]["steps"] == 3


def test_a_run_has_what_was_set_and_resumes_like_an_edited_file(tmp_path, capsys):
    path, out = write(tmp_path / "a.toml", config()), tmp_path / "out"
    words = as_words(["run.updates=6", "update[1].steps=4", "theory.lambda=0.6"])
    run = ["run", path, "--output", str(out)]
    assert main([*run, *words]) == 0
    resolved = tomllib.loads((out / "config.toml").read_text())
    assert resolved["run"]["updates"] == 6 and resolved["update"][0]["steps"] == 4
    assert resolved["theory"]["lambda"] == 0.6
    edited = config(run={"updates": 6}, theory={"lambda": 0.6})
    edited["update"][0]["steps"] = 4
    again = ["run", write(tmp_path / "b.toml", edited), "--output", str(tmp_path / "other")]
    assert main(again) == 0
    assert digests(out) == digests(tmp_path / "other")
    # Without what was set, the file says something else than what was begun.
    assert main([*run, "--resume"]) == 2
    assert "theory.lambda" in capsys.readouterr().err
    assert main([*run, "--resume", *words, "--set", "run.updates=10"]) == 0
    assert tomllib.loads((out / "config.toml").read_text())["run"]["updates"] == 10


def test_what_goes_on_with_a_run_says_its_settings_again(tmp_path, capsys):
    path = write(tmp_path / "a.toml", config(run={"updates": 10**6, "checkpoint_every": 10**5}))
    words = ["--set", "run.time_limit=0.2"]
    assert main(["run", path, "--output", str(tmp_path / "out"), *words]) in (0, 1)
    said = capsys.readouterr().err
    assert "--resume" in said and "--set run.time_limit=0.2" in said


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        ("run", "run.update=3", "[run]: unknown key 'update'; did you mean 'updates'?"),
        ("run", "rum.updates=3", "unknown table [rum]; did you mean 'run'?"),
        ("run", "update[1].step=3", "[[update]] 1 (hmc): unknown key 'step'; did you mean 'steps'"),
        ("run", "update[2].steps=3", "there is no update[2]: the configuration has 1"),
        ("step", "chains.sed=3", "[chains]: unknown key 'sed'; did you mean 'seed'?"),
        ("train", "theory.kapa=3", "[theory]: unknown key 'kapa'; did you mean 'kappa'?"),
        ("correlate", "theory.kapa=3", "[theory]: unknown key 'kapa'; did you mean 'kappa'?"),
        ("free-energy", "theory.kapa=3", "[theory]: unknown key 'kapa'; did you mean 'kappa'?"),
        ("evaluate", "theory=", "--set theory=: should be table.key=value"),
    ],
)
def test_misspelt_settings_get_a_hint(command, setting, message, tmp_path, capsys):
    path = write(tmp_path / "a.toml", config())
    words = {
        "step": [command, "in", "out", "--config", path],
        "train": [command, path, "--output", str(tmp_path / "f")],
        "evaluate": [command, "zoo:phi4_8x8_tutorial", "--config", path],
    }.get(command, [command, path, "--output", str(tmp_path / "out")])
    assert main([*words, "--set", setting]) == 2
    assert message in capsys.readouterr().err


def test_a_step_has_what_was_set(tmp_path):
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    write_field(tmp_path / "a.1.npy", action.cold(1), action, format="npy")
    tables = {key: value for key, value in config().items() if key != "run"}
    del tables["update"][0]["target_acceptance"]
    path, files = write(tmp_path / "a.toml", tables), []
    for number, more in enumerate(([], ["--set", "update[1].trajectory=0.5"])):
        out = tmp_path / f"b{number}.2.npy"
        words = ["--config", path, "--set", "chains.count=1", *more]
        assert main(["step", str(tmp_path / "a.1.npy"), str(out), *words]) == 0
        files.append(out.read_bytes())
    assert files[0] != files[1]


def test_a_training_has_what_was_set(tmp_path):
    tables = {
        "theory": config()["theory"],
        "flow": {"name": "affine_coupling", "layers": 2, "hidden": [2]},
        "prior": {"name": "gaussian"},
        "training": {"steps": 9, "batch": 4, "evaluate_samples": 32},
    }
    flow = tmp_path / "f.safetensors"
    words = ["--set", "training.steps=2", "--set", "flow.hidden=[3]"]
    train = ["train", write(tmp_path / "a.toml", tables), "--output", str(flow)]
    assert main([*train, *words]) == 0
    card = read_card(flow)
    assert card["training"]["steps"] == card["training"]["config"]["training"]["steps"] == 2
    assert card["flow"]["parameters"]["hidden"] == [3]
    assert card["command"].endswith("--set training.steps=2 --set 'flow.hidden=[3]'")
    assert main([*train, *words, "--resume"]) == 0


def test_correlate_has_what_was_set(tmp_path, capsys):
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    for number in range(1, 25):
        write_field(
            tmp_path / f"a.{number}.npy", action.hot(1, stream(number, 0, "")), action, format="npy"
        )
    tables = {
        "theory": config()["theory"],
        "ensemble": {"files": str(tmp_path / "a.*.npy")},
        "target": [{"m2": -0.9}],
        "analysis": {"report": False},
    }
    correlate = ["correlate", write(tmp_path / "a.toml", tables), "--json"]
    out = tmp_path / "out"
    words = ["--set", "ensemble.every=2", "--set", "target[1].m2=[-0.99,-1.01]"]
    assert main([*correlate, "--output", str(out), *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["configurations"] == 12
    assert set(document["sections"]) >= {"m2=-0.99", "m2=-1.01"}
    assert tomllib.loads((out / "config.toml").read_text())["ensemble"]["every"] == 2


def test_a_free_energy_and_an_evaluation_have_what_was_set(tmp_path, capsys):
    save_untrained_flow(tmp_path / "f.safetensors")
    tables = {
        "theory": config()["theory"],
        "free_energy": {"method": "q", "seed": 1},
        "flow": {"file": "f.safetensors"},
    }
    path, out = write(tmp_path / "a.toml", tables), tmp_path / "out"
    words = ["--set", "free_energy.samples=64", "--set", "free_energy.batch=32"]
    main(["free-energy", path, "--output", str(out), *words])
    capsys.readouterr()
    table = tomllib.loads((out / "config.toml").read_text())["free_energy"]
    assert table["samples"] == 64 and table["batch"] == 32
    evaluate = ["evaluate", str(tmp_path / "f.safetensors"), "--samples", "32", "--json"]
    assert main([*evaluate, "--config", path, "--set", "theory.m2=-1.25"]) == 0
    assert json.loads(capsys.readouterr().out)["flow"]
    assert main([*evaluate, "--set", "theory.m2=-1.25"]) == 2
    assert "name it with --config" in capsys.readouterr().err
