"""Flows of scalar fields: every flow of the table has every property that it promises.

The statistical check (normalisation of the density) compares with the exact 1 at 6 standard errors,
a false-alarm rate of 2e-9, on a fixed seed.
"""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    BetweenCouplings,
    ConditionalContinuousFlow,
    ContinuousFlow,
    FlowModel,
    GaussianPrior,
    MultiLatticeFlow,
    SplineCouplingFlow,
    check_equivariance,
    check_inverse,
    check_log_det,
)
from flowmc.flows.parts.convolution import LatticeConvolution, neighbour_table
from flowmc.flows.scalar.symmetric_kernels import LatticeSpectrum, point_group_orbits
from flowmc.groups import Real


def theory(lattice):
    return Phi4(lattice, m2=-4.0, lam=8.0)


def affine(lattice, **keys):
    torch.manual_seed(11)
    flow = AffineCouplingFlow(theory(lattice), **{"layers": 5, **keys}).double()
    # Away from the identity, at which it starts.
    for parameter in flow.parameters():
        if not parameter.any():
            torch.nn.init.uniform_(parameter, -0.2, 0.2)
    return flow


def spline(lattice, **keys):
    torch.manual_seed(13)
    flow = SplineCouplingFlow(theory(lattice), **{"layers": 4, "bins": 4, **keys}).double()
    for parameter in flow.parameters():
        if not parameter.any():
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return flow


def continuous(lattice, **keys):
    torch.manual_seed(12)
    small = {"frequencies": 7, "site_channels": 4, "time_frequencies": 2, "time_channels": 3}
    flow = ContinuousFlow(theory(lattice), **{**small, **keys}).double()
    # Away from the identity, at which it starts.
    torch.nn.init.normal_(flow.kernels, std=0.25 / math.sqrt(math.prod(lattice)))
    return flow


def conditional(lattice, **keys):
    torch.manual_seed(14)
    small = {"frequencies": 7, "site_channels": 4, "time_frequencies": 2, "time_channels": 3}
    keys = {"coupling": "lambda", "low": 6.0, "high": 9.0, "degree": 2, **keys}
    flow = ConditionalContinuousFlow(theory(lattice), **{**small, **keys}).double()
    torch.nn.init.normal_(flow.kernels, std=0.15 / math.sqrt(math.prod(lattice)))
    return flow


def between(lattice, **keys):
    first, second = (theory(lattice).at(**{"lambda": value}) for value in (6.5, 9.0))
    return BetweenCouplings(conditional(lattice, **keys), first, second)


def multi_lattice(lattice, **keys):
    torch.manual_seed(15)
    small = {"frequencies": 7, "site_channels": 4, "time_frequencies": 2, "time_channels": 3}
    flow = MultiLatticeFlow(
        theory(lattice), **{"coarsest": 3, "reach": 1, **small, **keys}
    ).double()
    torch.nn.init.normal_(flow.near, std=0.05)
    torch.nn.init.normal_(flow.far, std=0.5)
    return flow


FLOWS = {
    "affine 1d": lambda: affine([6]),
    "affine 2d": lambda: affine([4, 6]),
    "affine 2d kernel 5": lambda: affine([4, 4], kernel_size=5, hidden=[4]),
    "affine 3d": lambda: affine([2, 4, 2]),
    "affine 4d": lambda: affine([2, 4, 2, 2], layers=3, hidden=[3]),
    "affine odd 1d": lambda: affine([4], odd=True),
    "affine odd 2d": lambda: affine([4, 4], odd=True),
    "affine odd 4d": lambda: affine([2, 2, 2, 4], odd=True, layers=3, hidden=[3]),
    "spline odd 1d": lambda: spline([4]),
    "spline odd 2d": lambda: spline([4, 6], bound=1.5),
    "spline odd 4d": lambda: spline([2, 2, 2, 4], layers=3, hidden=[3], bins=1),
    "spline odd bare": lambda: spline([4, 4], affine=False),
    "affine blocks 1d": lambda: affine([6], masks="blocks"),
    "affine odd blocks 3d": lambda: affine([2, 4, 2], layers=9, odd=True, masks="blocks"),
    "spline odd blocks 2d": lambda: spline([4, 6], layers=6, masks="blocks"),
    "continuous 1d": lambda: continuous([5], steps=24),
    "continuous 2d": lambda: continuous([4, 4], steps=24),
    "continuous oblong": lambda: continuous([4, 3], steps=24),
    "continuous reach 1": lambda: continuous([4, 5], steps=24, reach=1),
    "continuous multi-lattice": lambda: multi_lattice([6, 6], steps=24),
    "conditional 2d": lambda: conditional([4, 4], steps=24),
    "between couplings": lambda: between([3, 4], steps=48),
    "continuous 3d": lambda: continuous([2, 3, 3], steps=24),
    "continuous 4d": lambda: continuous([2, 2, 3, 2], steps=24),
    "continuous dopri5": lambda: continuous([4], integrator="dopri5", tolerance=1e-8),
}
ODD = [name for name in FLOWS if "odd" in name or "continuous" in name]


