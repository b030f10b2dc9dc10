"""The flow of lattices of any size: its kernel, its transfer, and training on a mix of sizes."""

import math

import pytest
import torch
from numpy.polynomial import chebyshev

from flowmc.actions import FreeScalar, Phi4
from flowmc.commands.train import train
from flowmc.estimators.weights import effective_sample_size
from flowmc.flows import FreeFieldPrior, MultiLatticeFlow
from flowmc.flows.cards.files import load_flow
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.plan import make_plan

SMALL = {"frequencies": 7, "site_channels": 4, "time_frequencies": 2, "time_channels": 3}
# Of physical mass 3 in a box of unit extent, from a prior of mass 5.
TABLES = {
    "theory": {"action": "free", "lattice": [6, 6], "m2": 0.25},
    "size": [{"lattice": [3, 3], "m2": 1.0}, {"lattice": [4, 4], "m2": 0.5625}],
    "prior": {"name": "free_field", "mass_extent": 5.0},
    "flow": {"name": "multi_lattice", "coarsest": 3, "reach": 1, **SMALL, "steps": 4},
    "training": {
        "steps": 110,
        "batch": 96,
        "optimiser": "soap",
        "learning_rate": 1e-2,
        "gradient": "path",
        "precision": 32,
        "refined_steps": 16,
        "evaluate_samples": 256,
    },
}


def make(lattice, **keys):
    torch.manual_seed(3)
    action = Phi4(lattice, m2=-4.0, lam=6.0)
    flow = MultiLatticeFlow(action, **{"coarsest": 3, **SMALL, **keys}).double()
    torch.nn.init.normal_(flow.far)
    torch.nn.init.normal_(flow.near)
    return flow


@pytest.mark.parametrize("lattice", [[5], [7, 7], [8, 4], [4, 5, 6]])
def test_the_kernel_is_what_it_says(lattice):
    flow = make(lattice, distances=4, degree=2, reach=1)
    kernels = flow._spatial_kernels()
    spacing = 1 / lattice[0]
    near = [tuple(sorted(site)) for site in _sites(len(lattice))]
    for number, offset in enumerate(flow.spectrum.representatives.tolist()):
        distance = spacing * math.sqrt(sum(x * x for x in offset))
        expected = sum(
            spacing ** len(lattice)
            * math.exp(-0.5 * ((distance - b / 6) * 6) ** 2)
            * flow.far[b].detach()
            for b in range(4)
        )
        if max(offset) <= 1:
            terms = flow.near[:, near.index(tuple(sorted(offset)))].detach().numpy()
            expected = expected + torch.from_numpy(chebyshev.chebval(2 * 3 * spacing - 1, terms))
        assert torch.allclose(kernels[number], expected, atol=1e-13)


def _sites(dimensions):
    """Return the offsets within one site up to the symmetries, in order."""
    return [[0] * (dimensions - ones) + [1] * ones for ones in range(dimensions + 1)]


