"""Exchange step by step: who moves where, how often, and in which order pairs are tried."""

import math
from dataclasses import replace

import pytest
import torch

from flowmc.actions import FreeScalar
from flowmc.flows.base import Flow
from flowmc.kernels import Exchange

# The swap rate of one pair of configurations is a binomial frequency; 4.5 of its deviations are
# exceeded with a probability of 7e-6.
SIGMAS = 4.5
MASSES = (0.5, 0.7, 1.0, 1.5)
ACTIONS = [FreeScalar([2, 2], m2=mass) for mass in MASSES]
FACTORS = (0.9, 0.8, 1.1)


class Scale(Flow):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, log_density):
        return self.factor * x, log_density - x[0].numel() * math.log(self.factor)

    def inverse(self, y, log_density):
        return y / self.factor, log_density + y[0].numel() * math.log(self.factor)


def draw(rng, chains, size=0.5):
    return [size * torch.randn(chains, 2, 2, dtype=torch.float64, generator=rng) for _ in ACTIONS]


def follow(kernel, rng, sweeps=40, chains=50):
    """Check after each sweep that labels, fields and actions belong together."""
    start = draw(rng, chains)
    state = kernel.init(start)
    # What a walker's field is multiplied with on its way from replica 0 to each other.
    scale = torch.tensor([1.0, *kernel_scales(kernel)], dtype=torch.float64).cumprod(0)
    moves = 0
    for _ in range(sweeps):
        before = state
        state, info = kernel.step(state, rng)
        for r, action in enumerate(ACTIONS):
            walker = state.walkers[:, r]
            origin = torch.stack(start, 1)[torch.arange(chains), walker]
            expected = origin * (scale[r] / scale[walker])[:, None, None]
            torch.testing.assert_close(state.replicas[r].field, expected, rtol=1e-12, atol=0)
            torch.testing.assert_close(
                state.replicas[r].action, action(expected), rtol=1e-12, atol=0
            )
            stayed = before.walkers[:, r] == walker
            assert torch.equal(state.replicas[r].field[stayed], before.replicas[r].field[stayed])
            assert torch.equal(state.replicas[r].action[stayed], before.replicas[r].action[stayed])
        for pair in range(len(ACTIONS) - 1):
            accepted = info.parts[f"pair[{pair}]"].is_accepted
            if accepted.shape[1]:
                swapped = state.walkers[:, pair] == before.walkers[:, pair + 1]
                assert torch.equal(swapped, accepted[:, 0])
                moves += int(accepted.sum())
    # Neither all nor none.
    assert 0.05 < moves / (sweeps * chains * 1.5) < 0.95


def kernel_scales(kernel):
    return [getattr(flow, "factor", 1.0) for flow in kernel.flows]


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("schedule", ["even_odd", "random"])
def test_labels_follow_the_fields(factors, schedule, rng):
    flows = None if factors is None else [Scale(factor) for factor in factors]
    follow(Exchange(ACTIONS, flows, schedule=schedule), rng)


@pytest.mark.parametrize("error", ["labels stay", "all move", "old actions"])
def test_moving_wrongly_is_caught(error, rng, monkeypatch):
    swap = Exchange._swap

    def wrong(self, state, both, halves, labels, is_accepted):
        if error == "labels stay":
            return replace(
                swap(self, state, both, halves, labels, is_accepted), walkers=state.walkers
            )
        if error == "all move":
            is_accepted = torch.ones_like(is_accepted)
        new = swap(self, state, both, halves, labels, is_accepted)
        if error == "old actions":
            for r in both:
                stale = replace(new.replica(r), action=state.replica(r).action)
                new = new.with_replica(r, stale)
        return new

    monkeypatch.setattr(Exchange, "_swap", wrong)
    with pytest.raises(AssertionError):
        follow(Exchange(ACTIONS, [Scale(factor) for factor in FACTORS]), rng)


def frequency_pull(kernel, rng, chains=20_000):
    """Compare how often given configurations are exchanged with the formula, in deviations.

    Every chain holds the same configurations, for which the work is known without the kernel:
    densities of the pair before and after, and the Jacobian of x -> factor x on four sites.
    """
    fields = [draw(rng, 1, size)[0].expand(chains, 2, 2) for size in (0.9, 1.0)]
    (low, high), (factor,) = ACTIONS[:2], kernel_scales(kernel)
    x, y = fields[0][:1], fields[1][:1]
    before = low(x) + high(y)
    after = low(y / factor) + high(factor * x)
    rate = min(1.0, math.exp(float(before - after)))  # The two Jacobians cancel: both are linear.
    assert 0.05 < rate < 0.95
    _, info = kernel.step(kernel.init(fields), rng)
    accepted = info.parts["pair[0]"].is_accepted
    deviation = math.sqrt(rate * (1 - rate) / chains)
    return (float(accepted.double().mean()) - rate) / deviation


@pytest.mark.parametrize("factor", [1.0, 0.95])
def test_swap_rate_of_given_configurations(factor, rng):
    assert abs(frequency_pull(Exchange(ACTIONS[:2], [Scale(factor)]), rng)) < SIGMAS


