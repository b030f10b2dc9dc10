"""The sums over each slab against loops over sites, written out link by link."""

import itertools
import math

import numpy as np
import pytest
from flowmc_adapters import group_errors, slab_sums
from flowmc_adapters.links import ArraySource
from flowmc_adapters.slab_sums import SlabSums
from flowmc_adapters.transfer import slabs_of, transfer

FOUR = [(2, 3, 4, 5), (3, 2, 2, 1), (1, 2, 3, 2), (2, 1, 1, 3), (3, 1, 2, 2), (1, 1, 1, 1)]
FEWER = [(2, 3, 4), (1, 2, 2), (2, 1, 1), (5, 3), (1, 4), (2, 1), (2, 2)]
SITES = [1, 6, 13, 8192]  # one plane per slab, several, several with a rest, whole slices


@pytest.fixture(params=["numpy", "compiled"])
def arithmetic(request, monkeypatch):
    """Both ways of doing it, for lattices of any size."""
    if not hasattr(slab_sums, "_COMPILED_VOLUME"):
        if request.param == "compiled":
            pytest.skip("there is no compiled arithmetic")
        return request.param
    if request.param == "compiled":
        pytest.importorskip("numba")
        monkeypatch.delenv("FLOWMC_NATIVE", raising=False)
    volume = 0 if request.param == "compiled" else math.inf
    monkeypatch.setattr(slab_sums, "_COMPILED_VOLUME", volume)
    slab_sums._use_compiled.cache_clear()
    yield request.param
    slab_sums._use_compiled.cache_clear()


def by_loops(links):
    """`SlabSums` of each slab, in the order of `slabs_of`."""
    dims, nc = tuple(reversed(links.shape[:-3])), links.shape[-1]
    directions, unit = range(len(dims)), np.eye(nc)

    def link(position, mu):
        wrapped = [p % extent for p, extent in zip(position, dims, strict=True)]
        return links[(*reversed(wrapped), mu)].astype(complex)

    def ahead(site, mu):
        return [p + (i == mu) for i, p in enumerate(site)]

    found = []
    for t, start, stop in slabs_of(dims):
        planes = dict.fromkeys(itertools.combinations(directions, 2), 0.0)
        traces, unitarity = 0.0, 0.0
        regular, last, flipped = ([0.0] * len(dims) for _ in range(3))
        zeros, last_zeros = ([0] * len(dims) for _ in range(2))
        inner = itertools.product(*map(range, dims[:-2]))
        for *site, z in itertools.product(inner, range(start, stop)):
            site = (*site[0], z, t)
            for mu, nu in planes:
                loop = link(site, mu) @ link(ahead(site, mu), nu)
                back = link(site, nu) @ link(ahead(site, nu), mu)
                planes[mu, nu] += np.trace(loop @ back.conj().T).real
            for mu in directions:
                u, on_last = link(site, mu), site[mu] == dims[mu] - 1
                traces += np.trace(u).real
                zero = not u.any()
                zeros[mu] += zero
                last_zeros[mu] += zero and on_last
                if not zero:
                    unitarity = max(unitarity, abs(u @ u.conj().T - unit).max())
                    which = last if on_last else regular
                    which[mu] = max(which[mu], abs(np.linalg.det(u) - 1))
                if on_last:
                    flipped[mu] = max(flipped[mu], abs(np.linalg.det(u) + 1))
        lists = (regular, last, flipped, zeros, last_zeros)
        found.append(
            SlabSums(
                tuple(planes.values()), traces, unitarity, *(tuple(values) for values in lists)
            )
        )
    return found


def assert_close(found, expected, tolerance=1e-12):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(one).items():
            assert value == pytest.approx(getattr(other, name), abs=tolerance), name


def sums_of(links):
    return transfer(ArraySource(links)).source


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("dims", FOUR)
def test_four_dimensions(make_links, monkeypatch, arithmetic, dims, sites):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    links = make_links(dims)
    assert_close(sums_of(links), by_loops(links))


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("dims", FEWER)
@pytest.mark.parametrize("nc", [2, 3])
def test_fewer_dimensions(make_links, monkeypatch, dims, sites, nc):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    links = make_links(dims, nc)
    assert_close(sums_of(links), by_loops(links))


