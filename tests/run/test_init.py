"""`flowmc init`: what it writes is valid, runs, has the theory of a file, and replaces nothing."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.actions import Phi4, Wilson
from flowmc.actions.theory import describe_theory
from flowmc.cli import main
from flowmc.config.kinds import CASES
from flowmc.config.settings import as_words
from flowmc.config.toml_text import toml_text
from flowmc.flows import GaussianPrior, Identity, save_flow
from flowmc.flows.models import FlowModel
from flowmc.io import write_field
from flowmc.random import stream
from tests.processes import ROOT
from tests.run.small_runs import save_untrained_flow

SU3 = str(ROOT / "examples/data/su3_4x4x4x8_b6.0.1000")
SHORT = as_words(
    ["run.updates=2", "run.thermalization=16", "run.report=false", "update[1].steps=2"]
)
SHORT_TRAINING = as_words(
    ["training.steps=2", "training.batch=4", "training.evaluate_samples=16", "theory.lattice=[4,4]"]
)


def written(path="config.toml"):
    return tomllib.loads(Path(path).read_text())


def has_run(case, path="config.toml"):
    if case == "training":
        short = [*SHORT_TRAINING, *as_words(["exchange.chains=4", "exchange.thermalization=2"])]
        tables = written(path)
        if len(tables["theory"]["lattice"]) == 4:
            short += as_words(["theory.lattice=[2,2,2,2]"])
        if "exchange" not in tables:
            short = SHORT_TRAINING
        assert main(["train", path, "--output", "flow.safetensors", *short]) == 0
        return
    more = as_words(["run.save_every=1"]) if "ensemble" in written(path) else []
    assert main(["run", path, "--output", "out", *SHORT, *more]) == 0
    assert bool(list(Path("out/ensemble").glob("*")) if more else True)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_every_case_runs(case):
    # The same on a smaller lattice; the flow of a hybrid is for its own.
    small = {"production": "[2,2,2,4]", "ladder": "[4,4]"}
    more = as_words([f"theory.lattice={small[case]}"]) if case in small else []
    assert main(["init", case, "--output", "config.toml", *more]) == 0
    has_run(case)


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_a_file_of_four_dimensional_su3(case):
    assert main(["init", case, SU3, "--output", "config.toml"]) == 0
    tables = written()
    assert tables["theory"]["group"] == "SU(3)" and tables["theory"]["beta"] == 6.0
    if case != "training":
        assert tables["theory"]["lattice"] == [4, 4, 4, 8]
        assert Path(tables["chains"]["file"]).resolve() == Path(SU3).resolve()
    if case == "production":
        assert tables["ensemble"] == {"format": "nersc", "precision": 64}
    if case == "hybrid":
        assert tables["ladder"] == {
            "beta": [6.0, 5.85, 5.7],
            "flows": ["zoo:su3_4d_b5.85_b6.00", "zoo:su3_4d_b5.70_b5.85"],
        }
    has_run(case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("theory", ["phi4", "u1"])
def test_every_case_of_a_two_dimensional_npy_file(case, theory, capsys):
    action = Phi4([4, 8], m2=-1.0, lam=0.5) if theory == "phi4" else Wilson("U(1)", [4, 8], beta=2)
    precision = torch.float32 if theory == "u1" else torch.float64
    write_field("a.npy", action.hot(1, stream(1, 0, "")).to(precision), action, format="npy")
    couplings = ["theory.m2=-1.0", "theory.lambda=0.5"] if theory == "phi4" else ["theory.beta=2"]
    words = ["init", case, "a.npy", "--output", "config.toml", *as_words(couplings)]
    if case == "hybrid":
        # There is none of it in the zoo.
        assert main(words) == 2
        assert "train one (flowmc init training)" in capsys.readouterr().err
        flow = FlowModel(GaussianPrior(action), Identity()) if theory == "phi4" else Identity()
        described = describe_theory(action)
        card = {"theory": described, "flow": {"name": "identity", "parameters": {}}}
        if theory == "phi4":
            card["prior"] = {"name": "gaussian", "parameters": {}}
        else:
            card |= {"from": {"beta": 1.5}, "to": {"beta": 2.0}}
        save_flow("sub.safetensors", flow, card)
        words += ["--flow", "sub.safetensors"]
    assert main(words) == 0
    assert "a.npy is a plain array" in capsys.readouterr().err
    tables = written()
    if case != "training" or theory == "phi4":
        assert tables["theory"]["lattice"] == [4, 8]
    if case == "production":
        assert tables["ensemble"] == {
            "format": "npy",
            "precision": 64 if theory == "phi4" else 32,
        }
    has_run(case)


def test_a_stream_is_also_for_step(capsys):
    assert main(["init", "production", SU3, *as_words(["update[1].steps=2"])]) == 0
    assert main(["step", SU3, "lat.1001", "--config", "production.toml"]) == 0
    assert Path("lat.1001").exists()


def test_nothing_is_replaced(capsys):
    Path("ladder.toml").write_text("mine")
    assert main(["init", "ladder"]) == 2
    assert "ladder.toml is there: give another name with --output" in capsys.readouterr().err
    assert Path("ladder.toml").read_text() == "mine"
    assert main(["init", "ladder", "--output", "sub/ladder.toml"]) == 0
    assert main(["init", "ladder", "--output", "sub/ladder.toml"]) == 2


def test_two_runs_do_not_share_their_random_numbers():
    for name in ("a", "b"):
        assert main(["init", "production", "--output", f"{name}.toml"]) == 0
    assert written("a.toml")["chains"]["seed"] != written("b.toml")["chains"]["seed"]


def test_what_is_set_is_written_with_the_remarks():
    assert main(["init", "production", *as_words(["run.updates=7", "theory.beta=5.5"])]) == 0
    text = Path("production.toml").read_text()
    assert written("production.toml")["run"]["updates"] == 7
    assert "beta = 5.5" in text and "# x, y, z, t" in text and "beta = 5.5, by HMC" in text
    assert max(map(len, text.splitlines())) <= 100


def test_own_actions_and_paths_of_other_directories():
    Path("mine").mkdir()
    Path("mine/theirs.py").write_text(
        "from flowmc.actions import Phi4\n\n\nclass Theirs(Phi4):\n    name = 'theirs'\n"
    )
    action = Phi4([4, 4], m2=1.0, lam=0.5)
    write_field("a.npy", action.cold(1), action, format="npy")
    setting = as_words(["theory.action=theirs:Theirs", "theory.m2=1.0", "theory.lambda=0.5"])
    path = "mine/own.toml"
    assert main(["init", "production", "a.npy", "--output", path, *setting]) == 0
    assert written(path)["chains"]["file"] == "../a.npy"
    has_run("production", path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init", "prodcution"], "there is no case 'prodcution'; did you mean 'production'?"),
        (["init", "ladder", "nowhere.1000"], "nowhere.1000"),
        (["init", "ladder", "phi.npy"], "phi.npy says nothing of the couplings of its theory"),
        (["init", "ladder", "phi.npy"], "--set theory.lambda=VALUE"),
        (["init", "ladder", "text.1000"], "text.1000"),
        (["init", "ladder", "nan.npy"], "nan.npy"),
        (["init", "production", "--flow", "a"], "only a hybrid has a flow"),
        (["init", "hybrid", "--flow", "a.safetensors"], "there is no flow file a.safetensors"),
        (["init", "hybrid", SU3, "--flow", "phi.safetensors"], "phi.safetensors"),
        (["init", "production", "--set", "run.updates=-1"], "[run]: updates = -1"),
        (["init", "production", "--set", "run.update=1"], "unknown key 'update'"),
        (["init", "ladder", "--set", "theory.defect=0.5"], "begins at the theory without one"),
        (["init", "training", "--set", "theory.action=wilson"], "is a gauge theory"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_sentence(words, message, capsys):
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    write_field("phi.npy", action.cold(1), action, format="npy")
    np.save("nan.npy", np.full((4, 4), np.nan))
    Path("text.1000").write_text("no configuration")
    save_untrained_flow("phi.safetensors")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") <= 2
    assert not list(Path().glob("*.toml"))


def test_a_file_that_names_another_action_or_none(capsys):
    """Of the action nothing is guessed where the file says another, and said where it says none."""
    text = Path(SU3).read_bytes()
    assert b"FLOWMC_ACTION = wilson" in text and b"BETA = 6.0" in text
    other = text.replace(b"FLOWMC_ACTION = wilson", b"ACTION = Iwasaki_gauge")
    Path("other.1000").write_bytes(other)
    assert main(["init", "production", "other.1000"]) == 2
    assert "says that its action is 'iwasaki_gauge'" in capsys.readouterr().err
    set_it = as_words(["theory.action=wilson"])
    assert main(["init", "production", "other.1000", *set_it]) == 0
    none = text.replace(b"FLOWMC_ACTION = wilson", b"SOMETHING_ELS = wilson")
    Path("none.1000").write_bytes(none)
    capsys.readouterr()
    assert main(["init", "ladder", "none.1000"]) == 0
    assert "does not say its action: taken as wilson" in capsys.readouterr().err
    Path("no_beta.1000").write_bytes(none.replace(b"BETA = 6.0", b"BETB = 6.0"))
    assert main(["init", "hybrid", "no_beta.1000"]) == 2
    assert "give what is missing, as in --set theory.beta=VALUE" in capsys.readouterr().err
    Path("damaged.1000").write_bytes(text[:-5] + b"\0" + text[-4:])
    assert main(["init", "hybrid", "damaged.1000"]) == 2
    assert "checksum" in capsys.readouterr().err


def test_without_a_case_all_are_listed(capsys):
    assert main(["init"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)


def test_remarks_are_comments_of_the_same_toml():
    tables = {"a": 1, "t": {"k": "x", "long": ["y" * 60, "z" * 40]}, "u": [{"k": 1}, {"k": 2}]}
    remarks = {"a": "first", "t": "table", "t.long": "long", "u[2]": "second", "u[2].k": "two"}
    text = toml_text(tables, remarks)
    assert tomllib.loads(text) == tables
    assert text.count("#") == len(remarks)
    assert toml_text(tables) == "".join(
        line.split("#")[0].rstrip() + "\n" for line in text.splitlines() if line[:1] != "#"
    )