def fields(flow, chains=3, dtype=torch.float64):
    rng = torch.Generator().manual_seed(21)
    return torch.randn((chains, *flow.lattice), dtype=torch.float64, generator=rng).to(dtype)


def tolerance(flow):
    """Round-off for an exact density, the size of the discretisation error otherwise."""
    return 1e-12 if flow.log_density_is_exact else 5e-5


@pytest.mark.parametrize("name", FLOWS)
def test_inverse(name):
    flow = FLOWS[name]()
    x = fields(flow)
    moved = (flow.forward(x, torch.zeros(3))[0] - x).detach()
    assert float(moved.abs().max()) > 0.05, "it does something"
    assert max(check_inverse(flow, x)) < tolerance(flow)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        # Both are the same integrator: of continuous flows one direction each is fast enough.
        pytest.param(name, way, marks=pytest.mark.slow if ode and n % 2 == w else ())
        for n, name in enumerate(FLOWS)
        for w, way in enumerate(["forward", "inverse"])
        for ode in ["continuous" in name or "conditional" in name or "between" in name]
    ],
)
def test_log_density_against_the_full_jacobian(name, direction):
    flow = FLOWS[name]()
    x = fields(flow, 1)
    change = flow.forward(x, torch.zeros(1))[1]
    assert abs(float(change.detach())) > 0.01, "the Jacobian is not trivial"
    error = check_log_det(flow, x, Real(), inverse=direction == "inverse")
    assert error < tolerance(flow)


@pytest.mark.parametrize("name", ODD)
def test_equivariance_under_a_sign_flip(name):
    flow = FLOWS[name]()
    assert max(check_equivariance(flow, fields(flow), torch.neg)) < 1e-12


def test_an_affine_flow_is_not_odd_unless_asked():
    flow = FLOWS["affine 2d"]()
    assert check_equivariance(flow, fields(flow), torch.neg)[0] > 0.1


@pytest.mark.parametrize("name", FLOWS)
def test_equivariance_under_translations(name):
    flow = FLOWS[name]()
    x = fields(flow)
    axes = range(1, x.dim())
    shifts = [tuple(2 * (a == axis) for a in axes) for axis in axes]
    if len(axes) > 1 and "blocks" not in name:
        shifts.append((1, 1, *[0] * (len(axes) - 2)))
    if isinstance(flow, ContinuousFlow):
        shifts = [tuple(range(1, len(axes) + 1))]
    for shift in shifts:
        errors = check_equivariance(flow, x, lambda f, s=shift: torch.roll(f, s, tuple(axes)))
        assert max(errors) < 1e-12


def test_masks_of_a_layer():
    """A layer moves one colour: half of the sites, or one site of every block."""
    for masks, share in (("checkerboard", 2), ("blocks", 4)):
        moved = []
        for layers in range(1, share + 1):
            flow = affine([4, 6], layers=layers, masks=masks)
            x = fields(flow)
            moved.append((flow.forward(x, torch.zeros(3))[0] != x)[0])
            # Of another layer the same sites have moved, and as many more.
            assert int(moved[-1].sum()) == layers * 24 // share
            assert bool((moved[-1] >= moved[0]).all())
        first = moved[0]
        assert torch.equal(first, first.roll((2, 2), (0, 1)))
        assert torch.equal(first, first.roll((1, 1), (0, 1))) == (masks == "checkerboard")
    with pytest.raises(ValueError, match="unknown masks 'block'"):
        AffineCouplingFlow(theory([4, 4]), masks="block")