def test_a_wrong_rate_is_caught(rng, monkeypatch):
    """Accepting with 1 / (1 + exp(W)) is in detailed balance too, but swaps less."""
    decide = Exchange._decide

    def barker(self, state, pair, halves, reports, log_uniform):
        uniform = log_uniform.exp()
        return decide(self, state, pair, halves, reports, (uniform / (1 - uniform)).log())

    monkeypatch.setattr(Exchange, "_decide", barker)
    assert abs(frequency_pull(Exchange(ACTIONS[:2], [Scale(0.95)]), rng)) > SIGMAS


def tried(info):
    return [
        pair for pair in range(len(info.parts)) if info.parts[f"pair[{pair}]"].is_accepted.shape[1]
    ]


def test_parities_alternate_and_go_on(rng):
    kernel = Exchange(ACTIONS)
    state = kernel.init(draw(rng, 3))
    seen = []
    for _ in range(5):
        state, info = kernel.step(state, rng)
        seen.append(tried(info))
    assert seen == [[0, 2], [1], [0, 2], [1], [0, 2]]
    # A state that was stored knows what comes next.
    _, info = kernel.step(replace(state), rng)
    assert tried(info) == [1]


def test_random_parities(rng):
    kernel = Exchange(ACTIONS, schedule="random")
    state = kernel.init(draw(rng, 1))
    even = 0
    for _ in range(300):
        state, info = kernel.step(state, rng)
        assert tried(info) in ([0, 2], [1])
        even += tried(info) == [0, 2]
    assert abs(even - 150) < SIGMAS * math.sqrt(75)


def test_two_replicas_are_tried_every_time(rng):
    kernel = Exchange(ACTIONS[:2])
    state = kernel.init(draw(rng, 3)[:2])
    for _ in range(3):
        state, info = kernel.step(state, rng)
        assert tried(info) == [0]


@pytest.mark.parametrize("work", [math.nan, math.inf, -math.inf])
def test_works_that_are_not_finite_are_rejected(work, rng):
    class Broken(Scale):
        def forward(self, x, log_density):
            y, density = super().forward(x, log_density)
            density[0] = work
            return y, density

    kernel = Exchange(ACTIONS[:2], [Broken(1.0)])
    start = [torch.zeros(2, 2, 2, dtype=torch.float64)] * 2
    state, info = kernel.step(kernel.init(start), rng)
    # Works of 0 are accepted always.
    assert info.parts["pair[0]"].is_accepted[:, 0].tolist() == [False, True]
    assert info.parts["pair[0]"].values["non_finite"].tolist() == [True, False]
    assert state.walkers.tolist() == [[0, 1], [1, 0]]


class Flat(FreeScalar):
    """S = 0, so that only the guard of the inverse rejects a move."""

    def __call__(self, field):
        return torch.zeros(len(field), dtype=torch.float64)


class Uneven(Scale):
    """A scaling whose map in one direction is off by a constant where its image is positive."""

    def __init__(self, factor, errs):
        super().__init__(factor)
        self.errs = errs

    def _off(self, image, which, size):
        return image + size * (image > 0) if self.errs == which else image

    def forward(self, x, log_density):
        y, log_density = super().forward(x, log_density)
        return self._off(y, "forward", 1e-4 * max(1.0, self.factor)), log_density

    def inverse(self, y, log_density):
        x, log_density = super().inverse(y, log_density)
        return self._off(x, "inverse", 1e-4 * max(1.0, 1 / self.factor)), log_density


@pytest.mark.parametrize("errs", ["forward", "inverse"])
@pytest.mark.parametrize("factor", [1e3, 1e-3, 1.0])
def test_the_guard_of_the_inverse_holds_a_move_and_its_reverse_to_the_same(factor, errs):
    """Detailed balance: (x_a, x_b) -> (g(x_b), f(x_a)) is allowed as often as the way back.

    Where f expands by 1,000, an error of the inverse is small below and large above.
    """
    flow = Uneven(factor, errs)
    kernel = Exchange([Flat([2, 2], m2=1.0)] * 2, [flow], check_inverse=1e-2)
    rng = torch.Generator().manual_seed(5)
    # Of one sign all over a field: each chain is at every place within the region or outside.
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64).T
    sizes = 1 + torch.rand(2, 4, 2, 2, dtype=torch.float64, generator=rng)
    below, above = signs[:, :, None, None] * sizes
    above = above * factor
    zero = torch.zeros(4, dtype=torch.float64)
    image, source = flow.forward(below, zero)[0], flow.inverse(above, zero)[0]

    def allowed(*fields):
        _, info = kernel.step(kernel.init(list(fields)), rng)
        return info.parts["pair[0]"].is_accepted[:, 0]

    move = allowed(below, above)
    assert torch.equal(move, allowed(source, image))
    assert bool(move[3])  # errs nowhere
    # An error below the tolerance on both sides forbids nothing.
    assert bool(move.all()) == (factor == 1.0)
