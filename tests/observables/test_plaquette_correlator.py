"""The correlator of spatial plaquettes: by hand, gauge invariant, its smearing, its mass."""

import math

import numpy as np
import pytest
import torch

from flowmc.actions import Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.estimators.correlators import apply, connected
from flowmc.estimators.history import History, result_of
from flowmc.groups import SUN, U1
from flowmc.lattice import shift
from flowmc.observables import plaquette, plaquette_correlator
from flowmc.observables.glueball import smear
from flowmc.registry import ConfigError

THEORIES = [
    Wilson(U1(), (4, 6), beta=2.0),
    Wilson(U1(), (2, 3, 4), beta=2.0),
    Wilson(SUN(2), (3, 2, 5), beta=2.0),
    Wilson(SUN(3), (2, 3, 2, 4), beta=5.0),
]


def hot(action, chains=2, seed=3):
    return action.hot(chains, torch.Generator().manual_seed(seed))


def by_hand(field, action, axis):
    """The definition, site by site, with matrices."""
    matrices = field if field.is_complex() else torch.exp(1j * field)[..., None, None]
    d, lattice = action.dimensions, action.lattice
    spatial = [(m, n) for m in range(d) for n in range(m + 1, d) if axis not in (m, n)] or [(0, 1)]
    slices = torch.zeros(len(field), lattice[axis], dtype=torch.float64)
    for site in np.ndindex(*lattice):
        for mu, nu in spatial:

            def link(direction, *steps, site=site):
                place = list(site)
                for step in steps:
                    place[step] = (place[step] + 1) % lattice[step]
                return matrices[(slice(None), direction, *place)]

            loop = link(mu) @ link(nu, mu) @ link(mu, nu).mH @ link(nu).mH
            n = loop.shape[-1]
            slices[:, site[axis]] += torch.diagonal(loop, dim1=-2, dim2=-1).sum(-1).real / n
    slices /= len(spatial) * action.volume / lattice[axis]
    times = [(slices * slices.roll(-t, 1)).mean(1) for t in range(lattice[axis] // 2 + 1)]
    return torch.stack([*times, slices.mean(1)], 1)


@pytest.mark.parametrize("action", THEORIES, ids=repr)
@pytest.mark.parametrize("axis", [-1, 0])
def test_equals_its_definition(action, axis):
    field = hot(action)
    expected = by_hand(field, action, axis % action.dimensions)
    torch.testing.assert_close(plaquette_correlator(field, action, axis=axis), expected)


@pytest.mark.parametrize("action", THEORIES[1:], ids=repr)
def test_is_gauge_invariant_also_with_smearing(action):
    field = hot(action)
    rng = torch.Generator().manual_seed(7)
    group = action.group
    rotation = group.haar((len(field), *action.lattice), field.dtype, rng)
    moved = torch.stack(
        [
            group.compose(group.compose(rotation, field[:, mu]), group.inverse(shift(rotation, mu)))
            for mu in range(action.dimensions)
        ],
        1,
    )
    keys = {"smearing_steps": 2, "smearing_weight": 0.08}
    before = plaquette_correlator(field, action, **keys)
    torch.testing.assert_close(plaquette_correlator(moved, action, **keys), before)
    assert (before[:, -1] > plaquette_correlator(field, action)[:, -1]).all()


def test_smearing_all_directions_is_a_step_down_the_action():
    """exp(-rho sum (U A)_TA) U is a step of size 2 N rho / beta along minus the force."""
    for action in THEORIES[1:]:
        field = hot(action)
        scale = 2 * action.group.n / action.beta if isinstance(action.group, SUN) else 1 / 2.0
        expected = action.group.move(field, -0.07 * scale * action.force(field))
        smeared = smear(field, action, list(range(action.dimensions)), 0.07)
        torch.testing.assert_close(smeared, expected)


def test_time_links_stay():
    action = THEORIES[3]
    field = hot(action)
    smeared = smear(field, action, [0, 1, 2], 0.1)
    assert torch.equal(smeared[:, 3], field[:, 3])
    assert not torch.equal(smeared[:, 0], field[:, 0])


def test_plaquettes_of_two_dimensions_are_uncorrelated():
    """On a large torus C(t > 0) vanishes and C(0) is the variance of one plaquette over the area.

    Six-sigma tests of 4 numbers: a false alarm in 10^8.
    """
    action = Wilson(U1(), (8, 8), beta=2.0)
    field = sample_wilson_2d(action, 4000, torch.Generator().manual_seed(1))
    values = plaquette_correlator(field, action).numpy()
    np.testing.assert_allclose(values[:, -1], plaquette(field, action).numpy())
    history = History.regular("e", len(values))
    found = apply(connected, history.observables(values))
    results = [result_of(f"C({t})", one) for t, one in enumerate(found)]
    from scipy.special import iv

    mean = iv(1, 2.0) / iv(0, 2.0)
    variance = 0.5 * (1 + iv(2, 2.0) / iv(0, 2.0)) - mean**2
    exact = [variance / 8, 0.0, 0.0, 0.0]
    for result, value in zip(results, exact, strict=False):
        assert abs(result.value - value) < 6 * result.error


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"axis": 4}, "axis 4 does not exist"), ({"smearing_steps": -1}, "0 or more")],
)
def test_unusable_keys(keys, words):
    action = THEORIES[3]
    with pytest.raises(ConfigError, match=words):
        plaquette_correlator(hot(action), action, **keys)
    with pytest.raises(ConfigError, match="two dimensions"):
        plaquette_correlator(hot(THEORIES[0]), THEORIES[0], smearing_steps=1)


def test_masses_and_their_slopes_are_those_of_a_cosh():
    """C(t; m) = cosh(m (L/2 - t)): the effective mass is m, and its slope by propagation exact."""
    from flowmc.estimators.correlators import apply_derivative, effective_mass, mean_mass

    rng = np.random.default_rng(1)
    half, mass = 6, 0.4
    times = half - np.arange(half + 1)
    correlator = np.cosh(mass * times)
    slope = times * np.sinh(mass * times)
    history = History.regular("e", 50)
    noise = rng.normal(size=(50, 1))
    noise -= noise.mean()
    # Fluctuations along the slope: those of a mass that fluctuates.
    means = history.observables(correlator + 1e-3 * noise * slope)
    slopes = history.observables(np.tile(slope, (50, 1)))
    masses = apply(effective_mass, means)
    assert [one.value for one in masses] == pytest.approx([mass] * (half - 1))
    changes = apply_derivative(effective_mass, means, slopes)
    assert [one.value for one in changes] == pytest.approx([1.0] * (half - 1))
    (mean,) = apply(mean_mass(2, 4), means)
    result = result_of("m", mean)
    assert result.value == pytest.approx(mass)
    expected = 1e-3 * result_of("noise", history.observable(noise[:, 0])).error
    assert result.error == pytest.approx(expected, rel=1e-6)
    broken = history.observables(np.tile(correlator * [1, 1, -1, 1, 1, 1, 1], (50, 1)))
    found = apply(effective_mass, broken)
    assert found[1] is None and found[3] is not None and math.isfinite(found[3].value)
