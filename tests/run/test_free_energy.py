"""``flowmc free-energy``: its methods against exact ln Z, its files, and what it refuses."""

import copy
import json
import signal
import tomllib

import numpy as np
import pytest
import torch

from flowmc.actions import DoubleWell, FreeScalar, Phi4, Wilson
from flowmc.cli import main
from flowmc.commands import free_energy as command
from flowmc.config.toml_text import toml_text
from flowmc.evaluation.density import DensityError
from flowmc.flows import AffineCouplingFlow, FlowModel, GaussianPrior
from flowmc.flows.cards.files import save_flow
from flowmc.free_energy.config import read_free_energy_config
from flowmc.free_energy.measure import measure
from flowmc.free_energy.progress import Progress
from flowmc.free_energy.tunnelling import Tunnelling
from flowmc.jobs.stopping import OUT_OF_TIME
from flowmc.registry import ConfigError
from flowmc.training.work import MeanWork

SIGMAS = 5.0
HMC = {"kernel": "hmc", "trajectory": 1.0, "steps": 4, "jitter": 0.3}
CHAINS = {"count": 16, "measurements": 20, "thermalization": 40, "separation": 2}
ANNEALING = {
    "theory": {"action": "free", "lattice": [4, 4], "m2": 0.5},
    "free_energy": {"method": "annealing", "seed": 3, "samples": 500, "batch": 200},
    "protocol": {"m2": [2.0, 0.5], "steps": 6},
    "update": [HMC],
}


@pytest.fixture(autouse=True)
def _pages(request, monkeypatch):
    """Drawing the page takes longer than most of these measurements: it is left out.

    Not of tests that ask for `page`.
    """
    if "page" not in request.fixturenames:
        monkeypatch.setattr("flowmc.reports.free_energy_results.write_html", lambda *_: None)


@pytest.fixture
def page():
    """Nothing is left out."""


def with_tables(**tables):
    return {**copy.deepcopy(ANNEALING), **tables}


