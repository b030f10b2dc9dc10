"""Every objective that is registered keeps its contract, and the check finds what does not."""

import math

import pytest
import torch
from torch import nn

from flowmc.actions import FreeScalar
from flowmc.flows import Flow, FlowModel, FreeFieldPrior
from flowmc.registry import BUILTIN, ConfigError
from flowmc.testing import ContractError, check_objective
from flowmc.training import ReverseKL
from flowmc.training.objectives import Batch
from flowmc.training.plan import make_plan

THEORY = {"action": "free", "lattice": [4, 4], "m2": 0.8}
CHAINS = {"count": 32, "thermalization": 20}


class Factors(Flow):
    """One factor for every site: with a free field of the right mass, exact where it starts."""

    def __init__(self, action, *, start: float = 0.0):
        super().__init__()
        self.s = nn.Parameter(torch.full(tuple(action.lattice), start))

    def forward(self, x, log_density):
        return x * self.s.exp(), log_density - self.s.double().sum()

    def inverse(self, y, log_density):
        return y * (-self.s).exp(), log_density + self.s.double().sum()


FLOW = {"name": f"{__name__}:Factors"}
# All kinds of trainings that there are, with a model that is exact.
KINDS = {
    "sampler": {"flow": FLOW, "prior": {"name": "free_field", "m2": 0.8}},
    "sampler on configurations": {
        **{"flow": FLOW, "prior": {"name": "free_field", "m2": 0.8}},
        "chains": CHAINS,
    },
    # The harmonic oscillator of m0 is that of another m0, rescaled.
    "exchange": {
        "theory": {"action": "double_well", "lattice": [6], "m0": 1.0, "mu2": 0.8, "lambda": 0.0},
        "flow": FLOW | {"start": -0.25},
        "exchange": {
            "from": {"m0": 1.0},
            "to": {"m0": math.exp(0.5)},
            **{"chains": 32, "thermalization": 20},
        },
    },
    "local": {
        "flow": {"name": "block_coupling", "layers": 2, "hidden": [4], "bins": 2},
        "prior": {"name": "block_gaussian", "m2": 0.8},
        "block": {"extents": [2, 1]},
        "chains": CHAINS,
    },
}


def objective_of(name):
    """Return an objective from the tables that it can be had from."""
    for tables in KINDS.values():
        training = {"objective": name, "precision": 64, "batch": 16, "steps": 1}
        try:
            return make_plan({"theory": THEORY, "training": training, **tables}).build("cpu")
        except ConfigError as error:
            refusal = error
    raise refusal


@pytest.mark.parametrize("name", BUILTIN["objectives"])
def test_registered_objectives(name):
    check_objective(objective_of(name), is_exact=True)


def model(start=0.0):
    action = FreeScalar([4, 4], m2=0.8)
    flow = Factors(action, start=start).double()
    return FlowModel(FreeFieldPrior(action, m2=0.8).double(), flow), action


def test_a_model_that_is_not_exact_is_found():
    with pytest.raises(ContractError, match="not constant"):
        check_objective(ReverseKL(*model(0.02)), is_exact=True)


class Biased(ReverseKL):
    def evaluate(self, n, rng):
        batch = super().evaluate(n, rng)
        surrogate = batch.surrogate + 2.0 * self.model.flow.s.sum()
        return Batch(surrogate, batch.loss, batch.log_weights)


class Infinite(ReverseKL):
    def evaluate(self, n, rng):
        batch = super().evaluate(n, rng)
        return Batch(batch.surrogate / 0.0, batch.loss, batch.log_weights)


class Many(ReverseKL):
    def evaluate(self, n, rng):
        batch = super().evaluate(n, rng)
        return Batch(batch.surrogate, batch.loss, batch.log_weights.repeat(2))


@pytest.mark.parametrize(
    ("kind", "sentence"), [(Biased, "off zero"), (Infinite, "not finite"), (Many, "not those of")]
)
def test_what_is_broken_is_found(kind, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_objective(kind(*model()), is_exact=True)
