"""Actions whose density is an integral over auxiliary fields."""

import contextlib
import math
import shutil
from pathlib import Path

import pytest
import torch

from flowmc.actions import FreeScalar, Wilson, check_force
from flowmc.cli import main
from flowmc.kernels import HMC, Cycle, SignFlip, State
from flowmc.kernels.base import begin
from flowmc.random import stream
from flowmc.registry import ConfigError
from tests.kernels.auxiliary import AtChi, Marginal, Stale, Toy, matrix
from tests.run.small_runs import digests, write


def exact_square(action):
    """<phi^2> by quadrature on a grid, whose error is below 1e-8."""
    x = torch.linspace(-9, 9, 721, dtype=torch.float64)
    field = torch.cartesian_prod(x, x)
    weight = torch.linalg.det(matrix(field, action)).abs() * (-0.5 * field.square().sum(1)).exp()
    return float((weight * field.square().mean(1)).sum() / weight.sum())


def run(action, kernels, chains=2500, updates=15):
    rng = stream(5, 0, "test")
    kernel = Cycle(kernels)
    state = begin(kernel, action.hot(chains, rng))
    for _ in range(updates):
        state, info = kernel.step(state, rng)
    assert float(info.parts["hmc"].is_accepted.double().mean()) > 0.7
    return state


def deviation(state, action):
    values = state.field.square().mean(1)
    error = float(values.std()) / math.sqrt(len(values))
    return abs(float(values.mean()) - exact_square(action)) / error


@pytest.mark.parametrize("kind", [Toy, Marginal, Stale])
def test_hmc_samples_the_marginal(kind):
    """5 errors of independent chains, false alarms 6e-7; without fermions <phi^2> = 1."""
    action = kind([2])
    kernels = [HMC(action, steps=5)]
    if kind is Marginal:
        kernels.append(SignFlip(action))
    state = run(action, kernels)
    assert (deviation(state, action) < 5) == (kind is not Stale)
    assert exact_square(action) > 1.3
    # What is cached is S of the field alone, never that at the auxiliary fields.
    assert state.action is None
    if kind is Marginal:
        assert not state.carried
        assert torch.equal(begin(kernels[0], state.field).action, action(state.field))
    else:
        chi = state.carried["toy.chi"].value
        assert chi.shape == (len(state.field), 2) and not state.moved(state.field).carried


def test_a_sum_with_an_action_of_auxiliary_fields():
    toy, free = Toy([2]), FreeScalar([2], m2=0.2)
    action = toy + free
    rng = stream(2, 0, "test")
    state = action.refresh(State(action.hot(3, rng)), rng)
    given = action.given(state)
    expected = AtChi(toy, state.carried["toy.chi"].value)(state.field) + free(state.field)
    assert torch.allclose(given(state.field), expected)
    assert check_force(given, state.field, rng) < 1e-6
    assert action.has_auxiliaries and not action.is_known and (free + free).is_known
    after, _ = HMC(action).step(HMC(action).init(state.field), rng)
    assert after.action is None and "toy.chi" in after.carried
    with pytest.raises(ValueError, match="no action with the same auxiliary fields"):
        2.0 * toy


class WithFermions(Wilson):
    """Its inherited formulas are those of another action."""

    def given(self, state):
        return Wilson(self.group, self.lattice, beta=self.beta)


def test_what_needs_the_action_of_a_field_alone_is_refused():
    toy = Toy([2])
    field = toy.hot(2, stream(1, 0, "test"))
    for refused in (SignFlip(toy).init, toy, toy.force):
        with pytest.raises(ConfigError, match="known at given auxiliary fields only"):
            refused(field)
    gauge = WithFermions("SU(3)", [2, 2], beta=1.0)
    assert gauge.compilable() is None
    with pytest.raises(ConfigError, match="known at given auxiliary fields only"):
        gauge(gauge.cold(1))


def test_a_run_of_it_is_resumed_with_what_it_drew(tmp_path, monkeypatch, capsys):
    shutil.copy(Path(__file__).parent / "auxiliary.py", tmp_path / "toy_action.py")
    tables = {
        "theory": {"action": "toy_action:Toy", "lattice": [2]},
        "chains": {"count": 3, "start": "hot", "seed": 2},
        "update": [{"kernel": "hmc", "steps": 3}],
        "run": {"thermalization": 2, "updates": 6, "checkpoint_every": 1, "report": False},
        "measure": {"observables": ["toy_action:square"]},
    }
    path = write(tmp_path / "a.toml", tables)
    monkeypatch.chdir(tmp_path)
    assert main(["run", path, "--output", "whole"]) == 0
    step, calls = HMC.step, []

    def stop(*arguments, **keywords):
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    monkeypatch.setattr(HMC, "step", stop)
    with contextlib.suppress(KeyboardInterrupt):
        main(["run", path, "--output", "parts"])
    monkeypatch.setattr(HMC, "step", step)
    assert len(calls) == 5
    assert main(["run", path, "--output", "parts", "--resume"]) == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    capsys.readouterr()
    for changes in (
        {"update": [{"kernel": "sign_flip"}]},
        {"measure": {"observables": ["action"]}},
    ):
        path = write(tmp_path / "b.toml", tables | changes)
        assert main(["run", path, "--output", "other", "--force"]) == 2
        assert "known at given auxiliary fields only" in capsys.readouterr().err
