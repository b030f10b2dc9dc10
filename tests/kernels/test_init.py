"""Every kernel sees the fields before it moves them, in whatever it is composed."""

import pytest
import torch

from flowmc.actions import FreeScalar, Phi4
from flowmc.flows import Block, BlockCouplingFlow, BlockGaussian, LocalFlowModel
from flowmc.kernels import (
    HMC,
    Cycle,
    EachReplica,
    Exchange,
    LocalFlow,
    Mixture,
    OnReplica,
    Repeat,
    SignFlip,
    State,
)
from flowmc.nonequilibrium.process import Process
from flowmc.nonequilibrium.starts import MarkovStart
from flowmc.registry import ConfigError

ACTION = FreeScalar([4], m2=0.5)
LADDER = [ACTION, FreeScalar([4], m2=1.0)]


class Odd(FreeScalar):
    """A free field in an external field."""

    def __call__(self, field):
        return super().__call__(field) - 0.1 * field.to(torch.float64).sum(1)


class Seen(HMC):
    """Writes down what it is given."""

    def __init__(self, action):
        super().__init__(action, steps=2)
        self.seen = []

    def init(self, field):
        self.seen.append(field)
        return super().init(field).with_log_q(f"q{id(self)}", field[:, 0].double())


@pytest.mark.parametrize("composition", [Cycle, Mixture])
def test_every_part_sees_the_fields_and_adds_what_it_knows(composition, rng):
    parts = [Seen(ACTION) for _ in range(3)]
    field = ACTION.hot(5, rng)
    state = composition([parts[0], Repeat(parts[1], 2), Cycle([parts[2]])]).init(field)
    assert all(len(part.seen) == 1 and part.seen[0] is field for part in parts)
    assert state.log_q.keys() == {f"q{id(part)}" for part in parts}
    assert torch.equal(state.field, field) and torch.equal(state.action, ACTION.in_torch(field))


def test_every_part_sees_every_replica_that_lives_here(rng):
    each, one = [Seen(action) for action in LADDER], Seen(LADDER[1])
    kernel = Cycle([OnReplica(one, 1), Repeat(EachReplica(each, LADDER), 2), Exchange(LADDER)])
    fields = [action.hot(5, rng) for action in LADDER]
    state = kernel.init(fields)
    for r, action in enumerate(LADDER):
        assert each[r].seen[0] is fields[r]
        assert torch.equal(state.replica(r).action, action.in_torch(fields[r]))
    assert one.seen[0] is fields[1]
    assert len(state.replica(0).log_q) == 1 and len(state.replica(1).log_q) == 2
    # Replica 0 is on another rank.
    apart = kernel.init([None, fields[1]])
    assert list(apart.here) == [1] and apart.chains == 5
    assert torch.equal(apart.replica(1).field, fields[1]) and len(each[0].seen) == 1


@pytest.mark.parametrize("start", ["hot", "cold"])
def test_a_symmetry_that_the_action_lacks_is_refused_at_every_start(start, rng):
    action = Odd([4], m2=0.5)
    field = getattr(action, start)(3, *([rng] if start == "hot" else []))
    flip, hmc = SignFlip(action), HMC(action)
    ladder = [action, action]
    for kernel, given in (
        (flip, field),
        (Cycle([hmc, flip]), field),
        (Mixture([hmc, Repeat(flip, 2)]), field),
        (Cycle([EachReplica([hmc, hmc], ladder), OnReplica(flip, 1)]), [field, field]),
        (Cycle([Exchange(ladder), EachReplica([flip, flip], ladder)]), [field, field]),
    ):
        with pytest.raises(ConfigError, match="sign_flip needs"):
            kernel.init(given)


def test_processes_and_their_starts_ask_every_kernel(rng):
    action = Odd([4], m2=0.5)
    kernels = [HMC(action), SignFlip(action)]
    start = MarkovStart(action, kernels, chains=2, thermalization=1, start="cold")
    with pytest.raises(ConfigError, match="sign_flip needs"):
        next(start.configurations(1, rng))
    process, field = Process([action], [kernels]), action.cold(2)
    with pytest.raises(ConfigError, match="sign_flip needs"):
        process.forward(field, -ACTION(field), rng)
    with pytest.raises(ConfigError, match="sign_flip needs"):
        process.reverse(field, lambda x: -ACTION(x), rng)


def test_kernels_with_different_targets_are_refused(rng):
    other = Phi4([4], m2=0.5, lam=0.2)
    with pytest.raises(ConfigError, match="the same action"):
        Cycle([HMC(ACTION), HMC(other)]).init(ACTION.hot(3, rng))


@pytest.mark.parametrize("in_place", [False, True])
def test_an_init_that_changes_the_field_is_refused(in_place, rng):
    class Moves(HMC):
        def init(self, field):
            return State(field.mul_(2)) if in_place else State(2 * field)

    with pytest.raises(ConfigError, match="its field is another"):
        Cycle([HMC(ACTION), Moves(ACTION)]).init(ACTION.hot(3, rng))


@pytest.mark.parametrize("start", ["hot", "cold"])
def test_local_updates_refuse_an_action_that_reaches_farther_at_every_start(start, rng):
    class Far(FreeScalar):
        """Couples sites at a distance of three as well."""

        def __call__(self, field):
            phi = field.to(torch.float64)
            return super().__call__(field) + 0.1 * (phi * phi.roll(3, 1)).sum(1)

        def on_lattice(self, lattice):
            return Far(lattice, m2=self.m2)

    far = Far([12], m2=0.5)
    block = Block.of(far, [2])
    model = LocalFlowModel(block, BlockGaussian(far, block, m2=1.0), BlockCouplingFlow(block))
    field = far.hot(2, rng) if start == "hot" else far.cold(2)
    with pytest.raises(ConfigError, match="local updates need an action"):
        Cycle([HMC(far), LocalFlow(far, model)]).init(field)


@pytest.mark.parametrize("weights", [[1.0, float("inf")], [1.0, float("nan")], [1e308, 1e308]])
def test_a_mixture_needs_finite_weights(weights):
    """With an infinite one the last kernel alone was ever applied."""
    with pytest.raises(ValueError, match="weight"):
        Mixture([HMC(ACTION), HMC(ACTION)], weights)
