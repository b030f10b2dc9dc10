"""Priors: exact densities, moments and the free propagator.

Statistical checks compare with an exact answer at 6 standard errors of the mean, a false-alarm rate
of 2e-9 each, on fixed seeds.
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.flows import (
    EnsemblePrior,
    FlowModel,
    FreeFieldPrior,
    GaussianPrior,
    HaarPrior,
    Identity,
)

SCALAR = Phi4([4, 6], m2=-4.0, lam=8.0)
LINKS = Wilson("SU(3)", [2, 4], beta=5.0)
ANGLES = Wilson("U(1)", [4, 2], beta=2.0)


def stream(seed=1):
    return torch.Generator().manual_seed(seed)


def ensemble():
    fields = FreeScalar([4, 6], m2=0.5).sample(7, stream(5))
    return EnsemblePrior(fields, SCALAR)


PRIORS = {
    "gaussian": lambda: GaussianPrior(SCALAR, scale=0.7),
    "free": lambda: FreeFieldPrior(SCALAR, m2=0.3),
    "free, one well": lambda: FreeFieldPrior(SCALAR, m2=0.3, scale=2.0, mean=1.7),
    "haar SU(3)": lambda: HaarPrior(LINKS),
    "haar U(1)": lambda: HaarPrior(ANGLES),
    "ensemble": ensemble,
}


def assert_mean(samples, expected):
    """Compare a mean over axis 0 with its exact value at 6 standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 6 * error).all()


@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_a_function_of_the_stream_with_the_density_of_log_prob(name):
    prior = PRIORS[name]().to(torch.float64)
    x, log_density = prior.sample(5, stream())
    again, _ = prior.sample(5, stream())
    other, _ = prior.sample(5, stream(2))
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert log_density.dtype == torch.float64
    assert log_density.shape == (5,)
    assert torch.equal(log_density, prior.log_prob(x))


@pytest.mark.parametrize("name", PRIORS)
def test_draws_follow_the_precision_of_the_model(name):
    model = FlowModel(PRIORS[name](), Identity())
    for real in (torch.float32, torch.float64):
        x, log_density = model.to(real).sample(2, stream())
        assert x.dtype == model.prior.group.field_dtype(real)
        assert log_density.dtype == torch.float64
    narrow, _ = model.to(torch.float32).sample(2, stream())
    assert float((narrow - x).abs().max()) < 1e-6, "the same draw, rounded"
    assert list(model.state_dict()) == []


def test_gaussian_density_against_torch():
    prior = GaussianPrior(SCALAR, scale=0.7).to(torch.float64)
    x, log_density = prior.sample(6, stream())
    # As tensors: torch would take Python numbers for float32.
    location, scale = torch.tensor([0.0, 0.7], dtype=torch.float64)
    expected = torch.distributions.Normal(location, scale).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(log_density, expected, rtol=1e-13)
    many, _ = prior.sample(4000, stream(3))
    assert_mean(many.square().flatten(1).mean(1), 0.49)


def normal_variance(action):
    """<phi_x^2> of the free field."""
    return float(action.propagator().flatten()[0])


@pytest.mark.parametrize("scale, mean", [(1.0, 0.0), (0.4, 0.0), (2.0, -1.3)])
@pytest.mark.parametrize("lattice", [[5], [4, 6], [2, 3, 4]])
def test_free_field_density_against_the_dense_gaussian(lattice, scale, mean):
    action = FreeScalar(lattice, m2=0.3)
    prior = FreeFieldPrior(action, m2=0.3, scale=scale, mean=mean).to(torch.float64)
    x, log_density = prior.sample(4, stream())
    # S = x^T A x is exact from the action itself, column by column; the covariance is (2A)^-1.
    unit = torch.eye(action.volume, dtype=torch.float64).reshape(-1, *lattice)
    gradient = torch.stack([action.force(one[None])[0].flatten() for one in unit])
    normal = MultivariateNormal(
        torch.full((action.volume,), mean, dtype=torch.float64),
        precision_matrix=gradient / scale**2,
    )
    assert torch.allclose(log_density, normal.log_prob(x.flatten(1)), rtol=1e-12)
    many, _ = prior.sample(4000, stream(3))
    assert_mean(many, torch.full(tuple(lattice), mean, dtype=torch.float64))
    assert_mean((many - mean).square().flatten(1).mean(1), scale**2 * normal_variance(action))


