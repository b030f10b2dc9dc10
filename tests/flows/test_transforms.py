"""Transforms of other libraries as flows, and weights that were trained elsewhere."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from flowmc import zoo
from flowmc.actions import Phi4, Wilson
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.flows import GaussianPrior, TransformFlow, load_flow
from flowmc.flows.cards.files import read_card
from flowmc.flows.models import FlowModel
from flowmc.flows.verification import verify
from flowmc.registry import ConfigError
from flowmc.testing import check_flow
from tests.flows.scaled import Scaled, WrongSign
from tests.processes import ROOT
from tests.run.small_runs import PHI4

EXTENDING = ROOT / "examples/extending"
ACTION = Phi4([2, 4], m2=1.0, lam=0.5)
WITH = {
    "zuko": ("zuko.flows:NSF", {"transforms": 2, "hidden_features": [8]}),
    "nflows": ("transforms:nflows_couplings", {"layers": 2, "hidden": 8}),
    "normflows": ("transforms:normflows_couplings", {"layers": 2, "hidden": 8}),
}


@pytest.fixture
def _modules_of_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENDING))
    yield
    sys.modules.pop("transforms", None)


def random_weights(flow):
    torch.manual_seed(1)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return flow.double()


@pytest.mark.usefixtures("_modules_of_the_examples")
@pytest.mark.parametrize("library", WITH)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.filterwarnings("ignore:torch.triangular_solve")
def test_transforms_of_other_libraries_keep_the_contract(library, inverse):
    pytest.importorskip(library)
    name, arguments = WITH[library]
    flow = TransformFlow(ACTION, transform=name, arguments=arguments, inverse=inverse)
    check_flow(random_weights(flow), ACTION)
    again = TransformFlow(ACTION, transform=name, arguments=arguments, inverse=inverse)
    again.double().load_state_dict(flow.state_dict())
    assert again.fingerprint() == flow.fingerprint()
    other = TransformFlow(ACTION, transform=name, arguments=arguments, inverse=not inverse)
    other.double().load_state_dict(flow.state_dict())
    assert other.fingerprint() != flow.fingerprint()


def test_circular_splines_of_zuko_map_angles_of_links():
    zuko = pytest.importorskip("zuko")
    action = Wilson("U(1)", [2, 3], beta=1.0)
    spline = zuko.flows.NCSF(12, transforms=2, hidden_features=(8,))
    flow = random_weights(TransformFlow(action, transform=spline))
    check_flow(flow, action)
    with pytest.raises(ConfigError, match="transforms are of real numbers and angles"):
        TransformFlow(Wilson("SU(2)", [2, 2], beta=1.0), transform=spline)


def test_a_wrong_sign_of_the_log_determinant_is_found_wherever_a_flow_is_held_to_its_contract():
    model = FlowModel(GaussianPrior(ACTION), TransformFlow(ACTION, transform=Scaled(8)))
    verify(model, ACTION, "here")
    wrong = FlowModel(GaussianPrior(ACTION), TransformFlow(ACTION, transform=WrongSign(8)))
    with pytest.raises(ConfigError, match="differs from that of the full Jacobian"):
        verify(wrong, ACTION, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": "tests.flows.scaled:PerNumber"}, "with log-determinants (3, 16)"),
        ({"transform": "tests.flows.scaled:WrongSign"}, "differs from that of the full Jacobian"),
        ({"transform": "torch.nn:Identity"}, "torch.nn.modules.linear.Identity"),
        ({"transform": "nowhere:At"}, "cannot load transform 'nowhere:At'"),
        ({"transform": "spline"}, "unknown transform 'spline'"),
        (
            {"transform": "tests.flows.scaled:Scaled", "arguments": {"wide": 1}},
            "unexpected keyword",
        ),
        ({"transform": "torch.nn:Linear"}, "takes 'in_features' by position"),
        ({"transform": "pathlib:PurePath"}, "is no transform whose weights could be kept"),
        ({}, "missing key 'transform'"),
    ],
)
def test_what_is_no_transform_is_said_in_one_sentence(changes, message, tmp_path, capsys):
    tables = training(**changes)
    (tmp_path / "a.toml").write_text(toml_text(tables))
    out = str(tmp_path / "f.safetensors")
    assert main(["train", str(tmp_path / "a.toml"), "--output", out]) == 2
    assert message in capsys.readouterr().err
    assert not Path(out).exists()


def training(**flow):
    return {
        "theory": PHI4["theory"],
        "prior": {"name": "gaussian"},
        "flow": {"name": "transform", **flow},
        "training": {"steps": 3, "batch": 8, "evaluate_samples": 64, "seed": 1},
    }


@pytest.mark.usefixtures("_modules_of_the_examples")
def test_a_run_proposes_with_a_transform(tmp_path, monkeypatch, capsys):
    """From the training to the chain, and only if its module is trusted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flowmc.registry._TRUSTED", {"flowmc"})
    Path("train.toml").write_text(toml_text(training(transform="tests.flows.scaled:Scaled")))
    assert main(["train", "train.toml", "--output", "f.safetensors"]) == 0
    tables = {**PHI4, "update": [*PHI4["update"]]}
    tables["update"].append({"kernel": "independence", "flow": "f.safetensors", "proposals": 2})
    Path("run.toml").write_text(toml_text(tables))
    monkeypatch.setattr("flowmc.registry._TRUSTED", {"flowmc"})
    assert main(["run", "run.toml", "--output", "out"]) == 2
    assert "--trust tests.flows.scaled" in capsys.readouterr().err
    assert main(["run", "run.toml", "--output", "out", "--trust", "tests.flows"]) == 0


