"""Blocks, tilings, and flows of a block given its surroundings: geometry, densities, symmetry."""

import itertools
import math

import pytest
import torch

from flowmc.actions import DoubleWell, FreeScalar, Phi4, Wilson
from flowmc.actions.base import Action
from flowmc.flows import Block, BlockCouplingFlow, BlockGaussian, LocalFlowModel
from flowmc.flows.base import Flow, check_inverse, check_log_det
from flowmc.flows.cards.building import build_flow, build_local_model
from flowmc.flows.cards.files import load_flow, load_local_flow, save_flow
from flowmc.flows.local.blocks import Tiling
from flowmc.flows.local.models import block_action_difference
from flowmc.flows.parts.interval_splines import IntervalSpline
from flowmc.groups import Real
from flowmc.registry import ConfigError

PHI4 = Phi4([6, 5], m2=-4.0, lam=5.0)
# theory and block: one to three dimensions, odd extents, collars that touch.
CASES = [
    (PHI4, [2, 3]),
    (PHI4, [5, 4]),
    (PHI4, [1, 1]),
    (DoubleWell([7], m0=1.0), [3]),
    (Phi4([4, 3, 5], kappa=0.2, lam=0.3), [2, 2, 2]),
]


def local_model(action, extents, rng, size=0.3, **options):
    block = Block.of(action, extents)
    flow = BlockCouplingFlow(block, **{"layers": 3, "hidden": [4, 3], "bins": 3, **options})
    model = LocalFlowModel(block, BlockGaussian(action, block, m2=0.7), flow).double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=rng)
            parameter.add_(size * noise)
    return model


def patches(action, block, rng, chains=3):
    field = action.hot(chains, rng)
    tiling = Tiling(action.lattice, block)
    index = tiling.patches(tiling.draw_shift(rng))
    return field[:, None].flatten(2)[:, 0][:, index.flatten()].reshape(-1, *block.patch)


class Given(Flow):
    """A conditional flow with fixed surroundings, of every chain or of all chains alike."""

    def __init__(self, flow, patch):
        super().__init__()
        self.flow, self.patch = flow, patch

    def forward(self, x, log_density):
        patch = self.patch.expand(len(x), *self.patch.shape[1:])
        return self.flow.forward(x, patch, log_density)

    def inverse(self, y, log_density):
        patch = self.patch.expand(len(y), *self.patch.shape[1:])
        return self.flow.inverse(y, patch, log_density)


@pytest.mark.parametrize(("action", "extents"), CASES, ids=repr)
def test_blocks_of_a_tiling_do_not_see_each_other(action, extents):
    block = Block.of(action, extents)
    tiling = Tiling(action.lattice, block)
    counts = torch.zeros(math.prod(action.lattice), dtype=torch.int64)
    for shift in itertools.product(*(range(extent) for extent in action.lattice)):
        index = tiling.patches(torch.tensor(shift))
        assert index.shape == (tiling.count, math.prod(block.patch))
        inside = index[:, block.inside]
        assert len(inside.unique()) == inside.numel() == tiling.count * block.sites
        for mine, patch in zip(inside, index, strict=True):
            others = set(inside.flatten().tolist()) - set(mine.tolist())
            assert not others & set(patch.tolist())
            # The collar of a block is not in the block either.
            assert not set(mine.tolist()) & set(patch[block.collar].tolist())
        counts[inside.flatten()] += 1
    # Over all shifts every site is updated equally often.
    assert int(counts.min()) == int(counts.max()) == tiling.count * block.sites
    assert tiling.updated_share == tiling.count * block.sites / math.prod(action.lattice)


