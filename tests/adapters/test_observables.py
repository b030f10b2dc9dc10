"""Plaquette, link trace and group errors against loops written out, and closed forms."""

import itertools

import numpy as np
import pytest
from flowmc_adapters import group_errors, link_trace, plaquettes


def plaquette_by_loops(links, planes):
    dims = tuple(reversed(links.shape[:-3]))
    total, count = 0.0, 0
    for site in itertools.product(*map(range, dims)):

        def link(position, mu):
            wrapped = [p % extent for p, extent in zip(position, dims, strict=True)]
            return links[(*reversed(wrapped), mu)]

        for mu, nu in planes:
            ahead = [p + (i == mu) for i, p in enumerate(site)]
            aside = [p + (i == nu) for i, p in enumerate(site)]
            loop = (
                link(site, mu)
                @ link(ahead, nu)
                @ link(aside, mu).conj().T
                @ link(site, nu).conj().T
            )
            total += np.trace(loop).real / links.shape[-1]
            count += 1
    return total / count


@pytest.mark.parametrize(
    ("dims", "nc"), [((2, 3, 4, 5), 3), ((3, 2, 2, 1), 2), ((2, 3, 4), 4), ((5, 3), 2)]
)
def test_plaquettes_equal_those_of_explicit_loops(make_links, dims, nc):
    links = make_links(dims, nc)
    planes = list(itertools.combinations(range(len(dims)), 2))
    time = [plane for plane in planes if plane[1] == len(dims) - 1]
    space = [plane for plane in planes if plane not in time]
    result = plaquettes(links)
    assert result.mean == pytest.approx(plaquette_by_loops(links, planes), abs=1e-14)
    assert result.time == pytest.approx(plaquette_by_loops(links, time), abs=1e-14)
    if space:
        assert result.space == pytest.approx(plaquette_by_loops(links, space), abs=1e-14)
    else:
        assert result.space is None


def test_cold_field():
    links = np.broadcast_to(np.eye(3, dtype=complex), (2, 2, 2, 2, 4, 3, 3))
    assert plaquettes(links).mean == 1
    assert link_trace(links) == 1
    errors = group_errors(links)
    assert (errors.unitarity, errors.determinant, errors.antiperiodic) == (0, 0, ())


def test_link_trace_is_the_mean_over_links(make_links):
    links = make_links(nc=4)
    expected = np.trace(links, axis1=-2, axis2=-1).real.mean() / 4
    assert link_trace(links) == pytest.approx(expected, abs=1e-15)


def test_plaquette_is_gauge_invariant_and_link_trace_is_not(make_links):
    links = make_links()
    rotation = make_links(seed=2)[..., 0, :, :]
    rotated = np.empty_like(links)
    for mu in range(4):
        ahead = np.roll(rotation, -1, axis=3 - mu)
        rotated[..., mu, :, :] = rotation @ links[..., mu, :, :] @ ahead.conj().swapaxes(-1, -2)
    assert plaquettes(rotated).mean == pytest.approx(plaquettes(links).mean, abs=1e-14)
    assert abs(link_trace(rotated) - link_trace(links)) > 1e-3


@pytest.mark.parametrize("nc", [2, 3, 4])
def test_group_errors_see_each_kind_of_departure(make_links, nc):
    links = make_links(nc=nc)
    assert group_errors(links).unitarity < 1e-14
    assert group_errors(links).determinant < 1e-14
    scaled = links.copy()
    scaled[4, 3, 2, 1, 0] *= 1.01
    assert group_errors(scaled).unitarity == pytest.approx(1.01**2 - 1)
    phase = links.copy()
    phase[0, 0, 0, 0, 3] *= np.exp(0.1j)
    assert group_errors(phase).unitarity < 1e-14
    assert group_errors(phase).determinant == pytest.approx(abs(np.exp(0.1j * nc) - 1))


@pytest.mark.parametrize("mu", range(4))
def test_boundary_sign_is_found_in_its_direction(make_links, mu):
    links = make_links()
    slices = [slice(None)] * 4
    slices[3 - mu] = -1
    links[(*slices, mu)] *= -1
    assert group_errors(links).antiperiodic == (mu,)


def test_overflow_becomes_infinite_or_nan_without_raising(make_links):
    links = make_links()
    links[0, 0, 0, 0, 0] *= 1e300
    assert not np.isfinite(plaquettes(links).mean) or abs(plaquettes(links).mean) > 1
    assert group_errors(links).unitarity == np.inf