def weights_of(table, seed=3):
    """Return a model of tables with weights that came from elsewhere."""
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    torch.manual_seed(seed)
    return FlowModel(GaussianPrior(action), TransformFlow(action, transform=table["transform"]))


@pytest.mark.parametrize("part", ["flow", "model"])
def test_bare_weights_become_a_flow_file(part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tables = training(transform="tests.flows.scaled:Scaled")
    model = weights_of(tables["flow"])
    weights = model.flow.state_dict() if part == "flow" else model.state_dict()
    safetensors.torch.save_file(weights, "bare.safetensors")
    del tables["training"]
    Path("a.toml").write_text(toml_text(tables))
    command = ["pack", "bare.safetensors", "a.toml", "--output", "f.safetensors"]
    assert main([*command, "--set", "training.evaluate_samples=256"]) == 0
    card = read_card("f.safetensors")
    assert card["measured"]["samples"] == 256 and 0 < card["measured"]["ess"] <= 1
    assert card["training"]["weights"] == "bare.safetensors" and card["training"]["steps"] == 0
    assert zoo.ancestors(card["training"]) == {"bare.safetensors": None}
    assert card["precision"] == 32 and card["command"].startswith("flowmc pack bare.safetensors")
    loaded = load_flow("f.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    capsys.readouterr()
    assert main(["evaluate", "f.safetensors", "--samples", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 64
    # Nothing is replaced.
    assert main(command) == 2
    assert "f.safetensors is there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "the weights do not fit the flow of the configuration"),
        ("shape", "size mismatch"),
        ("nan", "are not finite"),
        ("pickle", "is no safetensors file, and pickles are not read"),
        ("none", "bare.safetensors"),
        ("wrong sign", "differs from that of the full Jacobian"),
    ],
)
def test_weights_that_do_not_fit_make_no_flow_file(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "WrongSign" if change == "wrong sign" else "Scaled"
    tables = training(transform=f"tests.flows.scaled:{name}")
    weights = weights_of(training(transform="tests.flows.scaled:Scaled")["flow"]).flow.state_dict()
    [key] = weights
    changed = {
        "missing": {"other": weights[key]},
        "shape": {key: weights[key][:3].clone()},
        "nan": {key: weights[key] * torch.nan},
    }.get(change, weights)
    safetensors.torch.save_file(changed, "bare.safetensors")
    if change == "pickle":
        torch.save(weights, "bare.safetensors")
    elif change == "none":
        Path("bare.safetensors").unlink()
    Path("a.toml").write_text(toml_text(tables))
    assert main(["pack", "bare.safetensors", "a.toml", "--output", "f.safetensors"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("f.safetensors").exists()


def test_own_prior_and_observable_from_a_configuration(tmp_path, monkeypatch, capsys):
    """`examples/extending/two_peaks`: trained, and run with the observable, where it is trusted."""
    for path in EXTENDING.glob("two_peaks*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    tables = tomllib.loads(Path("two_peaks_train.toml").read_text())
    tables["theory"]["lattice"] = [4, 4]
    tables["training"] |= {"steps": 2, "batch": 8, "evaluate_samples": 64}
    Path("train.toml").write_text(toml_text(tables))
    assert main(["train", "train.toml", "--output", "f.safetensors"]) == 0
    tables = tomllib.loads(Path("two_peaks.toml").read_text())
    tables["theory"]["lattice"] = [4, 4]
    tables["run"] |= {"thermalization": 2, "updates": 4, "report": False}
    tables["update"][1]["flow"] = "f.safetensors"
    Path("run.toml").write_text(toml_text(tables))
    assert main(["run", "run.toml", "--output", "out", "--trust", "two_peaks"]) == 0
    capsys.readouterr()
    assert main(["report", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["observables"]
    assert 0 <= found["positive"]["mean"] <= 1


def test_own_prior_and_observable_in_python(monkeypatch):
    monkeypatch.syspath_prepend(str(EXTENDING))
    from two_peaks import TwoPeaks, positive

    from flowmc.testing import check_model, check_observable

    prior = TwoPeaks(ACTION, distance=0.7, width=0.4).double()
    check_model(prior, ACTION)
    check_observable(positive, ACTION)
    # Normalised: one site by quadrature.
    site = TwoPeaks(Phi4([2], m2=1.0, lam=1.0), distance=0.7, width=0.4).double()
    line = torch.linspace(-4, 4, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    total = float(site.log_prob(grid).exp().sum()) * 0.01**2
    assert abs(total - 1) < 1e-9