@pytest.mark.parametrize(("action", "extents"), CASES, ids=repr)
def test_differences_of_the_action_come_from_patches(action, extents, rng):
    block = Block.of(action, extents)
    tiling = Tiling(action.lattice, block)
    for theory in (action, 0.7 * action, action + 0.3 * action):
        assert theory.interaction_range == 1
        patch_action = theory.on_lattice(block.patch)
        field = theory.hot(4, rng)
        index = tiling.patches(tiling.draw_shift(rng))[-1]
        patch = field.flatten(1)[:, index].reshape(-1, *block.patch)
        new = torch.randn(4, *block.extents, dtype=torch.float64, generator=rng)
        moved = field.flatten(1).index_copy(1, index[block.inside], new.flatten(1))
        assert torch.equal(block.take(block.put(new, patch)), new)
        torch.testing.assert_close(
            block_action_difference(patch_action, block, new, patch),
            theory(moved.reshape(field.shape)) - theory(field),
            rtol=1e-12,
            atol=1e-10,
        )


@pytest.mark.parametrize(("action", "extents"), CASES, ids=repr)
def test_inverse_and_jacobian(action, extents, rng):
    model = local_model(action, extents, rng)
    patch = patches(action, model.block, rng)
    x = 1.5 * torch.randn(3, *extents, dtype=torch.float64, generator=rng)
    flow = Given(model.flow, patch[: len(x)])
    assert max(check_inverse(flow, x)) < 1e-9
    flow = Given(model.flow, patch[:1])
    for inverse in (False, True):
        assert check_log_det(flow, x[:1], Real(), inverse=inverse) < 1e-9
    drawn, log_q = model.sample(patch, rng)
    torch.testing.assert_close(model.log_prob(drawn, patch), log_q, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("action", "extents"), CASES, ids=repr)
def test_only_the_collar_is_seen_and_signs_flip_together(action, extents, rng):
    model = local_model(action, extents, rng)
    patch = patches(action, model.block, rng)
    noise = model.noise(len(patch), rng)
    model.requires_grad_(False)
    x, log_q = model.push(noise, patch)
    other = model.block.put(torch.full_like(x, 7.0), patch)
    assert all(
        torch.equal(*pair) for pair in zip(model.push(noise, other), (x, log_q), strict=True)
    )
    assert torch.equal(model.log_prob(x, other), model.log_prob(x, patch))
    mirrored, log_mirrored = model.push(-noise, -patch)
    torch.testing.assert_close(mirrored, -x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_mirrored, log_q, rtol=0, atol=1e-11)
    # All of the collar that interacts with the block matters.
    moved = patch.flatten(1).clone()
    interacts = model.prior.get_buffer("_outer").sum(0) > 0
    moved[:, model.block.collar[interacts]] += 0.1
    assert float((model.push(noise, moved.reshape(patch.shape))[0] - x).abs().min()) > 0


def test_the_prior_is_the_conditional_density_of_the_free_field(rng):
    """Against the conditional of the covariance of the whole lattice, normalisation included."""
    free = FreeScalar([5, 6], m2=0.4)
    block = Block.of(free, [3, 2])
    prior = BlockGaussian(free, block, m2=0.4).double()
    with torch.no_grad():
        prior.log_mass.fill_(math.log(0.4))
    tiling = Tiling(free.lattice, block)
    index = tiling.patches(torch.tensor([4, 5]))[0]
    inside = index[block.inside]
    rest = torch.tensor(sorted(set(range(30)) - set(inside.tolist())))
    propagator = free.propagator()
    sites = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    delta = sites[:, None] - sites[None]
    covariance = propagator[delta[..., 0] % 5, delta[..., 1] % 6]
    regression = covariance[inside][:, rest] @ torch.linalg.inv(covariance[rest][:, rest])
    conditional = covariance[inside][:, inside] - regression @ covariance[rest][:, inside]
    field = free.sample(6, rng).flatten(1)
    exact = torch.distributions.MultivariateNormal(field[:, rest] @ regression.T, conditional)
    patch = field[:, index].reshape(-1, *block.patch)
    x, log_q = prior.push(torch.randn(6, 3, 2, dtype=torch.float64, generator=rng), patch)
    torch.testing.assert_close(log_q, exact.log_prob(x.flatten(1)), rtol=0, atol=1e-10)
    torch.testing.assert_close(prior.log_prob(x, patch), log_q, rtol=0, atol=1e-10)


