"""A flow that knows one of two wells: blind by its own draws, found by the target's samples."""

import math

import pytest
import torch
from exactness import assert_mean

from flowmc.actions import DoubleWell, Phi4
from flowmc.actions.solved import double_well
from flowmc.estimators.free_energy import bennett, mode_coverage
from flowmc.flows import FreeFieldPrior, SignMixture
from flowmc.flows.base import Flow
from flowmc.flows.models import FlowModel
from flowmc.kernels import HMC, SignFlip
from flowmc.lattice import sum_over_sites
from flowmc.nonequilibrium import ExactStart, MarkovStart

# Wells at +-sqrt(8), 16 units of action deep at every site.
ACTION = DoubleWell([6], m0=8.0)
EXACT = double_well(ACTION).log_z


class Shift(Flow):
    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def forward(self, x, log_density):
        return x + self.amount, log_density

    def inverse(self, y, log_density):
        return y - self.amount, log_density


def harmonic(model):
    """The Gaussian of the right curvature around the well at +sqrt(8)."""
    oscillator = DoubleWell([6], m0=8.0, mu2=2.05, lam=0.0)
    return model(ExactStart(oscillator), Shift(math.sqrt(8.0) - 0.025))


def log_weights(model, rng, action=ACTION, start="cold"):
    with torch.no_grad():
        x, log_q = model.sample(8000, rng)
        chains = MarkovStart(
            action,
            [HMC(action, trajectory=0.7, steps=6), SignFlip(action)],
            chains=64,
            thermalization=60,
            separation=2,
            start=start,
        )
        fields = list(chains.configurations(60, rng))
        assert_mean(torch.sign(sum_over_sites(torch.cat(fields))), 0.0)
        p = torch.stack([-action(y) - model.log_prob(y) for y in fields])
        return -action(x) - log_q, p


def test_one_well(rng):
    q, p = log_weights(harmonic(FlowModel), rng)
    coverage = mode_coverage(q, p)
    assert coverage.reverse_ess > 0.95  # blind
    assert coverage.log_z_q.error < 0.003
    assert coverage.log_z_q.value == pytest.approx(EXACT - math.log(2), abs=0.01)
    assert abs(coverage.share - 0.5) < 5 * coverage.error < 0.1
    assert coverage.forward_ess < 1e-3
    assert coverage.log_z_q.bound == "lower"
    assert any("misses 5" in text or "misses 4" in text for text in coverage.warnings)
    # Samples of both ends are enough for the truth: p sees q's normalisation.
    estimate = bennett(-q, p).estimate
    assert abs(estimate.value - EXACT) < 5 * estimate.error < 0.2


def test_both_wells(rng):
    q, p = log_weights(harmonic(SignMixture), rng)
    coverage = mode_coverage(q, p)
    assert abs(coverage.share - 1) < 5 * coverage.error < 0.05
    assert coverage.reverse_ess > 0.95 and coverage.forward_ess > 0.95
    assert not coverage.warnings
    for estimate in (coverage.log_z_q, coverage.log_z_p, bennett(-q, p).estimate):
        assert estimate.bound == "none"
        assert abs(estimate.value - EXACT) < 5 * estimate.error < 0.05


# Broken phase: the classical minima are at +-vacuum, 160 units of action below phi = 0.
BROKEN = Phi4([4, 4], m2=-2.0, lam=0.1)


@pytest.mark.parametrize(("model", "share"), [(FlowModel, 0.5), (SignMixture, 1.0)])
def test_phi4_in_the_broken_phase(model, share, rng):
    """Fluctuations about the vacuum have the mass -2 m2; the cubic term shifts them a little."""
    prior = FreeFieldPrior(BROKEN, m2=4.0).to(torch.float64)
    q, p = log_weights(model(prior, Shift(BROKEN.vacuum - 0.06)), rng, BROKEN, "ordered")
    coverage = mode_coverage(q, p)
    assert coverage.reverse_ess > 0.8
    assert abs(coverage.share - share) < 5 * coverage.error < 0.15
    assert (coverage.forward_ess > 0.8) == (share == 1.0)


def test_chains_stuck_in_the_flows_well_cannot_see_it_either(rng):
    """The trap: what flow and samples both miss stays unseen."""
    model = harmonic(FlowModel)
    with torch.no_grad():
        x, log_q = model.sample(4000, rng)
        y, log_q_y = model.sample(64, rng)
    # HMC from the flow's own well never crosses 16 units of action at six sites.
    kernel = HMC(ACTION, trajectory=0.7, steps=6)
    state, rows = kernel.init(y), []
    for _ in range(60):
        state, _ = kernel.step(state, rng)
        rows.append(-ACTION(state.field) - model.log_prob(state.field))
    coverage = mode_coverage(-ACTION(x) - log_q, torch.stack(rows))
    assert abs(coverage.share - 1) < 5 * coverage.error < 0.05
    assert log_q_y.isfinite().all()
