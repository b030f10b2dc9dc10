"""Local flow updates: detailed balance, exact answers, and an acceptance without a volume.

Statistical tests compare means over independent chains at 5.5 standard errors (4e-8 each, below
1e-6 for all of them) on fixed seeds.
"""

import pytest
import torch
from exactness import THRESHOLD, assert_mean

from flowmc.actions import FreeScalar, Phi4
from flowmc.actions.base import Action
from flowmc.actions.exact import sample_phi4
from flowmc.actions.scalar import HoppingAction
from flowmc.evaluation import evaluate_local
from flowmc.flows import Block, BlockCouplingFlow, BlockGaussian, LocalFlowModel
from flowmc.flows.local.blocks import Tiling
from flowmc.kernels import LocalFlow, NonFiniteStateError
from flowmc.observables import phi2, susceptibility
from flowmc.registry import ConfigError
from flowmc.testing import p_value_of_change

SMALL = Phi4([4], kappa=0.3, lam=0.4)
TUTORIAL = Phi4([8, 8], m2=-4.0, lam=8.0)


def local_model(action, extents, m2=1.5, layers=0):
    block = Block.of(action, extents)
    prior = BlockGaussian(action, block, m2=m2)
    return LocalFlowModel(block, prior, BlockCouplingFlow(block, layers=layers)).double()


def randomised(model, rng, size=0.2):
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=rng)
            parameter.add_(size * noise)
    return model


def run(kernel, field, steps, rng):
    state = kernel.init(field)
    for _ in range(steps):
        state, info = kernel.step(state, rng)
    return state, info


def asymmetry(kernel, rng, draws=40_000):
    """Return f(before) g(after) - g(before) f(after) for pairs in equilibrium, one step apart."""
    before = sample_phi4(kernel.action, draws, rng)
    after, _ = run(kernel, before, 1, rng)
    f, g = phi2, susceptibility
    pairs = ((f, g), (lambda x, s: s(x), f), (lambda x, s: x.flatten(1)[:, 0].abs(), f))
    return [
        one(before, SMALL) * two(after.field, SMALL) - two(before, SMALL) * one(after.field, SMALL)
        for one, two in pairs
    ]


def test_detailed_balance(rng):
    kernel = LocalFlow(SMALL, randomised(local_model(SMALL, [3], layers=2), rng))
    for difference in asymmetry(kernel, rng):
        assert_mean(difference, 0.0)


def test_a_proposal_that_is_taken_for_symmetric_breaks_detailed_balance(rng):
    class Symmetric(LocalFlowModel):
        def log_prob(self, x, patch):
            return torch.zeros(len(x), dtype=torch.float64)

        def sample(self, patch, rng):
            x, log_q = super().sample(patch, rng)
            return x, torch.zeros_like(log_q)

    model = randomised(local_model(SMALL, [3], layers=2), rng)
    kernel = LocalFlow(SMALL, Symmetric(model.block, model.prior, model.flow))
    found = asymmetry(kernel, rng)
    scores = [abs(float(d.mean() / (d.std() / len(d) ** 0.5))) for d in found]
    assert max(scores) > 5.5


def test_the_exact_heat_bath_of_the_free_field(rng):
    """Every block is accepted, and a cold start forgets itself."""
    free = FreeScalar([6, 6], m2=0.8)
    kernel = LocalFlow(free, local_model(free, [4, 4], m2=0.8))
    state = kernel.init(torch.zeros(2000, 6, 6, dtype=torch.float64))
    for _ in range(40):
        state, info = kernel.step(state, rng)
        assert float(info.values["divergence"].abs().max()) < 1e-5
        assert bool(info.is_accepted.float().mean() > 0.999)
    propagator = free.propagator()
    assert_mean(phi2(state.field, free), float(propagator[0, 0]))
    assert_mean((state.field * state.field.roll(1, 1)).flatten(1).mean(1), float(propagator[1, 0]))
    assert_mean(susceptibility(state.field, free), 0.5 / 0.8)


def test_phi4_against_long_hmc_runs(rng):
    """chi2 = 0.7450(21) and <phi^2> = 0.143466(44) from HMC; here by local updates alone."""
    kernel = LocalFlow(TUTORIAL, local_model(TUTORIAL, [3, 3]))
    state, _ = run(kernel, TUTORIAL.hot(256, rng), 60, rng)
    kept = []
    for _ in range(15):
        state, info = run(kernel, state.field, 8, rng)
        kept.append(
            torch.stack([susceptibility(state.field, TUTORIAL), phi2(state.field, TUTORIAL)])
        )
    chains = torch.stack(kept).mean(0)
    assert 0.1 < float(info.values["acceptance_probability"].mean()) < 0.9
    for values, exact, error in zip(chains, (0.7450, 0.143466), (0.0021, 0.000044), strict=True):
        own = float(values.std() / len(values) ** 0.5)
        assert abs(float(values.mean()) - exact) < 5.5 * (own**2 + error**2) ** 0.5
        assert own < 0.03 * exact


