"""Fingerprints: different densities never share one, equal ones do, in any process."""

import copy
import itertools
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from flowmc.actions import Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    ConditionalContinuousFlow,
    ContinuousFlow,
    GaussianPrior,
    ResidualFlow,
    SplineCouplingFlow,
)
from flowmc.flows.base import Chain, Flow, Identity, Inverse
from flowmc.flows.local.block_coupling import BlockCouplingFlow
from flowmc.flows.local.block_gaussian import BlockGaussian
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.mixture import SignMixture
from flowmc.flows.models import FlowModel, Prior
from flowmc.identity import identity
from flowmc.kernels import HMC
from flowmc.nonequilibrium import Process
from flowmc.registry import ConfigError
from tests.processes import environment

ACTION = Phi4([4, 4], m2=-1.0, lam=5.5)
LINKS = Wilson("U(1)", [4, 4], beta=1.0)
SMALL = {"frequencies": 3, "site_channels": 2, "time_frequencies": 2, "time_channels": 2}


class Plain(Flow):
    """A user's flow: nothing but a constructor and the two maps."""

    def __init__(self, action, *, scale=1.0, part=None, twist=None):
        super().__init__()
        self._twist = twist

    def forward(self, x, log_density):
        return x, log_density

    inverse = forward


class Other(Plain):
    """Of the same parameters."""


class Wide(Prior):
    """A user's prior without ``__repr__``."""

    def __init__(self, action, *, scale=1.0):
        self.scale = scale

    def sample(self, n, rng):
        raise NotImplementedError

    def log_prob(self, x):
        raise NotImplementedError


class Activated(nn.Module):
    """A part that is no flow."""

    def __init__(self, function):
        super().__init__()
        self.function = function


def made(factor):
    class Made(Plain):
        def forward(self, x, log_density):
            return factor * x, log_density

    return Made(ACTION)


def conditional(value=6.0):
    torch.manual_seed(1)
    action = ACTION.at(**{"lambda": value})
    return ConditionalContinuousFlow(action, coupling="lambda", low=5.0, high=9.0, **SMALL)


def at(flow, value):
    return flow.at(ACTION.at(**{"lambda": value}))


def local(m2=1.0, bound=4.0):
    torch.manual_seed(1)
    block = Block.of(ACTION, [2, 2])
    return LocalFlowModel(
        block, BlockGaussian(ACTION, block, m2=m2), BlockCouplingFlow(block, bound=bound)
    )


def process(steps):
    return Process([ACTION], [[HMC(ACTION, steps=steps)]])


def edited(name, value):
    flow = Plain(ACTION)
    setattr(flow, name, value)
    return flow


# Within a row no two may have the same fingerprint; weights are equal or there are none.
DIFFERENT = {
    "steps": [partial(ContinuousFlow, ACTION, **SMALL, steps=n) for n in (4, 5)],
    "integrator": [
        partial(ContinuousFlow, ACTION, **SMALL, steps=4, integrator=name)
        for name in ("rk4", "midpoint")
    ],
    "spline bound": [partial(SplineCouplingFlow, ACTION, bound=b) for b in (1.0, 1.0 + 1e-15)],
    "residual bound": [partial(ResidualFlow, LINKS, bound=b) for b in (0.5, 0.9)],
    "masks": [
        partial(AffineCouplingFlow, ACTION, layers=4, masks=masks)
        for masks in ("checkerboard", "blocks")
    ],
    "at": [lambda v=v: at(conditional(), v) for v in (5.5, 7.5)],
    "chain at": [lambda v=v: at(Chain([conditional()]), v) for v in (5.5, 7.5)],
    "nested at": [lambda v=v: at(Chain([Inverse(Chain([conditional()]))]), v) for v in (5.5, 7.5)],
    "chain of at": [lambda v=v: Chain([at(conditional(), v)]) for v in (5.5, 7.5)],
    "model at": [
        lambda v=v, c=c: at(c(GaussianPrior(ACTION), Chain([conditional()])), v)
        for v in (5.5, 7.5)
        for c in (FlowModel, SignMixture)
    ],
    "composition": [
        lambda: Plain(ACTION),
        lambda: Inverse(Plain(ACTION)),
        lambda: Chain([Plain(ACTION)]),
        lambda: Chain([Plain(ACTION), Plain(ACTION)]),
        lambda: Chain(iter([Plain(ACTION)] * 3)),
        lambda: Other(ACTION),
        Identity,
    ],
    "user's parameter": [partial(Plain, ACTION, scale=s) for s in (1, 1 + 1e-15, "1", None, True)],
    "user's tensor": [partial(Plain, ACTION, part=torch.ones(n) * n) for n in (1, 2, 3)],
    "user's attribute": [partial(Plain, ACTION, twist=n) for n in (1.0, torch.ones(2))],
    "edited": [partial(edited, "steps", 4), partial(edited, "steps", 5), lambda: Plain(ACTION)],
    "edited tensor": [partial(edited, "a", torch.zeros(2)), partial(edited, "a", torch.ones(2))],
    "function": [partial(Plain, ACTION, part=f) for f in (torch.tanh, torch.sin, made)],
    "closure": [partial(Plain, ACTION, part=lambda x, n=n: n * x) for n in (1, 2)],
    "lambda": [partial(Plain, ACTION, part=f) for f in (lambda x: x + 1, lambda x: x + 2)],
    "partial": [partial(Plain, ACTION, part=partial(made, n)) for n in (1, 2)],
    "part": [partial(Plain, ACTION, part=Activated(f)) for f in (torch.tanh, torch.sin)],
    "class in a function": [partial(made, factor) for factor in (1.5, 2.5)],
    "action": [partial(Plain, ACTION.at(m2=m2)) for m2 in (-1.0, -1.0 - 1e-12)],
    "prior": [lambda s=s: FlowModel(Wide(ACTION, scale=s), Identity()) for s in (1.0, 2.0)],
    "prior of a mixture": [
        lambda s=s: SignMixture(Wide(ACTION, scale=s), Identity()) for s in (1.0, 2.0)
    ],
    "local": [local, partial(local, m2=2.0), partial(local, bound=5.0)],
    "process": [partial(process, 3), partial(process, 4)],
    "precision": [lambda d=d: FlowModel(GaussianPrior(ACTION), Identity()).to(d)
                  for d in (torch.float32, torch.float64)],
}  # fmt: skip


