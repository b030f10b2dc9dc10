"""Trainings that start from another flow."""

import pytest
import torch

from flowmc.actions import Phi4
from flowmc.commands.train import train
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.registry import ConfigError
from flowmc.training.plan import make_plan

SMALL = {
    "frequencies": 5,
    "site_channels": 3,
    "time_frequencies": 1,
    "time_channels": 2,
    "steps": 3,
}


def tables(lattice, flow=None, **training):
    return {
        "theory": {"action": "phi4", "lattice": lattice, "m2": -4.0, "lambda": 8.0},
        "prior": {"name": "free_field", "m2": 2.0},
        "flow": flow or {"name": "continuous", **SMALL},
        "training": {"steps": 3, "batch": 8, "evaluate_samples": 16, **training},
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "small.safetensors"
    assert train(make_plan(tables([4, 4])), path)
    return path


def built(*arguments, **keys):
    return make_plan(tables(*arguments, **keys)).build("cpu").module.flow


def test_on_the_same_lattice_all_weights_are_taken(trained):
    expected = load_flow(trained).flow
    flow = built([4, 4], start_from=str(trained))
    for name, value in expected.state_dict().items():
        assert torch.equal(flow.state_dict()[name], value)
    other = {"name": "continuous", **SMALL, "steps": 9}
    assert built([4, 4], other, start_from=str(trained)).steps == 9


def test_kernels_of_a_smaller_lattice_are_embedded(trained, tmp_path):
    small = load_flow(trained)
    flow = built([8, 8], start_from=str(trained))
    expected = small.flow.embedded(Phi4([8, 8], m2=-4.0, lam=8.0))
    assert torch.equal(flow.kernels, expected.kernels)
    assert bool(flow.kernels.any())
    assert train(make_plan(tables([8, 8], start_from=str(trained))), tmp_path / "l.safetensors")
    [before] = read_card(tmp_path / "l.safetensors")["training"]["ancestors"]
    seconds = small.card["training"]["seconds"]
    assert before == {"flow": trained.name, "seconds": seconds}


@pytest.mark.parametrize(
    ("lattice", "flow", "says"),
    [
        ([2, 2], None, "cannot be embedded"),
        ([4, 4], {"name": "affine_coupling"}, "is a ContinuousFlow, not a AffineCouplingFlow"),
        ([4, 4], {"name": "continuous", **SMALL, "frequencies": 6}, "is of shape"),
    ],
)
def test_another_flow_is_refused(trained, lattice, flow, says):
    with pytest.raises(ConfigError, match=says):
        make_plan(tables(lattice, flow, start_from=str(trained)))
