"""Every kernel that is registered keeps its contract, and the check of it finds what does not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flowmc.actions import Phi4, Wilson
from flowmc.config.entries import UpdateEntry
from flowmc.flows import (
    AffineCouplingFlow,
    Block,
    BlockCouplingFlow,
    BlockGaussian,
    FlowModel,
    GaussianPrior,
    HaarPrior,
    LocalFlowModel,
    ResidualFlow,
)
from flowmc.kernels import HMC, Independence, Info, Reported, SignFlip
from flowmc.registry import BUILTIN, resolve
from flowmc.testing import ContractError, check_kernel, check_steps

# In which moves are rejected often.
SCALAR = Phi4([2, 2], m2=-4.0, lam=8.0)
GAUGE = Wilson("U(1)", [4, 4], beta=1.0)
THEORIES = {
    "scalar": (SCALAR, SCALAR.at(m2=-2.0)),
    "U(1)": (GAUGE, GAUGE.at(beta=1.8)),
}


def perturbed(model):
    torch.manual_seed(3)
    for parameter in model.double().parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def model_of(action):
    if action.is_gauge:
        return FlowModel(HaarPrior(action), perturbed(ResidualFlow(action))).double()
    flow = perturbed(AffineCouplingFlow(action, layers=2, hidden=[4]))
    return FlowModel(GaussianPrior(action, scale=0.6), flow).double()


def local_model_of(action):
    block = Block.of(action, [1] * action.dimensions)
    flow = perturbed(BlockCouplingFlow(block, layers=2, hidden=[4], bins=2))
    return LocalFlowModel(block, BlockGaussian(action, block, m2=1.5), flow).double()


def recipe(entry, actions):
    """Return what makes a kernel, by what it takes, and its target or targets."""
    action = actions[0]
    if entry.takes_ladder:
        flows = [perturbed(ResidualFlow(action)) if action.is_gauge else perturbed_coupling(action)]
        return lambda: entry.component(list(actions), flows), actions
    if entry.takes_local_flow:
        return lambda: entry.component(action, local_model_of(action)), action
    if entry.takes_flow:
        return lambda: entry.component(action, model_of(action)), action
    return lambda: entry.component(action), action


def perturbed_coupling(action):
    return perturbed(AffineCouplingFlow(action, layers=2, hidden=[4]))


# A program does the moves of the external kernel: tests/kernels/test_external.py has some.
OURS = [name for name in BUILTIN["kernels"] if name != "external"]


@pytest.mark.parametrize("theory", THEORIES)
@pytest.mark.parametrize("name", OURS)
def test_registered_kernels(name, theory):
    entry = UpdateEntry(name, resolve("kernels", name), "")
    make, actions = recipe(entry, THEORIES[theory])
    try:
        make()
    except ValueError as refusal:
        assert theory == "U(1)" and "scalar" in str(refusal)
        return
    check_kernel(make, actions, draws=1000)


class Base(SignFlip):
    """A move that leaves any even density invariant, for errors to be planted in."""

    reports = (Reported("distance", "distance"),)

    def step(self, state, rng):
        moved, info = super().step(state, rng)
        distance = (moved.field - state.field).abs().flatten(1).sum(1)
        return moved, Info(info.is_accepted, {"distance": distance})


class Undeclared(Base):
    reports = ()


class Silent(Base):
    reports = (*Base.reports, Reported("never", "never"))


class OtherShape(Base):
    reports = (Reported("distance", "distance", per_proposal=2),)


class MovesRejected(Base):
    def step(self, state, rng):
        moved, info = super().step(state, rng)
        return replace(moved, field=1.01 * moved.field, action=None), info


class Stale(Base):
    def step(self, state, rng):
        moved, info = super().step(state, rng)
        return replace(moved, action=moved.action + 0.1), info


class Takes(Base):
    def init(self, field):
        return Base(SCALAR).init(field) if field.shape[1:] == (2, 2) else field


class Counts(Base):
    """Flips in every second step: what it counts is lost when the process ends."""

    steps = 0

    def step(self, state, rng):
        self.steps += 1
        moved, info = super().step(state, rng)
        if self.steps % 2:
            return moved, info
        return state, Info(torch.zeros_like(info.is_accepted), info.values)


class Widens(Base):
    def step(self, state, rng):
        moved, info = super().step(state, rng)
        return replace(moved, field=moved.field.double()), info


class Still(Base):
    def step(self, state, rng):
        _, info = super().step(state, rng)
        return state, Info(torch.zeros_like(info.is_accepted), info.values)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Undeclared, "does not declare"),
        (Silent, "no step reports"),
        (OtherShape, "its declaration says"),
        (MovesRejected, "none of its proposals is accepted"),
        (Stale, "S in its state"),
        (Takes, "fields of another shape"),
        (Counts, "stopped and resumed"),
        (Widens, "precision of fields"),
        (Still, "moves none"),
    ],
)
def test_what_is_broken_is_found(kind, sentence):
    check_steps(lambda: Base(SCALAR), SCALAR)
    with pytest.raises(ContractError, match=sentence):
        check_steps(lambda: kind(SCALAR), SCALAR)


class Forgets(Independence):
    """The density of its proposals is that of another width."""

    def step(self, state, rng):
        moved, info = super().step(state, rng)
        return replace(moved, log_q={k: v + 1.0 for k, v in moved.log_q.items()}), info


def test_a_wrong_density_in_a_state_is_found():
    with pytest.raises(ContractError, match="ln q in its state"):
        check_steps(lambda: Forgets(SCALAR, model_of(SCALAR)), SCALAR)


@pytest.mark.parametrize("action", [SCALAR, GAUGE], ids=repr)
def test_another_density_is_found(action):
    key, value = next(iter(action.parameters.items()))
    other = action.at(**{key: 2 * value})
    with pytest.raises(ContractError, match="does not leave the density"):
        check_kernel(lambda: OtherTarget(action, other), action)


class OtherTarget(HMC):
    """Begins with S of its target, and moves by another one."""

    def __init__(self, action, other):
        super().__init__(action)
        self.other = other

    def step(self, state, rng):
        moved, info = HMC(self.other).step(replace(state, action=None), rng)
        return replace(moved, action=self.action(moved.field)), info
