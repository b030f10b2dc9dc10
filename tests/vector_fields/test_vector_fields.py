"""Families of vector fields: divergences, symmetries, and derivatives along them."""

import pytest
import torch

from flowmc.actions import AnisotropicWilson, FreeScalar, Phi4, Wilson, check_force
from flowmc.lattice import sum_over_sites
from flowmc.loops import SHAPES, images, loop_trace
from flowmc.observables import plaquette, wilson_loop
from flowmc.random import stream
from flowmc.vector_fields import (
    KernelFields,
    KrylovFields,
    LoopFields,
    check_divergence,
    combine,
    directional_derivative,
)
from flowmc.vector_fields.base import divergences_by_differences, scalar_product

GAUGE = [("U(1)", [3, 4]), ("SU(2)", [3, 3]), ("SU(3)", [3, 3]), ("SU(2)", [3, 3, 3])]


def rng(seed=1):
    return stream(seed, 0, "vector fields")


@pytest.mark.parametrize(("group", "lattice"), GAUGE)
def test_divergences_of_loops(group, lattice):
    action = Wilson(group, lattice, beta=1.0)
    fields = LoopFields(action)
    assert {"plaquette", "adjoint", "rectangle"} <= set(fields.names)
    assert check_divergence(fields, action, action.hot(1, rng())) < 1e-10


def test_divergences_apart_in_time():
    action = Wilson("SU(2)", [3, 3, 4], beta=1.0)
    fields = LoopFields(action, loops=["plaquette"], split_time=True)
    assert fields.names == ("plaquette_space", "plaquette_time")
    field = action.hot(2, rng())
    assert check_divergence(fields, action, field) < 1e-10
    together = LoopFields(action, loops=["plaquette"])
    total = sum(fields.velocities(field))
    assert torch.allclose(total, together.velocities(field)[0], atol=1e-13)


def test_divergences_of_kernels():
    action = Phi4([4, 3], m2=-1.0, lam=0.5)
    fields = KernelFields(action, powers=[1, 2, 3])
    assert check_divergence(fields, action, action.hot(2, rng())) < 1e-10
    assert len(KernelFields(action, powers=[1], reach=1.0).names) == 3


def test_a_wrong_divergence_is_noticed():
    action = Wilson("SU(2)", [3, 3], beta=1.0)

    class Wrong(LoopFields):
        def _casimir(self, name):
            return 1.01 * super()._casimir(name)

    assert check_divergence(Wrong(action), action, action.hot(1, rng())) > 1e-3


@pytest.mark.parametrize(
    ("group", "lattice"),
    [("U(1)", [4, 4]), pytest.param("SU(2)", [2, 4], marks=pytest.mark.slow), (None, [4])],
)
def test_stochastic_divergences_are_unbiased(group, lattice):
    """Mean of 400 estimates against moving every degree of freedom, 5 standard deviations."""
    action = Phi4(lattice, m2=-1.0, lam=0.5) if group is None else Wilson(group, lattice, beta=1.3)
    coupling = "beta" if group else "m2"
    fields = KrylovFields(action, coupling, degree=2)
    field = action.hot(1, rng())

    many = fields.divergences(field.expand(400, *field.shape[1:]), rng())
    exact = divergences_by_differences(fields, action, field)[0]
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - exact).abs() <= 5 * error + 1e-4 * exact.abs()).all()


def test_krylov_fields_start_with_the_force_of_the_coupling():
    action = Wilson("SU(2)", [4, 4], beta=1.7)
    field = action.hot(2, rng())
    (first,) = KrylovFields(action, "beta", degree=0).velocities(field)
    assert torch.allclose(first, action.force(field) / 1.7, atol=1e-10)


def test_products_with_the_hessian():
    """For the free field the Hessian is a matrix that is known."""
    action = FreeScalar([6], m2=0.5)
    field = action.sample(3, rng())
    first, second, third = KrylovFields(action, "m2", degree=2).velocities(field)

    def hessian(phi):
        return 2 * ((2 + 0.5) * phi - phi.roll(1, 1) - phi.roll(-1, 1))

    scale = 1.0 if torch.allclose(first, 2 * field) else 0.5
    assert torch.allclose(second, scale * hessian(first), atol=1e-8)
    assert torch.allclose(third, scale * hessian(second), atol=1e-7)


