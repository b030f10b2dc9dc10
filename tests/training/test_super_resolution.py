"""Super-resolution by configuration: trainings, flow files that need no others, runs."""

import json

import pytest
import torch

from flowmc.cli import main
from flowmc.commands.train import train
from flowmc.config.toml_text import toml_text
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.plan import make_plan

COUPLING = {"name": "affine_coupling", "layers": 2, "hidden": [3]}
CONTINUOUS = {
    "name": "continuous",
    "frequencies": 5,
    "site_channels": 3,
    "time_frequencies": 1,
    "time_channels": 2,
    "steps": 12,
}


def tables(lattice, prior, flow=COUPLING, **training):
    return {
        "theory": {"action": "phi4", "lattice": lattice, "m2": -4.0, "lambda": 8.0},
        "prior": prior,
        "flow": flow,
        "training": {"steps": 3, "batch": 8, "evaluate_samples": 32, **training},
    }


def finer(base, m2=1.0, **keys):
    return {"name": "super_resolution", "base": base, "m2": m2, **keys}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Files of 4x4, of 8x8 from it, and of 16x16 from that."""
    folder = tmp_path_factory.mktemp("flows")
    paths = [folder / f"{extent}.safetensors" for extent in (4, 8, 16)]
    first = tables([4, 4], {"name": "free_field", "m2": 2.0}, CONTINUOUS, precision=32)
    assert train(make_plan(first), paths[0])
    second = tables([8, 8], finer(str(paths[0])), gradient="path", precision=32)
    assert train(make_plan(second), paths[1])
    assert train(make_plan(tables([16, 16], finer(str(paths[1]), 0.3))), paths[2])
    return paths


@pytest.mark.slow
def test_weights_of_the_coarse_sampler_stay_and_are_in_the_file(ladder):
    small, medium, large = (load_flow(path).model for path in ladder)
    held = medium.prior.base.state_dict()
    for name, value in small.state_dict().items():
        assert torch.equal(held[name], value)
    held = large.prior.base.state_dict()
    for name, value in medium.state_dict().items():
        assert torch.equal(held[name], value.double())
    assert any(bool(p.any()) for n, p in medium.flow.named_parameters() if "convolutions.1" in n)


def test_a_file_needs_no_other_file(ladder, tmp_path):
    rng = stream(1, 0, "test")
    x, log_q = load_flow(ladder[2]).model.sample(3, rng)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(ladder[2].read_bytes())
    hidden = [path.rename(path.with_suffix(".hidden")) for path in ladder]
    try:
        loaded = load_flow(moved)
        again, same = loaded.model.sample(3, stream(1, 0, "test"))
        assert torch.equal(x, again)
        assert torch.equal(log_q, same)
        assert torch.allclose(loaded.model.log_prob(x), log_q, rtol=0, atol=1e-2)
    finally:
        for path, file in zip(ladder, hidden, strict=True):
            file.rename(path)


def test_the_card_says_what_the_sampler_was_made_from(ladder):
    card = read_card(ladder[2])
    parameters = card["prior"]["parameters"]
    assert parameters["coarse_m2"] == pytest.approx(1.2)
    base = parameters["base"]
    assert base["source"] == str(ladder[1])
    assert base["fingerprint"] == load_flow(ladder[1]).model.fingerprint()
    assert base["theory"]["lattice"] == [8, 8]
    assert base["flow"]["name"] == "affine_coupling"
    inner = base["prior"]["parameters"]["base"]
    assert inner["flow"]["name"] == "continuous"
    assert inner["prior"]["name"] == "free_field"
    assert card["measured"]["density_error"] >= 0, "of the continuous flow two levels below"


def test_evaluate_and_run_take_such_a_flow(ladder, tmp_path, capsys):
    # Three steps of training: the numbers are bad, but they are there.
    assert main(["evaluate", str(ladder[1]), "--samples", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 64
    theory = tables([8, 8], None)["theory"]
    config = {
        "theory": theory,
        "run": {"updates": 3, "thermalization": 1},
        "chains": {"count": 2, "seed": 1},
        "update": [
            {"kernel": "hmc", "steps": 5, "trajectory": 1.0},
            {"kernel": "independence", "flow": str(ladder[1]), "proposals": 4},
        ],
    }
    path = tmp_path / "run.toml"
    path.write_text(toml_text(config))
    assert main(["run", str(path), "--output", str(tmp_path / "run")]) == 0


@pytest.mark.slow
def test_a_resumed_training_is_the_same(ladder, tmp_path):
    prior = finer(str(ladder[0]))
    plan = make_plan(tables([8, 8], prior, steps=4, checkpoint_every=1))
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert train(plan, whole)
    stops = iter([False, True])
    assert not train(plan, parts, stop=lambda: next(stops))
    assert train(plan, parts, resume=True)
    first, second = (load_flow(path).model.state_dict() for path in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_doublings_without_flows_between(ladder):
    nested = finer({"prior": finer(str(ladder[0]), 1.2)}, 0.3)
    plan = make_plan(tables([16, 16], nested))
    prior = plan.build("cpu").module.prior
    assert prior.base.prior.base.flow.lattice == (4, 4)
    x, log_q = prior.sample(2, stream(1, 0, "test"))
    assert torch.allclose(prior.log_prob(x), log_q, rtol=0, atol=1e-2)
    parameters = prior.card_parameters()
    inner = parameters["base"]["prior"]["parameters"]
    assert inner["coarse_m2"] == pytest.approx(4.8)
    assert inner["base"]["source"] == str(ladder[0])


def test_coupling_flows_go_to_other_lattices(tmp_path):
    path = tmp_path / "8.safetensors"
    base = {"prior": {"name": "free_field", "m2": 2.0}}
    assert train(make_plan(tables([8, 8], finer(base))), path)
    model = load_flow(path, lattice=[8, 16]).model
    assert model.sample(2, stream(1, 0, "test"))[0].shape == (2, 8, 16)
    assert model.prior.base.prior.lattice == (4, 8)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("nowhere.safetensors", "base = 'nowhere.safetensors': there is no flow file"),
        ("zoo:phi4_12x12_l5.276", "12x12 lattice and cannot be used on 4x4"),
        ("zoo:u1_2d_b7.00", "exchange flow|scalar"),
        ({"flow": {"name": "identity"}}, "missing key 'prior'"),
        ({"prior": {"name": "gaussian"}, "flow": COUPLING}, "has weights: train a sampler"),
        ({"prior": {"name": "gaussian"}, "flows": COUPLING}, "unknown key 'flows'; did you mean"),
        ({"prior": {"name": "gausian"}}, "did you mean 'gaussian'"),
        ({"prior": {"name": "gaussian"}, "mixture": "flip"}, "unknown mixture 'flip'"),
    ],
)
def test_messages(base, says):
    with pytest.raises(ConfigError, match=says):
        make_plan(tables([8, 8], finer(base)))