@pytest.mark.parametrize("nc", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("dims", [(2, 3, 4, 2), (2, 1, 2, 1)])
def test_other_groups(make_links, monkeypatch, nc, dims):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    links = make_links(dims, nc)
    assert_close(sums_of(links), by_loops(links))


@pytest.mark.parametrize("sites", [1, 12, 8192])
@pytest.mark.parametrize("nc", [2, 3, 4])
def test_fields_outside_the_group(make_links, monkeypatch, arithmetic, sites, nc):
    """General matrices, with zeros among them on and off the last slices."""
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    rng = np.random.default_rng(4)
    links = make_links((2, 3, 4, 3), nc) * rng.uniform(0.5, 1.5, size=(3, 4, 3, 2, 4, 1, 1))
    links += 0.3 * rng.normal(size=links.shape)
    links[rng.random(links.shape[:-2]) < 0.2] = 0
    links[1] = 0
    expected = by_loops(links)
    assert all(sum(part.zeros) > sum(part.last_zeros) > 0 for part in expected if sites > 6)
    assert_close(sums_of(links), expected)


@pytest.mark.parametrize("sites", [1, 12, 8192])
@pytest.mark.parametrize("mu", range(4))
def test_boundary_signs_are_told_from_damage(make_links, monkeypatch, arithmetic, sites, mu):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    links = make_links((2, 3, 4, 3))
    boundary = [slice(None)] * 4
    boundary[3 - mu] = -1
    links[(*boundary, mu)] *= -1
    assert_close(sums_of(links), by_loops(links))
    assert group_errors(links).antiperiodic == (mu,)
    for where in ((0, 0, 0, 0), (2, 3, 2, 1)):  # off and on every last slice
        damaged = links.copy()
        damaged[(*where, mu)] *= -1
        assert group_errors(damaged).antiperiodic == ()
        assert group_errors(damaged).determinant == pytest.approx(2)


@pytest.mark.parametrize("sites", [1, 12, 8192])
def test_open_boundaries_are_told_from_missing_links(make_links, monkeypatch, arithmetic, sites):
    monkeypatch.setattr(slab_sums, "_SITES", sites)
    links = make_links((2, 3, 4, 3))
    links[-1, ..., 3, :, :] = 0
    errors = group_errors(links)
    assert errors.open_boundary
    assert errors.zeros == 24
    assert errors.unitarity < 1e-12
    assert errors.determinant < 1e-12
    links[-1, 0, 0, 0, 3] = np.eye(3)
    assert not group_errors(links).open_boundary
    links[0, 0, 0, 0, 0] = 0  # as many zeros, one of them elsewhere
    assert not group_errors(links).open_boundary
    assert group_errors(links).zeros == 24


def test_errors_are_put_on_their_time_slice(make_links, monkeypatch, arithmetic):
    monkeypatch.setattr(slab_sums, "_SITES", 6)
    links = make_links((2, 3, 4, 5))
    links[3, 2, 1, 0, 2] *= 1.5
    errors = group_errors(links).slice_errors
    assert [t for t, error in enumerate(errors) if error > 1e-12] == [3]


@pytest.mark.parametrize("dims", [(2, 3, 4, 5), (4, 4, 2)])
def test_links_of_32_bit_are_measured_in_double(make_links, arithmetic, dims):
    links = make_links(dims, precision=32)
    assert_close(sums_of(links), by_loops(links))
    assert_close(sums_of(links), sums_of(links.astype(complex)))


def test_overflow_gives_infinity_and_no_exception(make_links, arithmetic):
    links = make_links((2, 3, 4, 2))
    links[0, 1, 1, 1, 2] *= 1e200
    (first, *_) = sums_of(links)
    assert first.unitarity == math.inf
    assert max(first.regular) == math.inf