def run(tables, tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(toml_text(tables))
    output = tmp_path / "out"
    assert main(["free-energy", str(config), "--output", str(output), "--json"]) == 0
    return json.loads(capsys.readouterr().out), output


def assert_covers(result):
    assert result["exact"] is not None
    assert abs(result["pull"]) < SIGMAS, result["text"]
    for estimate in result["estimates"].values():
        assert abs(estimate["value"] - result["exact"]) < SIGMAS * estimate["error"]


@pytest.mark.usefixtures("page")
def test_annealing_both_ways_and_its_files(tmp_path, capsys):
    result, output = run(with_tables(chains=CHAINS), tmp_path, capsys)
    assert_covers(result)
    assert list(result["estimates"]) == ["bridge", "jarzynski", "jarzynski_reverse"]
    assert result["process"]["steps"] == 6
    assert result["process"]["dissipated_work"] > 0
    assert result["process"]["dissipated_work_reverse"] > 0
    assert json.loads((output / "summary.json").read_text()) == result
    assert tomllib.loads((output / "config.toml").read_text())["protocol"]["start"] == "exact"
    assert json.loads((output / "provenance.json").read_text())["seed"] == 3
    works = np.load(output / "works.npz")
    assert works["forward"].shape == (500,) and works["reverse"].shape == (20, 16)
    page = (output / "report.html").read_text()
    assert page.count("<figure") == 3

    from pyerrors.input.json import load_json_dict

    stored = load_json_dict(str(output / "results.json.gz"), verbose=False)
    stored["bridge"].gamma_method()
    assert stored["bridge"].value == pytest.approx(result["log_z"], abs=1e-12)
    assert stored["bridge"].dvalue == pytest.approx(result["log_z_error"], rel=0.2)
    # Nothing is overwritten, and the same seed gives the same numbers.
    assert main(["free-energy", str(tmp_path / "config.toml"), "--output", str(output)]) == 2
    again = measure(read_free_energy_config(with_tables(chains=CHAINS), tmp_path))
    assert again.best.estimate.value == result["log_z"]
    # Its configurations are those of no other run.
    (tmp_path / "other").mkdir()
    tables = with_tables(chains=CHAINS)
    tables["free_energy"]["seed"] = 4
    _, other = run(tables, tmp_path / "other", capsys)
    others = load_json_dict(str(other / "results.json.gz"), verbose=False)["bridge"]
    assert not set(others.mc_names) & set(stored["bridge"].mc_names)
    both = stored["bridge"] - others
    both.gamma_method()
    others.gamma_method()
    assert both.dvalue == pytest.approx(np.hypot(stored["bridge"].dvalue, others.dvalue))


def test_annealing_from_chains_of_the_start(tmp_path, capsys):
    tables = with_tables(chains=CHAINS)
    tables["protocol"]["start"] = "chains"
    result, output = run(tables, tmp_path, capsys)
    assert_covers(result)
    assert np.load(output / "works.npz")["forward"].shape == (20, 16)


def test_a_start_whose_constant_is_unknown_gives_a_ratio(tmp_path, capsys):
    tables = {
        "theory": {"action": "phi4", "lattice": [4, 4], "kappa": 0.2, "lambda": 0.1},
        "free_energy": {"method": "annealing", "seed": 1},
        "protocol": {"kappa": [0.15, 0.2], "steps": 3},
        "update": [HMC],
        "chains": CHAINS,
    }
    result, _ = run(tables, tmp_path, capsys)
    assert result["quantity"] == "log_z_ratio" and result["exact"] is None
    whole = {**tables, "protocol": {"kappa": [0.0, 0.15, 0.2]}}
    whole["free_energy"] = {"method": "chain", "seed": 2}
    chain = measure(read_free_energy_config(whole, tmp_path))
    difference = chain.line[1][1].value - chain.line[0][1].value
    error = np.hypot(chain.line[1][1].error, result["log_z_error"])
    assert abs(difference - result["log_z"]) < SIGMAS * error


@pytest.mark.usefixtures("page")
def test_chain_of_ensembles(tmp_path, capsys):
    tables = with_tables(chains=CHAINS, protocol={"m2": [3.0, 2.0, 1.2, 0.8, 0.5]})
    tables["free_energy"] = {"method": "chain", "seed": 1}
    # An even action in one well: the signs change all the time.
    result, output = run(tables, tmp_path, capsys)
    assert_covers(result)
    assert [point["m2"] for point in result["line"]] == [2.0, 1.2, 0.8, 0.5]
    for point in result["line"]:
        exact = FreeScalar([4, 4], m2=point["m2"]).log_partition()
        assert abs(point["log_z"] - exact) < SIGMAS * point["log_z_error"]
    assert "Along the line" in (output / "report.html").read_text()


def test_stochastic_flow_is_trained_and_covers(tmp_path, capsys):
    tables = with_tables(
        flow={"name": "affine_coupling", "layers": 2, "hidden": [4], "odd": True},
        training={"steps": 40, "batch": 64, "learning_rate": 0.02},
        chains=CHAINS,
    )
    tables["free_energy"] = {"method": "snf", "seed": 1, "samples": 400}
    tables["protocol"] = {"m2": [2.0, 0.5], "steps": 3}
    result, output = run(tables, tmp_path, capsys)
    assert_covers(result)
    assert (output / "layers.safetensors").stat().st_size > 1000
    plain = with_tables(protocol=tables["protocol"])
    untrained = measure(read_free_energy_config(plain, tmp_path)).process
    assert result["process"]["dissipated_work"] < 0.8 * untrained.dissipated


def test_layers_are_not_trained_on_the_chains_they_are_measured_with(tmp_path, monkeypatch):
    tables = with_tables(
        flow={"name": "affine_coupling", "layers": 2, "hidden": [4], "odd": True},
        training={"steps": 2, "batch": 16, "learning_rate": 0.02},
        chains=CHAINS,
    )
    tables["free_energy"] = {"method": "snf", "seed": 1}
    tables["protocol"] = {"m2": [2.0, 0.5], "steps": 2, "start": "chains"}
    trained = []

    class Spying(MeanWork):
        def __init__(self, model):
            trained.append(model.prior.get_buffer("fields"))
            super().__init__(model)

    monkeypatch.setattr("flowmc.free_energy.measure.MeanWork", Spying)
    progress = Progress()
    measure(read_free_energy_config(tables, tmp_path), progress=progress)
    measured = torch.cat([row["field"] for row in progress.rows("start")])
    assert len(trained[0]) == len(measured) == 320
    shared = (trained[0][:, None] == measured[None]).flatten(2).any(2)
    assert not bool(shared.any())


def test_continuous_layers_state_their_error(tmp_path, capsys):
    """A coarse integrator would make ln Z out of nothing."""
    tables = with_tables(
        flow={"name": "continuous", "steps": 1, "integrator": "euler"},
        training={"steps": 10, "batch": 32, "learning_rate": 0.3},
    )
    tables["free_energy"] = {"method": "snf", "seed": 1, "samples": 100}
    tables["protocol"] = {"m2": [6.0, 0.5], "steps": 1}
    with pytest.raises(DensityError, match="integrator is too coarse"):
        measure(read_free_energy_config(tables, tmp_path))


def save_gaussian(path, action, flow=None, scale=0.75):
    flow = flow or AffineCouplingFlow(action, layers=2, hidden=[2])
    model = FlowModel(GaussianPrior(action, scale=scale), flow).double()
    card = {
        "kind": "sampler",
        "flow": {"name": "affine_coupling", "parameters": {"layers": 2, "hidden": [2]}},
        "prior": {"name": "gaussian", "parameters": {"scale": scale}},
        "theory": {
            "action": action.name,
            "group": "R",
            "lattice": list(action.lattice),
            "couplings": dict(action.parameters),
        },
    }
    save_flow(path, model, card)


@pytest.mark.parametrize("method", ["q", "p", "both"])
def test_a_flow_and_the_target(method, tmp_path, capsys):
    action = Phi4([4, 2], kappa=0.0, lam=0.1)
    save_gaussian(tmp_path / "flow.safetensors", action)
    tables = {
        "theory": {"action": "phi4", "lattice": [4, 2], "kappa": 0.0, "lambda": 0.1},
        "free_energy": {"method": method, "seed": 1, "samples": 1000, "batch": 300},
        "flow": {"file": "flow.safetensors"},
    }
    if method != "q":
        tables |= {"update": [HMC], "chains": {**CHAINS, "measurements": 40}}
    result, _ = run(tables, tmp_path, capsys)
    assert_covers(result)
    expected = {"q": ["q"], "p": ["p"], "both": ["bridge", "q", "p"]}[method]
    assert list(result["estimates"]) == expected
    if method == "both":
        coverage = result["mode_coverage"]
        assert abs(coverage["share"] - 1) < SIGMAS * coverage["error"]
        assert result["overlap"] > 0.5


def chain_on_disk(tmp_path, capsys, save_every=2, updates=40):
    """A run of the free field with saved configurations; return its directory."""
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": 0.5},
        "chains": {"seed": 5, "count": 4},
        "update": [HMC],
        "run": {
            "thermalization": 30,
            "updates": updates,
            "save_every": save_every,
            "report": False,
        },
        "ensemble": {"format": "hdf5"},
    }
    (tmp_path / "run.toml").write_text(toml_text(tables))
    output = tmp_path / "stored"
    assert main(["run", str(tmp_path / "run.toml"), "--output", str(output)]) == 0
    capsys.readouterr()
    return output