@pytest.mark.parametrize("name", [name for name in FLOWS if "continuous" in name])
def test_equivariance_under_the_point_group(name):
    flow = FLOWS[name]()
    x = fields(flow)
    elements = [lambda f, axis=axis: f.flip(axis) for axis in range(1, x.dim())]
    for a, b in itertools.combinations(range(x.dim() - 1), 2):
        if flow.lattice[a] == flow.lattice[b]:
            elements.append(lambda f, a=a, b=b: f.transpose(1 + a, 1 + b))
    for element in elements:
        assert max(check_equivariance(flow, x, element)) < 1e-12


@pytest.mark.parametrize("name", ["affine 2d", "affine odd 2d", "spline odd 2d", "continuous 2d"])
def test_precision(name):
    """The weights' precision limits the map; the field keeps its own, the density is float64."""
    exact = FLOWS[name]()
    x = fields(exact)
    y, density = exact.forward(x, torch.zeros(3, dtype=torch.float64))
    rounded = FLOWS[name]().float()
    for dtype in (torch.float32, torch.float64):
        z, other = rounded.forward(x.to(dtype), torch.zeros(3, dtype=torch.float64))
        assert z.dtype == dtype
        assert other.dtype == torch.float64
        assert 0 < float((z - y).abs().max()) < 1e-4
        assert float((other - density).abs().max()) < 1e-4
        assert max(check_inverse(rounded, x.to(dtype))) < 1e-4


@pytest.mark.parametrize("name", ["affine 1d", "affine odd 1d", "spline odd 1d", "continuous 1d"])
def test_density_is_normalised(name):
    """E_q[p / q] = 1 with the exact density p of the free field."""
    flow = FLOWS[name]()
    target = FreeScalar(flow.lattice, m2=1.5)
    # A prior wider than the target keeps the variance of the weights small.
    model = FlowModel(GaussianPrior(theory(flow.lattice), scale=0.8).to(torch.float64), flow)
    with torch.no_grad():
        draws = 20000 if flow.log_density_is_exact else 5000
        x, log_density = model.sample(draws, torch.Generator().manual_seed(31))
        weights = (-target(x) - target.log_partition() - log_density).exp()
        by_inverse = model.log_prob(x[:50])
    assert float((by_inverse - log_density[:50]).abs().max()) < 10 * tolerance(flow)
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.05
    assert abs(float(weights.mean()) - 1) < 6 * error


LATER = [("affine 2d", "forward"), ("affine odd 2d", "inverse")]


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        # Of the affine flows one direction each is fast enough.
        pytest.param(name, way, marks=pytest.mark.slow if (name, way) in LATER else ())
        for name in ("affine 2d", "affine odd 2d", "spline odd 2d", "continuous 2d")
        for way in ("forward", "inverse")
    ],
)
def test_gradients_against_finite_differences(name, direction):
    flow = FLOWS[name]()
    if isinstance(flow, ContinuousFlow):
        flow.steps = 3
    x = fields(flow).requires_grad_(True)
    direction_of_output = fields(flow).roll(1, 0)

    def loss():
        y, density = getattr(flow, direction)(x, torch.zeros(3, dtype=torch.float64))
        return (y * direction_of_output).sum() + density.square().sum()

    inputs = [x, *flow.parameters()]
    gradients = torch.autograd.grad(loss(), inputs)
    # Steps so small that no leaky ReLU crosses its kink.
    rng = torch.Generator().manual_seed(41)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        step = 1e-6 * torch.randn(tensor.shape, dtype=torch.float64, generator=rng)
        values = {}
        with torch.no_grad():
            for multiple in (-2, -1, 1, 2):
                tensor.add_(multiple * step)
                values[multiple] = float(loss())
                tensor.sub_(multiple * step)
        numeric = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / 12
        expected = float((gradient * step).sum())
        assert numeric == pytest.approx(expected, rel=1e-5, abs=1e-13)


