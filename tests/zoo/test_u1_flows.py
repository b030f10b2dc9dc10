"""The zoo's flows of two-dimensional U(1), on exact draws of both ends: no charge is frozen."""

import pytest
import torch

from flowmc.actions import Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.estimators.weights import effective_sample_size, swap_rate
from flowmc.flows.cards.files import load_flow
from flowmc.flows.cards.matching import orient
from flowmc.random import stream
from flowmc.zoo import zoo_list

SAMPLES = 512


def slow(*values):
    """One of a family that runs with the slow tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


EXCHANGE = [
    # Swap rates of 8,192 exact draws of each end, to 0.004; 512 have an error of about 0.015.
    ("u1_2d_b3.00_b7.00", (8, 8), 0.68),
    slow("u1_2d_b3.00_b7.00", (16, 16), 0.68),
    ("u1_2d_b3.00_b7.00", (24, 16), 0.68),
    ("u1_2d_residual_b5.620_b7.000", (16, 16), 0.367),
    slow("u1_2d_residual_b4.532_b5.620", (16, 16), 0.347),
    slow("u1_2d_residual_b3.676_b4.532", (16, 16), 0.314),
    ("u1_2d_residual_b3.000_b3.676", (16, 16), 0.282),
]


def works(flow, actions, rng):
    """Return the works of both directions on exact draws."""
    result = []
    for move, old, new in ((flow.forward, *actions), (flow.inverse, *actions[::-1])):
        x = sample_wilson_2d(old, SAMPLES, rng)
        with torch.no_grad():
            y, change = move(x, torch.zeros(SAMPLES, dtype=torch.float64))
        result.append(new(y) + change - old(x))
    return result


@pytest.mark.parametrize(("name", "lattice", "rate"), EXCHANGE)
def test_swap_rates(name, lattice, rate):
    card = zoo_list()[name]
    actions = [Wilson("U(1)", lattice, beta=card[end]["beta"]) for end in ("from", "to")]
    flow = orient(card, load_flow(f"zoo:{name}", lattice=lattice).flow, *actions)
    measured = swap_rate(*works(flow, actions, stream(3, 0, name)))
    # Five standard deviations, 6e-7 per flow, and a margin for the error of the rate above.
    assert abs(measured.value - rate) < 5 * measured.error + 0.01
    assert measured.error < 0.03


@pytest.mark.parametrize("lattice", [(8, 8), (16, 16), (24, 16)])
def test_the_sampler_does_not_see_the_volume(lattice):
    model = load_flow("zoo:u1_2d_b7.00", lattice=lattice).model
    action = Wilson("U(1)", lattice, beta=7.0)
    with torch.no_grad():
        x, log_q = model.sample(4096, stream(4, 0, "zoo"))
    ess = effective_sample_size(-action(x) - log_q)
    # 0.31 for Gaussian charges and a perfect map of the plaquettes; the error is 0.007.
    assert 0.24 < ess.value < 0.36
