import math

import pytest
import torch

from flowmc.groups import SUN, U1, Real, parse_group, traceless_antihermitian

GROUPS = [U1(), SUN(2), SUN(3), SUN(4)]
DOUBLE = torch.float64


def elements(group, rng, count=50):
    if isinstance(group, Real):
        return torch.randn(count, dtype=DOUBLE, generator=rng)
    return group.haar((count,), group.field_dtype(DOUBLE), rng)


@pytest.mark.parametrize("group", [Real(), *GROUPS], ids=str)
def test_group_laws(group, rng):
    a, b = elements(group, rng), elements(group, rng)
    unit = group.identity((50,), a.dtype)
    assert group.distance(group.compose(a, group.inverse(a)), unit).max() < 1e-14
    left = group.inverse(group.compose(a, b))
    right = group.compose(group.inverse(b), group.inverse(a))
    assert group.distance(left, right).max() < 1e-14


@pytest.mark.parametrize("group", [Real(), *GROUPS], ids=str)
@pytest.mark.parametrize("size", [1e-9, 0.3, 8.0])
def test_exponential_is_a_one_parameter_group(group, size, rng):
    x = group.draw_algebra(elements(group, rng), rng) * size
    double = group.exp(2 * x)
    assert group.distance(double, group.compose(group.exp(x), group.exp(x))).max() < 1e-12 * (
        1 + size
    )
    assert (
        group.distance(
            group.compose(group.exp(x), group.exp(-x)), group.identity((50,), double.dtype)
        ).max()
        < 1e-13
    )


@pytest.mark.parametrize("n", [2, 3, 4])
def test_exponential_of_matrices_agrees_with_torch(n, rng):
    group = SUN(n)
    x = group.draw_algebra(elements(group, rng), rng)
    assert (group.exp(x) - torch.linalg.matrix_exp(x)).abs().max() < 1e-13


@pytest.mark.parametrize("n", [2, 3, 4])
def test_generators_are_normalised(n):
    generators = SUN(n).generators(torch.complex128)
    assert (generators + generators.mH).abs().max() == 0
    traces = torch.einsum("aij,bji->ab", generators, generators)
    assert (traces + 0.5 * torch.eye(n * n - 1)).abs().max() < 1e-15


@pytest.mark.parametrize("n", [2, 3, 4])
def test_coordinates_and_kinetic_energy(n, rng):
    group = SUN(n)
    coordinates = torch.randn(7, n * n - 1, dtype=DOUBLE, generator=rng)
    algebra = group.coordinates_to_algebra(coordinates)
    assert (group.algebra_to_coordinates(algebra) - coordinates).abs().max() < 1e-14
    expected = 0.5 * coordinates.square().sum(1)
    assert (group.kinetic_energy(algebra) - expected).abs().max() < 1e-13


@pytest.mark.parametrize("n", [2, 3, 4])
def test_projection_on_the_algebra(n, rng):
    group = SUN(n)
    matrix = torch.randn(5, n, n, dtype=torch.complex128, generator=rng)
    projected = traceless_antihermitian(matrix)
    generators = group.generators(torch.complex128)
    components = torch.einsum("aij,cji->ca", generators, matrix).real
    # sum_a T_a Re tr(T_a M) = -1/2 (M)_TA
    rebuilt = group.coordinates_to_algebra(components)
    assert (rebuilt + 0.5 * projected).abs().max() < 1e-14


@pytest.mark.parametrize("n", [2, 3, 4])
def test_projection_on_the_group_repairs_drift(n, rng):
    group = SUN(n)
    exact = elements(group, rng)
    noise = torch.randn(exact.shape, dtype=exact.dtype, generator=rng)
    repaired = group.project(exact + 1e-8 * noise)
    unit = torch.eye(n, dtype=exact.dtype)
    assert (repaired @ repaired.mH - unit).abs().max() < 1e-14
    assert (torch.linalg.det(repaired) - 1).abs().max() < 1e-14
    assert (repaired - exact).abs().max() < 1e-6


@pytest.mark.parametrize("n", [2, 3, 4])
def test_haar_moments(n, rng):
    """|tr U|^2 has mean 1 and, for N >= 3, tr U has mean square 0 (5.5 sigma: 4e-8)."""
    u = SUN(n).haar((40_000,), torch.complex128, rng)
    trace = torch.diagonal(u, dim1=-2, dim2=-1).sum(-1)
    assert (torch.linalg.det(u) - 1).abs().max() < 1e-13
    square = trace.abs().square()
    assert abs(square.mean() - 1) < 5.5 * square.std() / 200
    fourth = square.square()
    # The number of ways of pairing: 2 for N >= 3 (1^2 + 1^2), 2 for SU(2) as well.
    assert abs(fourth.mean() - 2) < 5.5 * fourth.std() / 200
    entry = u[:, 0, 0].abs().square()
    assert abs(entry.mean() - 1 / n) < 5.5 * entry.std() / 200


def test_u1_is_wrapped_into_one_period():
    angles = torch.tensor([math.pi, -math.pi, 3 * math.pi + 0.5, -1e-17, 100.0], dtype=DOUBLE)
    wrapped = U1().project(angles)
    assert (wrapped >= -math.pi).all()
    assert (wrapped <= math.pi).all()
    assert (torch.cos(wrapped) - torch.cos(angles)).abs().max() < 1e-13


def test_group_names():
    assert parse_group("su(3)") == SUN(3)
    assert parse_group("U(1)") == U1()
    with pytest.raises(ValueError, match="use 'R', 'U\\(1\\)' or 'SU\\(N\\)'"):
        parse_group("SO(3)")