@pytest.mark.parametrize("lattice", [[5], [4, 3], [2, 3, 4], [3, 2, 2, 3]])
def test_convolution(lattice):
    """Value against torch where it has the dimension; gradients by finite differences in all."""
    torch.manual_seed(51)
    table = neighbour_table(lattice, 3)
    sites, offsets = table.shape
    layer = LatticeConvolution(2, 3, offsets=offsets).double()
    h = torch.randn(sites, 2, 2, dtype=torch.float64, requires_grad=True)
    out = layer(h, table, (0, sites))
    if len(lattice) < 4:
        d = len(lattice)
        image = h.permute(2, 1, 0).reshape(2, 2, *lattice)
        kernel = layer.weight.transpose(1, 2).reshape(3, 2, *[3] * d)
        padded = functional.pad(image, (1, 1) * d, mode="circular")
        expected = getattr(functional, f"conv{d}d")(padded, kernel, layer.bias)
        assert torch.allclose(out.permute(2, 1, 0).reshape(expected.shape), expected, atol=1e-13)
    rows = (1, sites // 2)
    assert torch.allclose(layer(h, table, rows), out[rows[0] : rows[1]], atol=1e-14)
    for part in ((0, sites), rows):
        for parameter in (h, layer.weight, layer.bias):
            assert torch.autograd.gradcheck(
                lambda _, part=part: layer(h, table, part), (parameter,), fast_mode=True
            )


@pytest.mark.parametrize(
    "build", [AffineCouplingFlow, lambda a: AffineCouplingFlow(a, odd=True), ContinuousFlow]
)
def test_flows_start_as_the_identity(build):
    flow = build(theory([6, 6]))
    x = fields(flow, dtype=torch.float32)
    y, density = flow.forward(x, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(y, x)
    assert float(density.detach().abs().max()) == 0


def test_numbers_of_parameters():
    # 16 networks of 1 -> 8 -> 8 -> 2 channels with 9 offsets and biases.
    flow = AffineCouplingFlow(theory([8, 8]))
    assert sum(p.numel() for p in flow.parameters()) == 16 * (9 * (8 + 64 + 16) + 18)
    for extent, parameters in {6: 5469, 12: 12669, 20: 27869, 32: 62669}.items():
        flow = ContinuousFlow(theory([extent, extent]))
        assert sum(p.numel() for p in flow.parameters()) == parameters


@pytest.mark.parametrize("lattice", [[5], [4, 4], [4, 3], [2, 3, 3]])
def test_velocity_is_the_sum_over_offsets(lattice):
    """The spectral convolution and the divergence against the defining sums."""
    flow = continuous(lattice)
    x = fields(flow, 2)
    time = 0.3
    harmonics = torch.arange(1, 3, dtype=torch.float64) * 2 * math.pi * time
    series = torch.cat([torch.ones(1, dtype=torch.float64), harmonics.cos(), harmonics.sin()])
    kernels = torch.einsum("ofd,d->of", flow.kernels, flow.time_mixing @ series)

    def defined(field):
        features = torch.cat([field[..., None], (field[..., None] * flow.frequencies).sin()], -1)
        features = features @ flow.site_mixing.t()
        orbit, _ = point_group_orbits(lattice)
        total = torch.zeros_like(field)
        offsets = itertools.product(*map(range, lattice))
        for offset, number in zip(offsets, orbit.tolist(), strict=True):
            moved = features.roll(offset, tuple(range(1, 1 + len(lattice))))
            total = total + moved @ kernels[number]
        return total

    velocity, divergence = flow.velocity(x, time)
    assert torch.allclose(velocity, defined(x), atol=1e-12)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda f: defined(f)[0], x[i : i + 1])
        trace = jacobian.reshape(flow.spectrum.multiplicity.sum(), -1).trace()
        assert float((divergence[i] - trace).detach().abs()) < 1e-12


@pytest.mark.parametrize("build", [continuous, conditional])
@pytest.mark.parametrize("lattice, reach", [([6], 1), ([5, 5], 1), ([5, 6], 2), ([3, 3, 4], 0)])
def test_a_reach_cuts_the_kernels(lattice, reach, build):
    """The flow of all offsets whose far kernels vanish; and it does not know the volume."""
    cut, whole = build(lattice, reach=reach), build(lattice)
    near = (whole.spectrum.representatives <= reach).all(1)
    assert int((~near).sum()) > 0
    with torch.no_grad():
        whole.load_state_dict({**cut.state_dict(), "kernels": whole.kernels})
        whole.kernels[..., near, :, :], whole.kernels[..., ~near, :, :] = cut.kernels, 0
    x = fields(cut)
    for found, expected in zip(cut.velocity(x, 0.3), whole.velocity(x, 0.3), strict=True):
        assert torch.allclose(found, expected, atol=1e-13)
    larger = cut.embedded(theory([2 * extent for extent in lattice]), reach)
    periodic = x.repeat(1, *[2] * len(lattice))
    found = larger.velocity(periodic, 0.3)[0]
    expected = cut.velocity(x, 0.3)[0].repeat(1, *[2] * len(lattice))
    assert torch.allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("name", ["continuous 1d", "continuous oblong", "conditional 2d"])
def test_the_force_moves_with_the_field(name):
    """Against the gradient of the pushed density, by the inverse."""
    flow = FLOWS[name]()
    x, zero = fields(flow), torch.zeros(3, dtype=torch.float64)
    model = FlowModel(GaussianPrior(theory(flow.lattice), scale=0.8).to(torch.float64), flow)
    y, log_density, force = flow.forward_with_force(x, model.prior.log_prob(x), x / 0.8**2)
    leaf = y.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(-model.log_prob(leaf).sum(), leaf)
    assert float((force - x / 0.8**2).abs().max()) > 0.1
    assert float((force - expected).abs().max()) < 1e-4
    plain, density = flow.forward(x, zero)
    assert torch.equal(y, plain) and not force.requires_grad
    assert torch.allclose(log_density, density + model.prior.log_prob(x), atol=1e-12)


def test_orbits():
    orbit, representatives = point_group_orbits([4, 4, 3])
    assert representatives[0].tolist() == [0, 0, 0]
    table = orbit.reshape(4, 4, 3)
    assert torch.equal(table, table.transpose(0, 1))
    for axis in range(3):
        assert torch.equal(table, table.flip(axis).roll(1, axis))
    # 3 * 4 / 2 folded pairs of the square axes times 2 folded values of the third.
    assert LatticeSpectrum([4, 4, 3]).orbits == 12
    assert int(LatticeSpectrum([4, 4, 3]).multiplicity.sum()) == 48


def test_order_of_the_integrators():
    reference = continuous([4, 4], integrator="dopri8", tolerance=1e-12)
    x, zero = fields(reference), torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        y, density = reference.forward(x, zero)
        for integrator, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
            flow = continuous([4, 4], integrator=integrator)
            errors = []
            for steps in (64, 128):
                flow.steps = steps
                z, other = flow.forward(x, zero)
                errors.append((float((z - y).norm()), float((other - density).norm())))
            for coarse, fine in zip(*errors, strict=True):
                assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4), integrator


