"""Targets that move while the flow learns."""

import math

import pytest
import torch

from flowmc.actions import FreeScalar
from flowmc.commands.train import train
from flowmc.flows import AffineCouplingFlow, FlowModel, GaussianPrior
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.registry import ConfigError
from flowmc.training import ReverseKL, Settings, Trainer
from flowmc.training.objectives import Annealed
from flowmc.training.plan import make_plan

TABLES = {
    "theory": {"action": "free", "lattice": [4], "m2": 1.0},
    "prior": {"name": "gaussian"},
    "flow": {"name": "affine_coupling", "layers": 2, "hidden": [2]},
    "annealing": {"start": {"m2": 3.0}, "steps": 4},
    "training": {"steps": 6, "batch": 8, "evaluate_samples": 16},
}


class Frozen(ReverseKL):
    """Remembers the actions that it is evaluated with."""

    def evaluate(self, n, rng):
        self.seen = [*getattr(self, "seen", []), self.action.m2]
        return super().evaluate(n, rng)


def test_the_couplings_move_as_stated():
    action = FreeScalar([4], m2=1.0)
    model = FlowModel(GaussianPrior(action), AffineCouplingFlow(action, layers=2)).double()
    objective = Frozen(model, action)
    Trainer(Annealed(objective, {"m2": 3.0}, 4), Settings(steps=6, batch=4)).run()
    assert objective.seen == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0, 1.0], abs=1e-14)
    assert objective.action is action


def test_a_loss_is_that_of_the_moved_target():
    """An identity flow: the loss is exact up to the draws, which are the same for both."""
    action = FreeScalar([4], m2=1.0)
    losses = []
    for start, target in ((3.0, action), (None, action.at(m2=2.0))):
        model = FlowModel(GaussianPrior(action), AffineCouplingFlow(action, layers=2)).double()
        objective = ReverseKL(model, target)
        if start is not None:
            objective = Annealed(objective, {"m2": start}, 2)
            objective.begin(1)
        losses.append(float(objective.evaluate(16, torch.Generator().manual_seed(1)).loss))
    assert losses[0] == losses[1] and math.isfinite(losses[0])


def test_a_resumed_training_is_the_same(tmp_path):
    train(make_plan(TABLES), tmp_path / "a.safetensors")
    count = iter(range(100))
    train(make_plan(TABLES), tmp_path / "b.safetensors", stop=lambda: next(count) == 1)
    train(make_plan(TABLES), tmp_path / "b.safetensors", resume=True)
    one, two = (load_flow(tmp_path / f"{name}.safetensors").flow.state_dict() for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert read_card(tmp_path / "a.safetensors")["theory"]["couplings"]["m2"] == 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"annealing": {"start": {"m3": 3.0}, "steps": 4}}, "no coupling 'm3'"),
        ({"annealing": {"start": {}, "steps": 4}}, "names no coupling"),
        ({"annealing": {"start": {"m2": 3.0}, "steps": 0}}, "at least 1"),
        ({"annealing": {"start": {"m2": 3.0}}}, "steps"),
        ({"size": [{"lattice": [2]}]}, "without"),
        (
            {
                "training": {**TABLES["training"], "objective": "forward_kl"},
                "chains": {"count": 4, "thermalization": 1},
            },
            r"\[annealing\].*learns from configurations of one theory",
        ),
    ],
)
def test_annealing_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        make_plan({**TABLES, **change})
