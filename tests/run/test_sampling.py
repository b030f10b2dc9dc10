"""``flowmc.sample``: chains in memory, the same as those of runs."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import flowmc
from flowmc.actions import FreeScalar, Phi4
from flowmc.chains.assembly import assemble
from flowmc.chains.config import load_config
from flowmc.chains.storage.recorded import RecordedRun
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.kernels import HMC, Info, Kernel, Mixture, NonFiniteStateError, SignFlip, State
from flowmc.random import stream
from flowmc.registry import ConfigError
from tests.run.small_runs import save_untrained_flow

ACTION = FreeScalar([4, 4], m2=1.0)


def hot(chains, action=ACTION):
    return action.hot(chains, stream(5, 0, "start"))


def test_importing_flowmc_leaves_torch_alone():
    program = "import flowmc, sys; assert 'torch' not in sys.modules; flowmc.nothing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "AttributeError" in done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.parametrize("schedule", ["cycle", "mixture"])
def test_the_chains_are_those_of_a_run(tmp_path, schedule):
    """Bit for bit: observables, diagnostics, tuning, and the fields at the end."""
    save_untrained_flow(tmp_path / "f.safetensors")
    tables = {
        "theory": {"action": "phi4", "lattice": [4, 4], "m2": -1.0, "lambda": 0.5},
        "chains": {"count": 3, "start": "hot", "seed": 5},
        "update": [
            {"kernel": "hmc", "steps": 3, "target_acceptance": 0.8},
            {"kernel": "independence", "flow": "f.safetensors", "proposals": 2},
            {"kernel": "hmc", "steps": 2, "trajectory": 0.5, "repeat": 2},
        ],
        "run": {
            "thermalization": 7,
            "updates": 11,
            "measure_every": 2,
            "save_every": 11,
            "schedule": schedule,
            "report": False,
        },
        "ensemble": {"format": "npy"},
        "measure": {"observables": ["magnetization", {"name": "correlator"}]},
    }
    (tmp_path / "a.toml").write_text(toml_text(tables))
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 0
    run = RecordedRun.open(tmp_path / "out")
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    seen = []
    samples = flowmc.sample(
        assemble(load_config(tmp_path / "a.toml")),
        hot(3, action),
        11,
        thermalization=7,
        measure_every=2,
        observables=["magnetization", {"name": "correlator"}],
        seed=5,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(update, 18) for update in range(1, 19)]
    for phase in ("thermalization", "production"):
        ours, theirs = getattr(samples, phase), getattr(run, phase)
        assert np.array_equal(ours.updates, theirs.updates)
        assert ours.observables.keys() == theirs.observables.keys()
        for name, values in theirs.observables.items():
            assert np.array_equal(ours.observables[name], values)
        for name, values in ours.kernels.items():
            for key, series in values.items():
                assert np.array_equal(series, theirs.kernels[name][key], equal_nan=True), (
                    name,
                    key,
                )
    assert samples.production.kernels.keys() == run.production.kernels.keys()
    assert samples.tuning == run.head.tuning and samples.updates == 11
    for chain in range(3):
        (saved,) = (tmp_path / "out/ensemble").glob(f"*{chain}/*11*")
        field = torch.from_numpy(np.load(saved))
        assert torch.equal(field.T, samples.field[chain]) or torch.equal(
            field, samples.field[chain]
        )
    assert np.array_equal(samples.series("magnetization"), run.series("magnetization"))
    before = samples.series("magnetization", thermalization=True)
    assert np.array_equal(before, run.series("magnetization", thermalization=True))
    assert before.shape == (3, 3) and samples.series("correlator").shape[:2] == (5, 3)


def test_going_on_is_one_longer_call():
    kernel = Mixture([HMC(ACTION, steps=3), SignFlip(ACTION)])
    keys = {"thermalization": 3, "measure_every": 2, "observables": ["phi2"], "seed": 2}
    whole = flowmc.sample(kernel, hot(4), 21, **keys)
    start = hot(4)
    first = flowmc.sample(kernel, start, 4, **keys)
    assert torch.equal(start, hot(4))
    field = first.field.clone()
    for again in (first.more(17), first.more(8).more(9)):
        assert torch.equal(again.field, whole.field) and again.updates == 21
        assert np.array_equal(again.series("phi2"), whole.series("phi2"))
        for name, values in whole.production.kernels.items():
            for key, series in values.items():
                assert np.array_equal(again.production.kernels[name][key], series, equal_nan=True)
    assert torch.equal(first.field, field) and len(first.series("phi2")) == 2


def test_estimates_have_the_exact_mean():
    """<phi^2> of a free field within 6 errors: a false alarm has a probability of 2e-9."""
    exact = float(ACTION.propagator()[0, 0])
    kernel = HMC(ACTION, steps=4, trajectory=1.2, target_acceptance=0.9)

    def phi_squared(field, action):
        return field.square().flatten(1).mean(1)

    def momenta(field, action):
        return torch.stack([phi_squared(field, action), field.flatten(1).mean(1)], 1)

    samples = flowmc.sample(
        kernel, hot(64), 100, thermalization=40, observables=[phi_squared, momenta], seed=3
    )
    estimate = samples.estimate("phi_squared")
    assert abs(estimate.mean - exact) < 6 * estimate.error < 0.1
    both = samples.estimate("momenta")
    assert both.shape == (2,) and both[0].mean == estimate.mean
    assert 0.5 < samples.acceptance["hmc"] <= 1
    tuned = kernel.tuning()
    samples.more(5)
    assert kernel.tuning() == tuned == {"log_step_size": tuned["log_step_size"]}


class _Dying(Kernel):
    name = "dying"
    action = ACTION

    def init(self, field):
        return State(field)

    def step(self, state, rng):
        field = state.field.clone()
        field[1] /= 0.0 if state.action is None else 1.0
        return state.moved(field), Info(torch.ones(2, 1, dtype=torch.bool))


class _Blind(_Dying):
    action = None


def test_unusable_input_is_refused():
    hmc = HMC(ACTION, steps=1)
    field = hot(2)
    for kernel, start, updates, keys, sentence in (
        (hmc, field, -1, {}, "updates = -1"),
        (hmc, field, 1, {"measure_every": 0}, "measure_every = 0"),
        (hmc, [field], 1, {}, "use flowmc run"),
        (hmc, field / 0, 1, {}, "^the start configuration of chain 0 is not finite"),
        (hmc, field[:, :2], 1, {}, "does not fit"),
        (hmc, field, 1, {"observables": ["phi3"]}, "phi"),
        (hmc, field, 1, {"observables": ["plaquette"]}, "plaquette: "),
        (hmc, field, 1, {"observables": ["phi2", "phi2"]}, "listed twice"),
        (_Blind(), field, 1, {"observables": ["phi2"]}, "no kernel has an action"),
    ):
        with pytest.raises((ConfigError, ValueError), match=sentence):
            flowmc.sample(kernel, start, updates, **keys)
    with pytest.raises(NonFiniteStateError, match=r"update 2: .* chain 1 is not finite") as raised:
        flowmc.sample(_Dying(), field, 3)
    assert raised.value.chain == 1
    samples = flowmc.sample(hmc, field, 2, observables=["phi2"])
    with pytest.raises(ConfigError, match="did you mean 'phi2'"):
        samples.series("phi_2")
    with pytest.raises(ConfigError, match="replica 1"):
        samples.series("phi2", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run on disk."""
    path = tmp_path_factory.mktemp("run")
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": 1.0},
        "chains": {"count": 4, "start": "hot", "seed": 5},
        "update": [{"kernel": "hmc", "steps": 4}, {"kernel": "sign_flip"}],
        "run": {"thermalization": 10, "updates": 60, "measure_every": 2, "report": False},
        "measure": {"observables": ["phi2", "correlator"]},
    }
    (path / "a.toml").write_text(toml_text(tables))
    assert main(["run", str(path / "a.toml"), "--output", str(path / "out")]) == 0
    return flowmc.read_run(path / "out")