@pytest.mark.slow
def test_adaptive_gradients_agree_with_small_steps():
    keys = {"integrator": "dopri5", "tolerance": 1e-8}
    gradients = []
    for flow in (
        continuous([3, 3], steps=100),
        continuous([3, 3], **keys),
        continuous([3, 3], **keys, adjoint=True),
    ):
        x = fields(flow).requires_grad_(True)
        y, density = flow.forward(x, torch.zeros(3, dtype=torch.float64))
        loss = y.pow(3).sum() + density.sum()
        gradients.append(torch.autograd.grad(loss, [x, *flow.parameters()]))
    for exact, *others in zip(*gradients, strict=True):
        for other in others:
            assert float((exact - other).abs().max() / exact.abs().max()) < 1e-5


def test_density_error_is_that_of_the_discrete_map(monkeypatch):
    """With many probes the estimate converges, up to the error of the finer steps (1/16)."""
    monkeypatch.setattr("flowmc.flows.scalar.continuous._PROBES", 60)
    flow = continuous([3], steps=8)
    x = fields(flow, 4)
    with torch.no_grad():
        estimate = flow.density_error(x)
    for field, one in zip(x.split(1), estimate.tolist(), strict=True):
        assert one == pytest.approx(check_log_det(flow, field, Real()), rel=0.25)
    assert flow.steps == 8


