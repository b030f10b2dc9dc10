"""Super-resolution: the blocking of the free field, and densities of fields from coarse samplers.

Statistical checks compare with an exact answer, or two estimates with each other, at 6 standard
errors, a false-alarm rate of 2e-9 each, on fixed seeds.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.estimators.weights import effective_sample_size
from flowmc.flows import (
    AffineCouplingFlow,
    ContinuousFlow,
    FlowModel,
    FreeFieldBlocking,
    FreeFieldPrior,
    GaussianPrior,
    Identity,
    SignMixture,
    SuperResolutionPrior,
)
from flowmc.training import ReverseKL

LATTICES = [[8], [4, 8], [4, 4, 4]]


def stream(seed=1):
    return torch.Generator().manual_seed(seed)


def phi4(lattice, lam=6.0):
    return Phi4(lattice, m2=-4.0, lam=lam)


def half(lattice):
    return [extent // 2 for extent in lattice]


def free_base(lattice, m2):
    return FlowModel(FreeFieldPrior(phi4(half(lattice)), m2=m2), Identity())


def coupling_base(lattice, kind=FlowModel):
    """A sampler that is neither Gaussian nor even; the extents of couplings are even."""
    torch.manual_seed(3)
    action = phi4(half(lattice))
    flow = AffineCouplingFlow(action, layers=4, hidden=[4])
    for parameter in flow.parameters():
        if not parameter.any():
            torch.nn.init.uniform_(parameter, -0.2, 0.2)
    return kind(GaussianPrior(action, scale=0.6), flow)


def continuous_base(lattice):
    torch.manual_seed(4)
    action = phi4(half(lattice))
    flow = ContinuousFlow(action, frequencies=5, site_channels=3, time_channels=3, steps=48)
    torch.nn.init.normal_(flow.kernels, std=0.25 / math.sqrt(action.volume))
    return FlowModel(FreeFieldPrior(action, m2=0.7), flow)


def two_levels(lattice):
    coarser = SuperResolutionPrior(phi4(half(lattice)), coupling_base(half(lattice)), m2=0.9)
    return FlowModel(coarser, Identity())


BASES = {
    "free": (lambda lattice: free_base(lattice, 1.3), [4, 8]),
    "coupling": (coupling_base, [4, 8]),
    "coupling 1d": (coupling_base, [8]),
    "coupling 3d": (coupling_base, [4, 4, 4]),
    "mixture": (lambda lattice: coupling_base(lattice, SignMixture), [4, 4]),
    "continuous": (continuous_base, [4, 8]),
    "two levels": (two_levels, [8, 8]),
}
EXACT = ["coupling", "coupling 1d", "coupling 3d", "mixture", "two levels"]


def prior_of(name, m2=0.4, coarse_m2=1.1):
    base, lattice = BASES[name]
    return SuperResolutionPrior(phi4(lattice), base(lattice), m2=m2, coarse_m2=coarse_m2).to(
        torch.float64
    )


def assert_equal_means(samples, expected):
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 6 * error).all()


def matrix(linear, lattice):
    """Return the matrix of a linear map of fields."""
    volume = math.prod(lattice)
    unit = torch.eye(volume, dtype=torch.float64).reshape(volume, *lattice)
    return linear(unit).flatten(1).t()


def covariance(action):
    unit = torch.eye(action.volume, dtype=torch.float64).reshape(-1, *action.lattice)
    return torch.linalg.inv(action.force(unit).flatten(1))


@pytest.mark.parametrize("lattice", LATTICES)
def test_blocked_free_field_is_the_coarse_free_field(lattice):
    """As matrices: R G R^T = G_c, and the best estimate is U = G R^T G_c^-1, with R U = 1."""
    fine, coarse = FreeScalar(lattice, m2=0.3), FreeScalar(half(lattice), m2=0.9)
    blocking = FreeFieldBlocking(fine, coarse)
    restrict = matrix(blocking.restrict, lattice)
    prolong = matrix(blocking.prolong, half(lattice))
    g, g_coarse = covariance(fine), covariance(coarse)
    assert torch.allclose(restrict @ g @ restrict.t(), g_coarse, atol=1e-12)
    assert torch.allclose(prolong, g @ restrict.t() @ torch.linalg.inv(g_coarse), atol=1e-12)
    assert torch.allclose(restrict @ prolong, torch.eye(coarse.volume).double(), atol=1e-12)


def test_coarse_field_is_a_local_average():
    """At equal physical mass the coarse field is, mostly, the sum over its own block."""
    blocking = FreeFieldBlocking(FreeScalar([16, 16], m2=0.1), FreeScalar([8, 8], m2=0.4))
    row = matrix(blocking.restrict, [16, 16])[0].reshape(16, 16)
    assert torch.allclose(row[:2, :2], row[0, 0].expand(2, 2))
    assert float(row[:2, :2].abs().sum()) > 0.5 * float(row.abs().sum())


@pytest.mark.parametrize("name", ["coupling", "coupling 1d", "coupling 3d"])
def test_the_mean_field_is_that_of_the_coarse_sampler(name):
    """V <m^2> grows by coarse_m2 / m2, draw by draw."""
    prior = prior_of(name, m2=0.4, coarse_m2=1.1)
    x, _ = prior.sample(3, stream())
    fine, coarse = (
        f.flatten(1).sum(1).square() / f[0].numel() for f in (x, prior.blocking.restrict(x))
    )
    assert torch.allclose(fine, coarse * (1.1 / 0.4), rtol=1e-10)


@pytest.mark.parametrize("lattice", LATTICES)
def test_coarse_free_field_gives_the_fine_free_field(lattice):
    """The density is that of the free field everywhere, so ln Z and ESS = 1 are exact."""
    action = phi4(lattice)
    prior = SuperResolutionPrior(action, free_base(lattice, 0.9), m2=0.3, coarse_m2=0.9).to(
        torch.float64
    )
    free = FreeScalar(lattice, m2=0.3)
    x, log_q = prior.sample(2000, stream())
    log_weights = -free(x) - log_q
    exact = torch.full_like(log_weights, free.log_partition())
    assert torch.allclose(log_weights, exact, atol=1e-9)
    assert effective_sample_size(log_weights).value > 1 - 1e-12
    other = torch.randn((3, *lattice), dtype=torch.float64, generator=stream(2))
    expected = FreeFieldPrior(action, m2=0.3).log_prob(other)
    assert torch.allclose(prior.log_prob(other), expected, atol=1e-9)
    # The draws are of that density, too.
    modes = torch.fft.fftn(x, dim=tuple(range(1, x.dim()))).abs().square() / free.volume
    assert_equal_means(modes, 0.5 / free.mode_action())


@pytest.mark.parametrize("name", BASES)
def test_density_of_draws_is_that_of_log_prob(name):
    prior = prior_of(name)
    x, log_q = prior.sample(5, stream())
    again, _ = prior.sample(5, stream())
    assert torch.equal(x, again), "a function of the stream"
    assert log_q.dtype == torch.float64
    assert log_q.shape == (5,)
    accuracy = 1e-9 if prior.log_density_is_exact else 1e-4
    assert torch.allclose(log_q, prior.log_prob(x), rtol=0, atol=accuracy)


@pytest.mark.parametrize("name", EXACT)
def test_density_against_the_dense_change_of_variables(name):
    """Coarse field and an orthonormal basis of details: their densities and the full Jacobian."""
    prior = prior_of(name)
    fine = prior.blocking.fine
    restrict = matrix(prior.blocking.restrict, fine.lattice)
    _, _, basis = torch.linalg.svd(restrict)
    details = basis[len(restrict) :]
    g = covariance(fine)
    gain = g @ restrict.t() @ torch.linalg.inv(restrict @ g @ restrict.t())
    rest = details @ (g - gain @ restrict @ g) @ details.t()
    x = 0.8 * torch.randn((4, *fine.lattice), dtype=torch.float64, generator=stream(7))
    rows = x.flatten(1)
    coarse = rows @ restrict.t()
    normal = MultivariateNormal(
        torch.zeros(len(details), dtype=torch.float64), covariance_matrix=(rest + rest.t()) / 2
    )
    given = normal.log_prob((rows - coarse @ gain.t()) @ details.t())
    jacobian = torch.linalg.slogdet(torch.cat([restrict, details]))[1]
    expected = prior.base.log_prob(coarse.reshape(4, *half(fine.lattice))) + given + jacobian
    assert torch.allclose(prior.log_prob(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["coupling", "mixture", "continuous", "two levels"])
def test_log_prob_is_differentiable(name):
    prior = prior_of(name)
    x, _ = prior.sample(2, stream())
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=stream(5))
    step = 1e-5
    with torch.no_grad():
        ends = [prior.log_prob(x + sign * step * direction).sum() for sign in (1, -1)]
    slope = float(ends[0] - ends[1]) / (2 * step)
    assert abs(slope - float((gradient * direction).sum())) < 1e-6 * (1 + abs(slope))


@pytest.mark.parametrize("name", ["coupling", "two levels"])
def test_single_precision(name):
    """Draws are rounded, densities only by what rounding does to fields and weights."""
    prior = prior_of(name)
    x, log_q = prior.sample(4, stream())
    narrow, narrow_log_q = prior.to(torch.float32).sample(4, stream())
    assert narrow.dtype == torch.float32
    assert narrow_log_q.dtype == torch.float64
    assert float((narrow - x).abs().max()) < 1e-5
    assert float((narrow_log_q - log_q).abs().max()) < 1e-3
    assert float((narrow_log_q - prior.log_prob(narrow)).abs().max()) < 1e-3


def test_symmetries_are_those_of_the_coarse_sampler():
    lattice = [8, 8]
    prior = SuperResolutionPrior(phi4(lattice), continuous_base(lattice), m2=0.4).double()
    x, _ = prior.sample(3, stream())
    density = prior.log_prob(x)
    transformations = {
        "translation": lambda f: f.roll((2, 4), (1, 2)),
        # About the middle of a block, which maps blocks to blocks.
        "reflection": lambda f: f.flip(1),
        "exchange of axes": lambda f: f.transpose(1, 2),
        "sign": torch.neg,
    }
    for name, move in transformations.items():
        assert torch.allclose(prior.log_prob(move(x)), density, atol=1e-9), name
    # Blocks of other pairs of sites are another distribution.
    assert not torch.allclose(prior.log_prob(x.roll(1, 1)), density, atol=1e-2)


@pytest.mark.parametrize("name", ["coupling", "two levels"])
def test_reweighted_draws_are_unbiased(name):
    """Against the exact free field of another mass: ln Z = ln <w> and <phi^2>."""
    lattice = BASES[name][1]
    target = FreeScalar(lattice, m2=2.5)
    prior = prior_of(name, m2=2.0, coarse_m2=6.0)
    if name == "coupling":
        prior.base.prior = GaussianPrior(phi4(half(lattice)), scale=0.45).double()
    x, log_q = prior.sample(40000, stream(9))
    weights = (-target(x) - log_q - target.log_partition()).exp()
    assert_equal_means(weights, 1.0)
    phi2 = x.square().flatten(1).mean(1)
    assert_equal_means(weights * (phi2 - float(target.propagator().flatten()[0])), 0.0)


def test_path_gradient_through_the_coarse_sampler():
    """The force of the prior reaches the flow: for a perfect model every path gradient is zero."""
    lattice = [4, 4]
    free = FreeScalar(lattice, m2=0.3)
    prior = SuperResolutionPrior(free, free_base(lattice, 0.9), m2=0.3, coarse_m2=0.9)
    torch.manual_seed(1)
    model = FlowModel(prior, AffineCouplingFlow(free, layers=2, hidden=[4])).double()
    batch = ReverseKL(model, free, gradient="path").evaluate(8, stream())
    batch.surrogate.backward()
    gradients = [p.grad for p in model.flow.parameters() if p.grad is not None]
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_weights_of_the_coarse_sampler_are_held():
    base = coupling_base([4, 4])
    assert any(parameter.requires_grad for parameter in base.parameters())
    prior = SuperResolutionPrior(phi4([4, 4]), base, m2=0.4)
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert set(prior.state_dict()) == {f"base.{name}" for name in base.state_dict()}


@pytest.mark.slow
def test_density_error_of_a_continuous_sampler():
    fine, coarse = prior_of("continuous"), prior_of("continuous")
    coarse.base.flow.steps = 2
    x, _ = fine.sample(16, stream())
    errors = [float(FlowModel(p, Identity()).density_error(x).max()) for p in (fine, coarse)]
    assert errors[0] < 1e-4
    assert errors[1] > 10 * errors[0]
    assert not FlowModel(fine, Identity()).log_density_is_exact
    assert FlowModel(prior_of("coupling"), Identity()).log_density_is_exact


def test_fingerprint_depends_on_the_coarse_sampler_and_the_masses():
    lattice = [4, 8]
    action = phi4(lattice)

    def digest(base, **masses):
        return FlowModel(SuperResolutionPrior(action, base, **masses), Identity()).fingerprint()

    digests = [
        digest(free_base(lattice, 1.3), m2=0.3),
        digest(free_base(lattice, 1.4), m2=0.3),
        digest(free_base(lattice, 1.3), m2=0.4),
        digest(free_base(lattice, 1.3), m2=0.3, coarse_m2=1.3),
        digest(coupling_base(lattice), m2=0.3),
        digest(coupling_base(lattice, SignMixture), m2=0.3),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == digest(free_base(lattice, 1.3), m2=0.3, coarse_m2=1.2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SuperResolutionPrior(Wilson("U(1)", [4, 4], beta=1.0), None, m2=1.0), "scalar"),
        (lambda: SuperResolutionPrior(phi4([5, 4]), None, m2=1.0), "5x4 needs even extents"),
        (lambda: SuperResolutionPrior(phi4([2, 4]), None, m2=1.0), "2x4 needs even extents"),
        (lambda: SuperResolutionPrior(phi4([4, 4]), None, m2=0.0), "m2 > 0"),
        (lambda: prior_of("coupling").log_prob(torch.zeros(2, 6, 4)), "does not fit"),
        (
            lambda: FreeFieldBlocking(FreeScalar([8, 8], m2=1.0), FreeScalar([4, 8], m2=1.0)),
            "8x8 does not go to 4x8",
        ),
    ],
)
def test_messages(build, message):
    with pytest.raises(ValueError, match=message):
        build()