def test_target_samples_from_disk(tmp_path, capsys):
    stored = chain_on_disk(tmp_path, capsys)
    action = FreeScalar([4, 4], m2=0.5)
    save_gaussian(tmp_path / "flow.safetensors", action, scale=0.45)
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": 0.5},
        "free_energy": {"method": "p", "seed": 1},
        "flow": {"file": "flow.safetensors"},
        "ensemble": {"run": stored.name},
    }
    outcome = measure(read_free_energy_config(tables, tmp_path))
    assert outcome.works["reverse"].shape == (20, 4)
    whole = {**tables, "ensemble": {"files": f"{stored.name}/ensemble/*/*", "last": 20}}
    part = measure(read_free_energy_config(whole, tmp_path))
    assert np.array_equal(part.works["reverse"], outcome.works["reverse"][:10])
    back = with_tables(ensemble={"run": stored.name})
    result, _ = run(back, tmp_path, capsys)
    assert_covers(result)
    first, *others = sorted(stored.glob("ensemble/*/*.10"))
    first.unlink()
    with pytest.raises(ConfigError, match="differ in number"):
        measure(read_free_energy_config(tables, tmp_path))
    for file in others:
        file.unlink()
    with pytest.raises(ConfigError, match=r"not equidistant \(before 12\)"):
        measure(read_free_energy_config(tables, tmp_path))