def test_chains_do_not_see_each_other():
    """Also across the blocks in which the chains are treated."""
    flow = continuous([16, 16], steps=4)
    x = fields(flow, 40).requires_grad_(True)
    zero = torch.zeros(40, dtype=torch.float64)
    y, density = flow.forward(x, zero)
    (gradient,) = torch.autograd.grad(y.pow(3).sum() + density.sum(), x)
    single = x[37:38].detach().requires_grad_(True)
    z, other = flow.forward(single, zero[:1])
    (alone,) = torch.autograd.grad(z.pow(3).sum() + other.sum(), single)
    assert torch.allclose(z, y[37:38], atol=1e-13)
    assert torch.allclose(other, density[37:38], atol=1e-11)
    assert torch.allclose(alone, gradient[37:38], atol=1e-12)


def test_embedding_keeps_the_kernel():
    """A field that repeats the small lattice moves as on the small one, if kernels are short."""
    small = continuous([4, 4], steps=5)
    large = small.embedded(theory([8, 8]))
    x = fields(small)
    zero = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        y, density = small.forward(x, zero)
        z, other = large.forward(x.repeat(1, 2, 2), zero)
    assert torch.allclose(z, y.repeat(1, 2, 2), atol=1e-13)
    assert torch.allclose(other, 4 * density, atol=1e-12)
    for lattice in ([2, 2], [8, 6], [8, 8, 8]):
        with pytest.raises(ValueError, match="cannot be embedded"):
            small.embedded(theory(lattice))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AffineCouplingFlow(Wilson("U(1)", [4, 4], beta=1.0)), "scalar fields"),
        (lambda: AffineCouplingFlow(theory([4, 5])), "even extents"),
        (lambda: AffineCouplingFlow(theory([4, 4]), kernel_size=2), "odd size"),
        (lambda: AffineCouplingFlow(theory([4, 4]), layers=0), "at least one layer"),
        (lambda: AffineCouplingFlow(theory([4, 4]), hidden=[]), "one hidden channel"),
        (lambda: affine([4, 4]).forward(torch.zeros(2, 4, 6), torch.zeros(2)), "does not fit"),
        (lambda: SplineCouplingFlow(Wilson("U(1)", [4, 4], beta=1.0)), "scalar fields"),
        (lambda: SplineCouplingFlow(theory([4, 4]), bins=0), "bins >= 1"),
        (lambda: SplineCouplingFlow(theory([4, 4]), bound=0.0), "bound > 0"),
        (lambda: ContinuousFlow(Wilson("U(1)", [4, 4], beta=1.0)), "scalar fields"),
        (lambda: ContinuousFlow(theory([4]), integrator="rk5"), "unknown integrator 'rk5'"),
        (lambda: ContinuousFlow(theory([4]), tolerance=1e-3), "fixed steps"),
        (lambda: ContinuousFlow(theory([4]), adjoint=True), "fixed steps"),
        (lambda: ContinuousFlow(theory([4]), integrator="dopri5", steps=9), "chooses its steps"),
        (lambda: ContinuousFlow(theory([4]), steps=0), "steps >= 1"),
        (lambda: ContinuousFlow(theory([4]), frequencies=0), "needs frequencies"),
        (lambda: continuous([4]).forward(torch.zeros(2, 5), torch.zeros(2)), "does not fit"),
    ],
)
def test_messages(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_chain_that_is_not_finite_leaves_the_others_alone(adjoint):
    flow = continuous([3, 3], integrator="dopri5", tolerance=1e-6, adjoint=adjoint)
    x, zero = torch.randn(3, 3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    x[1, 0, 0] = torch.nan
    with torch.no_grad():
        y, density = flow.forward(x, zero)
        alone, alone_density = flow.forward(x[[0, 2]], zero[:2])
    assert torch.isnan(y[1]).all() and torch.isnan(density[1])
    torch.testing.assert_close(y[[0, 2]], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(density[[0, 2]], alone_density, rtol=0, atol=1e-4)