@pytest.mark.parametrize("row", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_densities_have_different_fingerprints(row):
    torch.manual_seed(3)
    found = []
    for build in row:
        torch.manual_seed(3)
        first = identity(build())
        torch.manual_seed(3)
        again = build()
        assert identity(again) == first, "the same, made again"
        assert identity(copy.deepcopy(again)) == first
        found.append(first)
    for one, other in itertools.combinations(found, 2):
        assert one != other


def test_a_use_or_a_training_step_back_and_forth_leaves_no_trace():
    model = FlowModel(
        GaussianPrior(ACTION), Chain([conditional(), ContinuousFlow(ACTION, **SMALL)])
    )
    before = model.fingerprint()
    x, _ = model.sample(2, torch.Generator().manual_seed(1))
    model.log_prob(x)
    at(model, 7.5).sample(2, torch.Generator())
    model.eval().requires_grad_(False)
    assert model.fingerprint() == before
    with torch.no_grad():
        next(model.parameters()).add_(1e-7)
    assert model.fingerprint() != before


def test_a_use_in_double_precision_leaves_no_trace():
    """Tables that a flow has made in use are no part of it."""
    flow = ContinuousFlow(ACTION, **SMALL, steps=2).double()
    before = flow.fingerprint()
    flow.forward(torch.zeros(1, 4, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert flow.fingerprint() == before


def constant(module):
    """Give all weights values that no generator of random numbers decides on."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters(), 1):
            parameter.fill_(number / 8)
    return module


@pytest.mark.parametrize(
    ("build", "digest"),
    [
        (lambda: SplineCouplingFlow(ACTION, layers=2, bins=2), "c2a5ef9ef858d32e0e8a3c3a736c4cb6"),
        (
            lambda: FlowModel(GaussianPrior(ACTION, scale=0.5), at(conditional(), 7.5)),
            "d77bf6caebf62eeaaab5d55456ef6c11",
        ),
    ],
)
def test_digests_are_those_of_earlier_versions(build, digest):
    """They stand in checkpoints: runs begun before go on only if these never change."""
    assert constant(build()).fingerprint() == digest


def test_weights_of_a_chain_at_other_couplings_are_shared():
    chain = Chain([conditional(), Identity()])
    moved = at(chain, 7.5)
    assert moved is not chain and chain.layers[0] is moved.layers[0].flow
    assert at(Chain([Identity()]), 7.5).layers[0] is not None
    x, zero = torch.randn(2, 4, 4), torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.normal_()
    torch.testing.assert_close(
        moved.forward(x, zero), at(conditional_like(chain), 7.5).forward(x, zero)
    )
    assert not torch.equal(moved.forward(x, zero)[0], chain.forward(x, zero)[0])


def conditional_like(chain):
    flow = conditional()
    flow.load_state_dict(chain.layers[0].state_dict())
    return flow


def test_no_memory_address():
    """Another process, with other addresses and another hash seed, finds the same digests."""
    names = "prior", "closure", "function", "part", "process", "local", "partial"
    program = (
        "from tests.flows.test_identity import *\n"
        f"print([identity(DIFFERENT[name][0]()) for name in {names}])"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment(PYTHONHASHSEED=seed),
    )
    assert other.stdout == f"{[identity(DIFFERENT[name][0]()) for name in names]}\n"


def test_what_cannot_be_identified_is_refused():
    with open(__file__) as file:
        flow = Plain(ACTION, part=file)
        with pytest.raises(ConfigError, match=r"Plain\(part\) is a _io.TextIOWrapper.*distinction"):
            flow.fingerprint()

        class Told(Plain):
            def distinction(self):
                return "the file of this test"

        assert len(Told(ACTION, part=file).fingerprint()) == 32