@pytest.mark.parametrize(("group", "lattice"), GAUGE[:3])
def test_derivatives_along_fields_against_autograd(group, lattice):
    action = Wilson(group, lattice, beta=1.0)
    fields = LoopFields(action)
    field = action.hot(3, rng())
    velocity = combine(fields.velocities(field), torch.linspace(-0.1, 0.1, len(fields.names)))

    def loop(links):
        return wilson_loop(links, action, extents=(2, 1))

    leaf = field.clone().requires_grad_(True)
    (euclidean,) = torch.autograd.grad(loop(leaf).sum(), leaf)
    gradient = action.group.gradient_from_euclidean(field, euclidean)
    exact = scalar_product(action.group, velocity, gradient)
    found = directional_derivative(loop, field, velocity, action.group)
    assert torch.allclose(found, exact, rtol=1e-8, atol=1e-12)
    none = directional_derivative(loop, field, torch.zeros_like(velocity), action.group)
    assert not none.any()


def test_single_precision_is_refused():
    action = Phi4([4], m2=-1.0, lam=0.5)
    field = action.hot(1, rng()).float()
    with pytest.raises(ValueError, match="double precision"):
        directional_derivative(action, field, field, action.group)


def test_images_of_loops_are_all_and_once():
    """Loops through a site in four dimensions: 6 planes; 12 rectangles; 4 cubes with 12 bent
    rectangles and 4 hexagons each."""
    counts = {name: len(images(word, 4)) for name, word in SHAPES.items()}
    assert counts["plaquette"] == 6 and counts["rectangle"] == 12
    assert counts["chair"] == 48 and counts["parallelogram"] == 16
    action = Wilson("SU(3)", [4, 4, 4], beta=1.0)
    links = action.hot(2, rng())
    total = sum_over_sites(loop_trace(links, images(SHAPES["plaquette"], 3), action.group))
    expected = plaquette(links, action) * 3 * 3 * action.volume
    assert torch.allclose(total, expected)
    total = sum_over_sites(loop_trace(links, images(SHAPES["rectangle"], 3), action.group))
    expected = wilson_loop(links, action, extents=(2, 1)) * 3 * 6 * action.volume
    assert torch.allclose(total, expected)


def test_loops_with_repeated_links_are_left_out():
    """On an extent of two the square winds around the lattice."""
    small = Wilson("SU(2)", [2, 4], beta=1.0)
    assert "square" not in LoopFields(small).names
    with pytest.raises(ValueError, match="does not exist"):
        LoopFields(small, loops=["square"])
    with pytest.raises(ValueError, match="unknown loop"):
        LoopFields(small, loops=["circle"])
    with pytest.raises(ValueError, match="gauge theory"):
        LoopFields(Phi4([4], m2=-1.0, lam=0.5))
    with pytest.raises(ValueError, match="scalar fields"):
        KernelFields(small)
    with pytest.raises(ValueError, match="no coupling"):
        KrylovFields(small, "kappa")


@pytest.mark.parametrize("group", ["U(1)", "SU(3)"])
def test_anisotropic_action(group):
    action = AnisotropicWilson(group, [3, 2, 4], beta=1.5, anisotropy=1.3)
    field = action.hot(2, rng())
    assert check_force(action, field, rng()) < 1e-8
    isotropic = action.at(anisotropy=1.0)
    wilson = Wilson(group, [3, 2, 4], beta=1.5)
    assert torch.allclose(isotropic(field), wilson(field))
    space = loop_trace(field, [(1, 2, -1, -2)], action.group)
    time = loop_trace(field, [(1, 3, -1, -3), (2, 3, -2, -3)], action.group)
    n = 3 if group == "SU(3)" else 1
    expected = 1.5 / n * (sum_over_sites(space) / 1.3**2 - sum_over_sites(time))
    assert torch.allclose(action.coupling_derivative("anisotropy", field), expected, rtol=1e-6)


def test_derivatives_with_respect_to_couplings():
    action = Phi4([4, 4], kappa=0.2, lam=0.0)
    field = torch.randn(3, 4, 4, dtype=torch.float64, generator=rng())
    expected = sum_over_sites(field.pow(4) - 2 * field.pow(2))
    # lambda = 0 is the smallest: from one side.
    assert torch.allclose(action.coupling_derivative("lambda", field), expected)
    force = action.coupling_force("lambda", field)
    assert torch.allclose(force, 4 * field.pow(3) - 4 * field, atol=1e-9)
    with pytest.raises(ValueError, match="no coupling"):
        action.coupling_derivative("m2", field)