def test_a_smooth_field_moves_the_same_on_every_lattice():
    """Without the terms of the lattice: sums over sites are integrals, with small errors."""
    velocities = []
    for extent in (16, 32, 64):
        flow = make([extent, extent])
        with torch.no_grad():
            flow.near.zero_()
        place = torch.arange(extent, dtype=torch.float64) / extent
        wave = 0.5 * torch.sin(2 * math.pi * place)[:, None] + torch.cos(2 * math.pi * place) ** 2
        velocity, _ = flow.velocity(wave[None], 0.4)
        velocities.append(velocity[0, :: extent // 16, :: extent // 16].detach())
    size = float(velocities[-1].abs().max())
    errors = [float((v - velocities[-1]).abs().max()) / size for v in velocities[:2]]
    assert size > 0.1 and errors[0] < 0.05 and errors[1] < errors[0] / 3


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"distances": 1}, "distances >= 2"),
        ({"reach": -1}, "reach >= 0"),
        ({"degree": -1}, "degree >= 0"),
        ({"coarsest": 9}, "coarsest = 9"),
        ({"coarsest": 0}, "coarsest = 0"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        make([8, 8], **keys)


def test_the_prior_of_a_box():
    action = FreeScalar([6, 6], m2=1.0)
    assert FreeFieldPrior(action, mass_extent=3.0).free.m2 == 0.25
    for keys in ({}, {"m2": 1.0, "mass_extent": 1.0}):
        with pytest.raises(ValueError, match="one of m2 and mass_extent"):
            FreeFieldPrior(action, **keys)


def test_a_scaled_prior_is_normalised():
    """ln Z of a free field by draws of a wider one: exact at 6 standard errors, 2e-9."""
    target = FreeScalar([4, 4], m2=1.0)
    prior = FreeFieldPrior(target, m2=1.0, scale=1.2).to(torch.float64)
    x, log_q = prior.sample(4000, stream(1, 0, "test"))
    weights = (-target(x) - target.log_partition() - log_q).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05 and abs(float(weights.mean()) - 1) < 6 * error


@pytest.mark.slow
def test_training_on_a_mix_of_sizes(tmp_path):
    """Better at all sizes of the mix, at one between them, and at a larger one."""
    path = tmp_path / "mix.safetensors"
    assert train(make_plan(TABLES), path)
    for extent in (3, 4, 5, 6, 8):
        target = FreeScalar([extent, extent], m2=9 / extent**2)
        loaded = load_flow(path, lattice=[extent, extent])
        model = loaded.model.to(torch.float64)
        with torch.no_grad():
            x, log_q = model.sample(500, stream(2, 0, "test"))
            z, log_prior = model.prior.sample(500, stream(2, 0, "test"))
        trained = effective_sample_size(-target(x) - log_q).value
        before = effective_sample_size(-target(z) - log_prior).value
        assert trained > 0.9 and 1 - trained < 0.5 * (1 - before)


def test_a_training_goes_on_on_a_larger_lattice(tmp_path):
    small = {key: table for key, table in TABLES.items() if key != "size"}
    small["training"] = {**TABLES["training"], "steps": 2}
    train(make_plan(small), tmp_path / "small.safetensors")
    large = {**small, "theory": {"action": "free", "lattice": [9, 9], "m2": 1 / 9}}
    large["training"] = {**small["training"], "start_from": str(tmp_path / "small.safetensors")}
    flow, old = make_plan(large).build("cpu").module.flow, load_flow(tmp_path / "small.safetensors")
    assert flow.lattice == (9, 9)
    given = old.flow.state_dict()
    assert given["far"].any()
    assert all(torch.equal(value, given[key]) for key, value in flow.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": {"lattice": [3, 3]}}, "in double brackets"),
        ({"size": [{"lattice": [2, 2]}]}, "coarsest"),
        ({"size": [{"lattice": [4, 4], "m3": 1.0}]}, "unknown key 'm3'"),
        ({"flow": {"name": "continuous", **SMALL}}, "belong to one lattice"),
        ({"training": {**TABLES["training"], "batch": 97}}, "cannot be shared evenly"),
        ({"chains": {"count": 8}}, "without"),
    ],
)
def test_mixes_that_cannot_work(change, message):
    with pytest.raises(ConfigError, match=message):
        make_plan({**TABLES, **change})


def test_coupling_flows_learn_from_a_mix_too(tmp_path):
    tables = {**TABLES, "flow": {"name": "affine_coupling", "layers": 2, "hidden": [2]}}
    tables["theory"] = {"action": "free", "lattice": [4, 4], "m2": 0.5}
    tables["size"] = [{"lattice": [2, 6]}]
    tables["training"] = {**TABLES["training"], "steps": 2, "batch": 8, "optimiser": "adam"}
    del tables["training"]["refined_steps"]
    train(make_plan(tables), tmp_path / "a.safetensors")
    moved = load_flow(tmp_path / "a.safetensors", lattice=[2, 6]).flow.state_dict()
    fresh = make_plan({**tables, "training": {**tables["training"], "steps": 1}})
    before = fresh.build("cpu").module.flow.state_dict()
    assert all(not torch.equal(moved[key], before[key].to(moved[key])) for key in moved)