def test_a_run_is_read(run):
    assert run.attributes["chains"] == run.chains == 4 and run.updates == 60
    assert run.observables == ("correlator", "phi2")
    assert run.series("phi2").shape == (30, 4)
    assert run.series("phi2", thermalization=True).shape == (5, 4)
    assert run.series("correlator").shape[:2] == (30, 4)
    assert run.production.kernels["hmc"]["accepted"].shape == (30, 4)
    assert run.config["chains"]["seed"] == 5
    with pytest.raises(ConfigError, match="did you mean 'phi2'"):
        run.series("phi_2")
    with pytest.raises(ConfigError, match="not a directory"):
        flowmc.read_run(run.path / "none")


def test_pyerrors_finds_the_errors_of_the_estimates(run):
    found = run.to_pyerrors("free")
    estimate = run.estimate("phi2")
    observable = found["phi2"]
    observable.gamma_method()
    assert observable.value == pytest.approx(estimate.mean, rel=1e-12)
    assert observable.dvalue == pytest.approx(estimate.error, rel=0.3)
    assert observable.names == [f"free|r{chain}" for chain in range(4)]
    assert list(observable.idl["free|r0"]) == list(range(12, 71, 2))
    assert found["correlator"].shape == run.series("correlator").shape[2:]
    # On the same configurations: a difference with itself has no error.
    nothing = found["phi2"] - run.to_pyerrors("free", names=["phi2"])["phi2"]
    nothing.gamma_method()
    assert abs(nothing.dvalue) < 1e-14
    assert flowmc.sample(HMC(ACTION), hot(1), 5).to_pyerrors("one").keys() == {
        "action",
        "magnetization",
        "phi2",
    }


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_arviz_has_the_series(run):
    arviz = pytest.importorskip("arviz")
    data = run.to_arviz()
    phi2 = data.posterior["phi2"]
    assert phi2.dims == ("chain", "draw") and np.array_equal(phi2.values, run.series("phi2").T)
    assert np.array_equal(phi2.draw, run.production.updates)
    warm = data.warmup_posterior["phi2"]
    assert np.array_equal(warm.values.T, run.series("phi2", thermalization=True))
    assert np.array_equal(warm.draw, run.thermalization.updates)
    accepted = data.sample_stats["hmc_accepted"]
    assert np.array_equal(accepted.values.T, run.production.kernels["hmc"]["accepted"])
    summary = arviz.summary(data, var_names=["phi2"], kind="diagnostics")
    assert float(summary["r_hat"].iloc[0]) < 1.5
    samples = flowmc.sample(HMC(ACTION), hot(2), 6, observables=["phi2"])
    assert samples.to_arviz().posterior["phi2"].shape == (2, 6)
    assert "warmup_posterior" not in samples.to_arviz().groups()


def test_arviz_that_is_missing_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ConfigError, match=r"flowmc-lattice\[arviz\]"):
        run.to_arviz()