def test_frozen_chains_are_named_and_the_number_marked():
    action = DoubleWell([8], m0=5.0)
    stuck = Tunnelling(action)
    for _ in range(50):
        stuck.look(action.hot(1, torch.Generator().manual_seed(1)).abs().expand(4, 8))
    assert stuck.count == 0
    assert "sign_flip" in stuck.warning
    assert Tunnelling(Wilson("SU(3)", [4, 4], beta=1.0)).warning is None
    charge = Tunnelling(Wilson("U(1)", [4, 4], beta=9.0))
    for _ in range(5):
        charge.look(charge.action.cold(3))
    assert "topological charge changed 0 times" in charge.warning


def test_one_well_in_the_chains_marks_the_estimate(tmp_path, capsys):
    tables = {
        "theory": {"action": "double_well", "lattice": [4], "m0": 8.0},
        "free_energy": {"method": "annealing", "seed": 1, "samples": 300},
        "protocol": {"mu2": [1.0, -1.0], "lambda": [0.0, 1.0], "steps": 60},
        "update": [HMC],
        "chains": {"count": 4, "measurements": 12, "thermalization": 30},
    }
    result, _ = run(tables, tmp_path, capsys)
    assert result["bound"] == "both" and result["text"].startswith("~ ")
    assert any("sign_flip" in text for text in result["warnings"])
    assert result["estimates"]["jarzynski"]["bound"] in ("none", "lower")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"free_energi": {}}, "did you mean 'free_energy'"),
        ({"flow": {"file": "x"}}, "would be ignored by method"),
        ({"free_energy": {"method": "q", "seed": 1}}, "needs a table \\[flow\\]"),
        ({"ensemble": {}}, "either files or run"),
        ({"ensemble": {"run": "x"}, "chains": CHAINS}, "would be ignored"),
        ({"free_energy": {"method": "jarzinsky", "seed": 1}}, "method"),
        ({"free_energy": {"method": "annealing", "seed": 1, "samples": 1}}, "at least 2"),
        ({"protocol": {"m2": [2.0, 0.7], "steps": 3}}, "ends with 0.7"),
        ({"protocol": {"m3": [2.0, 0.5], "steps": 3}}, "unknown key 'm3'; did you mean 'm2'"),
        ({"protocol": {"steps": 3}}, "needs the values of a coupling"),
        ({"protocol": {"m2": [2.0, 0.5], "steps": 0}}, "steps = 0"),
        ({"protocol": {"m2": [2.0, -0.5, 0.5]}}, "m2 > 0"),
        ({"update": [{"kernel": "hmc", "target_acceptance": 0.8}]}, "thermalization of chains"),
        ({"update": [{"kernel": "exchange"}]}, "without flows"),
        ({"chains": {"count": 0, "measurements": 3}}, "count = 0"),
        (
            {
                "theory": {"action": "phi4", "lattice": [4, 4], "kappa": 0.2, "lambda": 0.1},
                "protocol": {"kappa": [0.1, 0.2], "steps": 3},
            },
            "add \\[chains\\]",
        ),
    ],
)
def test_unusable_configurations(change, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        read_free_energy_config(with_tables(**change), tmp_path)


def test_flow_of_another_theory_is_refused(tmp_path):
    save_gaussian(tmp_path / "flow.safetensors", Phi4([4, 2], kappa=0.0, lam=0.1))
    tables = {
        "theory": {"action": "free", "lattice": [4, 2], "m2": 0.5},
        "free_energy": {"method": "q", "seed": 1},
        "flow": {"file": "flow.safetensors"},
    }
    with pytest.raises(ConfigError, match="flow for"):
        measure(read_free_energy_config(tables, tmp_path))


def interrupted(tmp_path):
    """Configurations that stop at every kind of row, by what is in the middle then."""
    chain = with_tables(chains=CHAINS, protocol={"m2": [3.0, 1.2, 0.5]})
    chain["free_energy"] = {"method": "chain", "seed": 1}
    from_chains = with_tables(chains=CHAINS)
    from_chains["protocol"]["start"] = "chains"
    adapting = copy.deepcopy(chain)
    adapting["update"] = [HMC | {"target_acceptance": 0.8}]
    snf = with_tables(
        flow={"name": "affine_coupling", "layers": 2, "hidden": [4], "odd": True},
        training={"steps": 9, "batch": 8, "checkpoint_every": 4},
        chains=CHAINS,
    )
    snf["free_energy"] = {"method": "snf", "seed": 1, "samples": 100, "batch": 30}
    snf["protocol"] = {"m2": [2.0, 0.5], "steps": 2}
    del snf["chains"]
    action = FreeScalar([4, 4], m2=0.5)
    save_gaussian(tmp_path / "flow.safetensors", action)
    both = with_tables(flow={"file": "flow.safetensors"}, chains=CHAINS)
    both["free_energy"] = {"method": "both", "seed": 1, "samples": 100, "batch": 9}
    del both["protocol"]
    return {
        "processes both ways": with_tables(chains=CHAINS),
        "processes from chains": from_chains,
        "a line": chain,
        "chains that adapt": adapting,
        "training": snf,
        "a flow and its target": both,
    }


class AfterCalls:
    """In the place of the time limit: stops after so many rows or updates of one invocation."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, limit, started):
        left = iter(range(self.calls, -1, -1))
        return lambda: not next(left, 0)


def without_times(path):
    found = json.loads((path / "summary.json").read_text())
    assert found.pop("seconds") > 0
    # Answers in seconds of an independent sample.
    assert found.pop("pays")["answer"]
    page = found["page"]
    assert page["facts"].pop("wall time") and page.pop("title").endswith(path.name)
    assert page["sections"].pop(0)["title"] == "Does it pay?"
    return found


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("processes both ways", marks=pytest.mark.slow),
        pytest.param("processes from chains", marks=pytest.mark.slow),
        pytest.param("a line", marks=pytest.mark.slow),
        "chains that adapt",
        "training",
        "a flow and its target",
    ],
)
def test_stopped_and_resumed_gives_the_same_document(what, tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.toml"
    config.write_text(toml_text(interrupted(tmp_path)[what]))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["free-energy", str(config), "--output", str(whole), "--json"]) == 0
    again = ["free-energy", str(config), "--output", str(parts), "--json", "--resume"]
    statuses = []
    monkeypatch.setattr(command, "Deadline", AfterCalls(4 if what == "training" else 31))
    while not (parts / "summary.json").exists():
        capsys.readouterr()
        statuses.append(main(again))
        assert len(statuses) < 40
    assert statuses == [OUT_OF_TIME] * (len(statuses) - 1) + [0] and len(statuses) > 2
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads((parts / "summary.json").read_text())
    assert without_times(parts) == without_times(whole)
    for name in ("works.npz", "results.csv", "layers.safetensors"):
        assert (parts / name).exists() == (whole / name).exists()
        if (whole / name).exists():
            assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in parts.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )
    # Once more, as a batch system would: nothing is measured, the same document is printed.
    monkeypatch.setattr(command, "measure", None)
    assert main(again) == 0
    assert capsys.readouterr().out == said.out
    assert main(again[:-1]) == 2
    assert "use --resume" in capsys.readouterr().err


GUARDED = """
import os
from flowmc.actions import FreeScalar
from flowmc.kernels import HMC
from flowmc.registry import ConfigError

class Shifted(FreeScalar):
    def at(self, **couplings):
        return Shifted(self.lattice, **{**self.parameters, **couplings})
    def __call__(self, field):
        return super().__call__(field) + float(os.environ.get("FLOWMC_TEST_SHIFT", "0"))

class Choosy(HMC):
    name = "choosy"
    def init(self, field):
        if "FLOWMC_TEST_REFUSE" in os.environ:
            raise ConfigError("choosy refuses these fields")
        return super().init(field)
"""


def test_kernels_are_asked_before_chains_go_on(tmp_path, monkeypatch, capsys):
    module = f"guarded_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(GUARDED)
    tables = with_tables(chains=CHAINS, protocol={"m2": [3.0, 0.5]})
    tables["theory"]["action"] = f"{module}:Shifted"
    tables["free_energy"] = {"method": "chain", "seed": 1}
    tables["update"] = [HMC, {"kernel": f"{module}:Choosy", "steps": 3}]
    config = tmp_path / "config.toml"
    config.write_text(toml_text(tables))
    again = ["free-energy", str(config), "--output", str(tmp_path / "out"), "--resume"]
    monkeypatch.setattr(command, "Deadline", AfterCalls(50))
    assert main(again) == OUT_OF_TIME
    for name, value, text in (
        ("FLOWMC_TEST_REFUSE", "1", "choosy refuses these fields"),
        ("FLOWMC_TEST_SHIFT", "0.5", "chains of 'ensemble 0': the action of the stored fields"),
    ):
        capsys.readouterr()
        monkeypatch.setenv(name, value)
        assert main(again) == 2
        assert text in capsys.readouterr().err.splitlines()[-1]
        monkeypatch.delenv(name)
    assert main(again) == OUT_OF_TIME


@pytest.mark.parametrize("place", ["line", "ladder"])
def test_an_action_whose_at_is_that_of_its_base_is_refused(place, tmp_path, capsys):
    """FreeScalar.at() returns a FreeScalar: its theory would be sampled in silence."""
    module = f"inherited_{abs(hash(str(tmp_path)))}"
    source = "from flowmc.actions import FreeScalar\nclass Mine(FreeScalar):\n    pass\n"
    (tmp_path / f"{module}.py").write_text(source)
    if place == "line":
        tables = with_tables(chains=CHAINS, protocol={"m2": [3.0, 0.5]})
        tables["free_energy"] = {"method": "chain", "seed": 1}
        tables["update"] = [HMC]
    else:
        tables = {
            "theory": {**with_tables()["theory"], "m2": 3.0},
            "chains": {"count": 2, "seed": 1},
            "update": [HMC, {"kernel": "exchange"}],
            "ladder": {"m2": [3.0, 0.5], "flows": ["identity"]},
            "run": {"updates": 2},
        }
    tables["theory"]["action"] = f"{module}:Mine"
    config = tmp_path / "config.toml"
    config.write_text(toml_text(tables))
    name = "free-energy" if place == "line" else "run"
    assert main([name, str(config), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Mine.at() returns a FreeScalar, which is another theory: define at() in Mine" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_a_checkpoint_of_the_measurement(number, tmp_path, monkeypatch, capsys):
    config, output = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(toml_text(with_tables(chains=CHAINS)))
    again = ["free-energy", str(config), "--output", str(output), "--resume"]
    say = command.say

    def signalled(text):
        say(text)
        if "batch 2" in text:
            signal.raise_signal(number)

    monkeypatch.setattr(command, "say", signalled)
    assert main(again) == 128 + number
    said = capsys.readouterr().err
    assert f"({number.name}); continue with: flowmc free-energy" in said and "--resume" in said
    assert not (output / "summary.json").exists()
    assert main(again[:-1]) == 2
    assert "use --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(again) == 0
    said = capsys.readouterr().err
    assert "batch 3 of 3" in said and "batch 2" not in said


def test_results_that_could_not_be_written_do_not_block_the_command(tmp_path, monkeypatch, capsys):
    config, output = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(toml_text(ANNEALING))
    again = ["free-energy", str(config), "--output", str(output)]

    def full(*_):
        raise OSError(28, "No space left on device", str(output / "results.csv"))

    monkeypatch.setattr(command, "write_results", full)
    assert main(again) == 2
    assert "results.csv: No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*again, "--resume"]) == 0
    # All of it was in the checkpoint.
    assert "batch" not in capsys.readouterr().err


def test_a_measurement_is_resumed_only_as_what_it_is(tmp_path, monkeypatch, capsys):
    tables = interrupted(tmp_path)["a flow and its target"]
    config, output = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(toml_text(tables))
    again = ["free-energy", str(config), "--output", str(output), "--resume"]
    monkeypatch.setattr(command, "Deadline", AfterCalls(12))
    assert main(again) == OUT_OF_TIME
    monkeypatch.undo()
    assert main(["run", str(config), "--output", str(output), "--resume"]) == 2
    capsys.readouterr()

    def refused(text):
        assert main(again) == 2
        said = capsys.readouterr().err.splitlines()
        assert text in said[-1], said
        assert not (output / "summary.json").exists()

    config.write_text(toml_text(tables | {"free_energy": tables["free_energy"] | {"seed": 2}}))
    refused("free_energy.seed was 1 when the measurement")
    # The resolved configuration alone does not decide.
    (output / "config.toml").unlink()
    refused("checkpoint.safetensors was measured with another configuration")
    config.write_text(toml_text(tables))
    action = FreeScalar([4, 4], m2=0.5)
    flow = (tmp_path / "flow.safetensors").read_bytes()
    save_gaussian(tmp_path / "flow.safetensors", action, scale=0.5)
    refused("was measured with another flow")
    (tmp_path / "flow.safetensors").write_bytes(flow)
    checkpoint = output / "checkpoint.safetensors"
    sound = bytearray(checkpoint.read_bytes())
    for place in (9, len(sound) // 2, len(sound) - 3):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        checkpoint.write_bytes(damaged)
        refused("checkpoint.safetensors is not a sound checkpoint")
    checkpoint.write_bytes(sound)
    # What only says when to stop and save may change.
    free = tables["free_energy"] | {"time_limit": "1h", "checkpoint_every": "1s"}
    config.write_text(toml_text(tables | {"free_energy": free}))
    assert main(again) == 0


def test_two_processes_do_not_measure_in_one_directory(tmp_path, capsys):
    config, output = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(toml_text(ANNEALING))
    other = command.RunDirectory(output)
    other.claim()
    for more in ([], ["--resume"]):
        assert main(["free-energy", str(config), "--output", str(output), *more]) == 2
        assert "another flowmc process" in capsys.readouterr().err
    other.release()
    assert main(["free-energy", str(config), "--output", str(output)]) == 0