def test_interval_spline(rng):
    even, odd = (2 * torch.randn(3, 12, 1, dtype=torch.float64, generator=rng) for _ in range(2))
    x = torch.linspace(-3, 3, 3001, dtype=torch.float64).expand(3, -1)
    wide = (even.expand(-1, -1, 3001), odd.expand(-1, -1, 3001))
    h, mirrored = IntervalSpline(*wide, 2.0), IntervalSpline(wide[0], -wide[1], 2.0)
    x = x.clone().requires_grad_(True)
    y, log_derivative = h.forward(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative, slope.log(), rtol=0, atol=1e-10)
    assert bool((y.diff(dim=1) > 0).all())
    outside = x.abs() >= 2
    assert torch.equal(y[outside], x[outside])
    torch.testing.assert_close(mirrored.forward(-x)[0], -y, rtol=0, atol=1e-12)
    assert float((h.forward(-x)[0] + y).detach().abs().max()) > 0.05
    back, again = h.inverse(y.detach())
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(again, log_derivative, rtol=0, atol=1e-8)
    zero = IntervalSpline(0 * wide[0], 0 * wide[1], 2.0)
    torch.testing.assert_close(zero.forward(x)[0], x, rtol=0, atol=1e-12)


def test_starts_as_the_prior(rng):
    block = Block.of(PHI4, [2, 3])
    flow = BlockCouplingFlow(block).double()
    patch = patches(PHI4, block, rng)
    x = torch.randn(len(patch), 2, 3, dtype=torch.float64, generator=rng)
    y, density = flow.forward(x, patch, torch.zeros(len(patch), dtype=torch.float64))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    assert float(density.detach().abs().max()) < 1e-11


def test_a_file_serves_any_lattice(tmp_path, rng):
    from flowmc.actions.theory import describe_theory

    tables = {
        "block": {"extents": [2, 2]},
        "prior": {"name": "block_gaussian", "m2": 0.5},
        "flow": {"name": "block_coupling", "layers": 2, "hidden": [3]},
    }
    model = build_local_model(tables, PHI4).double()
    card = {
        "flow": {"name": "block_coupling", "parameters": {"layers": 2, "hidden": [3]}},
        "prior": {"name": "block_gaussian", "parameters": {"m2": 0.5}},
        "block": [2, 2],
        "theory": describe_theory(PHI4),
    }
    path = tmp_path / "f.safetensors"
    save_flow(path, model, card)
    loaded = load_local_flow(path)
    assert loaded.card["kind"] == "local"
    assert loaded.model.fingerprint() == model.fingerprint()
    with pytest.raises(ConfigError, match="only the kernel local_flow can use it"):
        load_flow(path)
    with pytest.raises(ConfigError, match=r"add a table \[block\]"):
        build_flow({"name": "block_coupling"}, PHI4)
    with pytest.raises(ConfigError, match=r"with \[block\] use one for local updates"):
        build_local_model(
            {**tables, "flow": {"name": "affine_coupling"}}, Phi4([6, 6], m2=1, lam=1)
        )


class Silent(Action):
    """Says nothing about its range."""

    name = "silent"
    lattice, parameters = (4, 4), {}

    def __call__(self, field):
        return field.square().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("action", "extents", "message"),
    [
        (Wilson("U(1)", [4, 4], beta=1.0), [2, 2], "local updates move scalar fields"),
        (Silent(), [2, 2], "set its attribute interaction_range"),
        (PHI4, [2, 2, 2], "of 3 dimensions, the lattice 6x5 of 2"),
        (PHI4, [2, 5], "use a smaller block"),
        (PHI4, [0, 2], "extents and a reach of at least 1"),
    ],
)
def test_unusable_blocks(action, extents, message):
    with pytest.raises(ConfigError, match=message):
        Block.of(action, extents)


def test_actions_on_other_lattices():
    for action in (PHI4, Phi4([4, 4], kappa=0.2, lam=0.3), Wilson("SU(2)", [4, 4], beta=2.0)):
        other = action.on_lattice([6, 8])
        assert other.lattice == (6, 8) and other.parameters == action.parameters
        assert type(other) is type(action) and other.group == action.group
    with pytest.raises(ValueError, match="implement on_lattice"):
        Silent().on_lattice([4, 4])