def test_the_acceptance_does_not_know_the_volume(rng):
    model = local_model(TUTORIAL, [4, 4])
    found = []
    for extent in (8, 16, 32):
        action = TUTORIAL.on_lattice([extent, extent])
        result, _ = evaluate_local(
            model, action, 1600, chains=32, thermalization=20, start="cold", seed=extent
        )
        found.append((result["acceptance"], result["acceptance_error"]))
        assert result["blocks"] == (extent // 5) ** 2
    # 8x8 has one block in 64 sites, 32x32 36 in 1024: measured 0.21 on all.
    for acceptance, error in found[1:]:
        allowed = 5.5 * (error**2 + found[0][1] ** 2) ** 0.5
        assert abs(acceptance - found[0][0]) < allowed < 0.1
    assert found[0][0] > 0.1


def test_chains_do_not_depend_on_each_other(rng):
    """What a chain does is what it would do with others beside it, in single precision, too."""
    model = randomised(local_model(TUTORIAL, [3, 3], layers=2), rng, 0.05).float()
    kernel = LocalFlow(TUTORIAL, model)
    field = TUTORIAL.hot(4, rng, torch.float32)
    state, info = run(kernel, field, 1, rng)
    assert state.field.dtype == torch.float32 and state.action is None
    assert info.is_accepted.shape == (4, 4)
    moved = (state.field != field).flatten(1).sum(1)
    assert torch.equal(moved, 9 * info.is_accepted.sum(1))


class NextNeighbours(Action):
    """A Gaussian chain that reaches two sites far."""

    name = "next"
    interaction_range = 2

    def __init__(self, lattice, *, far):
        self.lattice, self.far, self.parameters = tuple(lattice), far, {"far": far}

    def __call__(self, field):
        near, far = field.roll(-1, 1), field.roll(-2, 1)
        return (1.5 * field.square() - field * near - self.far * field * far).double().sum(1)

    def sample(self, draws, rng):
        p = 2 * torch.pi * torch.arange(self.lattice[0], dtype=torch.float64) / self.lattice[0]
        spectrum = 1 / (3 - 2 * p.cos() - 2 * self.far * (2 * p).cos())
        noise = torch.randn(draws, self.lattice[0], dtype=torch.float64, generator=rng)
        return torch.fft.ifft(torch.fft.fft(noise) * spectrum.sqrt()).real


def test_actions_that_reach_farther(rng):
    """Wider collars, and an action of a user's own with nothing but its range."""
    action = NextNeighbours([10], far=0.3)
    kernel = LocalFlow(action, randomised(local_model(action, [3], layers=2), rng, 0.1))
    assert kernel.block.reach == 2 and kernel.tiling.count == 2
    before, fresh = action.sample(4000, rng), action.sample(4000, rng)
    state, info = run(kernel, before, 4, rng)
    assert 0.1 < float(info.values["acceptance_probability"].mean()) < 0.95

    def statistics(field):
        return torch.stack([action(field), field.square().mean(1), field[:, 0], field.sum(1)], 1)

    p_value = p_value_of_change(*map(statistics, (before, state.field, fresh)))
    assert p_value > THRESHOLD
    action.interaction_range = 1
    with pytest.raises(ConfigError, match=r"reaches 1 site\(s\) at most"):
        LocalFlow(action, local_model(action, [3])).init(before)


class Inhomogeneous(HoppingAction):
    """A source on one site."""

    name = "source"

    def __init__(self, lattice):
        self._set_lattice(lattice)
        self.k, self.a, self.quartic, self.parameters = 1.0, 5.0, 0.0, {}

    def __call__(self, field):
        return super().__call__(field) + field.flatten(1)[:, 0].double()


def test_what_cannot_be_used(rng):
    action = Inhomogeneous([6, 6])
    kernel = LocalFlow(action, local_model(action, [4, 4]))
    with pytest.raises(ConfigError, match="the same everywhere"):
        kernel.init(action.hot(1, rng))
    wide = Block([2, 2], 2)
    model = LocalFlowModel(wide, BlockGaussian(TUTORIAL, wide), BlockCouplingFlow(wide, layers=1))
    with pytest.raises(ConfigError, match="collar of width 2, but the action reaches 1"):
        LocalFlow(TUTORIAL, model)
    with pytest.raises(ConfigError, match="does not fit on a 4x4 lattice"):
        LocalFlow(TUTORIAL.on_lattice([4, 4]), local_model(TUTORIAL, [4, 4]))


def test_proposals_that_are_not_finite_are_rejected_and_bad_states_stop(rng):
    class Broken(LocalFlowModel):
        def sample(self, patch, rng):
            x, log_q = super().sample(patch, rng)
            return torch.full_like(x, torch.nan), log_q

    model = local_model(TUTORIAL, [3, 3])
    kernel = LocalFlow(TUTORIAL, Broken(model.block, model.prior, model.flow))
    field = TUTORIAL.hot(3, rng)
    state, info = run(kernel, field, 1, rng)
    assert torch.equal(state.field, field) and info.values["non_finite"].tolist() == [4, 4, 4]
    field[1, 2, 3] = torch.nan
    with pytest.raises(NonFiniteStateError, match="chain 1"):
        run(LocalFlow(TUTORIAL, model), field, 30, rng)


def test_a_shift_per_sample_is_that_of_the_tiling():
    tiling = Tiling(TUTORIAL.lattice, Block.of(TUTORIAL, [2, 2]))
    shift = torch.tensor([[1, 2], [7, 0]])
    together = tiling.patches(shift)
    assert torch.equal(together[1], tiling.patches(shift[1]))