def test_free_field_draws_have_the_exact_propagator():
    prior = FreeFieldPrior(SCALAR, m2=0.3).to(torch.float64)
    x, _ = prior.sample(20000, stream(4))
    modes = torch.fft.fftn(x, dim=(1, 2))
    # <phi_x phi_0> averaged over translations, per configuration.
    correlator = torch.fft.ifftn(modes.abs().square() / 24, dim=(1, 2)).real
    assert_mean(correlator, prior.free.propagator())


def test_haar_density_is_normalised():
    assert float(HaarPrior(LINKS).sample(1, stream())[1]) == 0.0
    _, log_density = HaarPrior(ANGLES).sample(3, stream())
    assert torch.allclose(
        log_density, torch.full((3,), -16 * math.log(2 * math.pi), dtype=torch.float64)
    )


def test_haar_moments():
    """<|tr U|^2> = 1 and <tr U> = 0 for SU(3)."""
    links, _ = HaarPrior(LINKS).to(torch.float64).sample(500, stream())
    trace = torch.diagonal(links, dim1=-2, dim2=-1).sum(-1).flatten()
    assert_mean(trace.abs().square(), 1.0)
    assert_mean(trace.real, 0.0)


def test_ensemble_draws_without_replacement_until_exhausted():
    prior = ensemble().to(torch.float64)
    fields = prior.get_buffer("fields")
    x, log_density = prior.sample(17, stream())
    index = (x[:, None] == fields[None]).flatten(2).all(2).to(torch.int64).argmax(1)
    assert sorted(index[:7].tolist()) == list(range(7))
    assert sorted(index[7:14].tolist()) == list(range(7))
    assert len(set(index[14:].tolist())) == 3
    assert index[:7].tolist() != index[7:14].tolist()
    assert torch.equal(log_density, -SCALAR(x))


def test_fingerprint_depends_on_the_prior():
    def digest(prior):
        return FlowModel(prior, Identity()).fingerprint()

    assert digest(GaussianPrior(SCALAR)) == digest(GaussianPrior(SCALAR))
    others = [
        GaussianPrior(SCALAR),
        GaussianPrior(SCALAR, scale=1.0 + 1e-12),
        FreeFieldPrior(SCALAR, m2=1.0),
        FreeFieldPrior(SCALAR, m2=1.0 + 1e-12),
        FreeFieldPrior(SCALAR, m2=1.0, mean=1e-12),
        HaarPrior(LINKS),
        HaarPrior(ANGLES),
        ensemble(),
        EnsemblePrior(ensemble().get_buffer("fields") + 1e-12, SCALAR),
    ]
    assert len({digest(prior) for prior in others}) == len(others)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianPrior(LINKS), "use the Haar prior"),
        (lambda: FreeFieldPrior(ANGLES, m2=1.0), "use the Haar prior"),
        (lambda: HaarPrior(SCALAR), "is for links"),
        (lambda: GaussianPrior(SCALAR, scale=0.0), "scale > 0"),
        (lambda: FreeFieldPrior(SCALAR, m2=0.0), "m2 > 0"),
        (lambda: FreeFieldPrior(SCALAR, m2=1.0, scale=0.0), "scale > 0"),
        (lambda: FreeFieldPrior(SCALAR, m2=1.0, mean=math.nan), "finite"),
        (lambda: EnsemblePrior(torch.zeros(0, 4, 6), SCALAR), "at least one"),
        (lambda: EnsemblePrior(torch.zeros(2, 6, 4), SCALAR), "does not fit"),
        (lambda: GaussianPrior(SCALAR).log_prob(torch.zeros(2, 6, 4)), "does not fit"),
    ],
)
def test_messages(build, message):
    with pytest.raises(ValueError, match=message):
        build()
