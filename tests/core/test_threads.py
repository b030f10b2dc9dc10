"""The same bits for any number of threads, whatever is computed on a field.

Ranks of a run share the cores of a node, so that the number of threads changes with the number of
ranks.  Fields are large enough for torch to share the work (more than 32768 elements), of sizes
that no number of threads divides.
"""

import functools
import itertools

import pytest
import torch

from flowmc.actions import DefectWilson, FreeScalar, Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    Block,
    BlockCouplingFlow,
    BlockGaussian,
    ContinuousFlow,
    DefectFlow,
    FlowModel,
    FreeFieldPrior,
    GaussianPrior,
    HaarPrior,
    LocalFlowModel,
    PlaquetteFlow,
    ResidualFlow,
)
from flowmc.groups import SUN, complex_product
from flowmc.kernels import HMC, Independence, LocalFlow
from flowmc.lattice import sum_over_rows, sum_over_sites
from flowmc.native import find_action, find_force
from flowmc.random import stream
from flowmc.registry import BUILTIN, ConfigError, resolve

THREADS = (1, 2, 3)

ACTIONS = {
    "phi4": Phi4([182, 186], lam=0.7, m2=-0.3),
    "free": FreeScalar([33, 31, 35], m2=0.5),
    "u1": Wilson("U(1)", [182, 181], beta=2.0),
    "u1_defect": DefectWilson("U(1)", [182, 181], beta=2.0, defect=0.3),
    "su2": Wilson("SU(2)", [182, 181], beta=2.0),
    "su3": Wilson("SU(3)", [181, 182], beta=5.7),
    "su4": Wilson("SU(4)", [50, 42], beta=8.0),
}


@pytest.fixture(autouse=True)
def threads_are_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_of(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors_of(entry)


def differ(compute, threads=THREADS):
    """Return the numbers of threads for which ``compute()`` has other bits than with one."""
    results = []
    for count in threads:
        torch.set_num_threads(count)
        with torch.no_grad():
            value = compute()
        parts = [t.detach().contiguous().numpy().tobytes() for t in tensors_of(value)]
        assert parts
        results.append(parts)
    return [count for count, parts in zip(threads, results, strict=True) if parts != results[0]]


def warm(action, chains, dtype=torch.float64):
    """Return a field between order and disorder."""
    group, rng = action.group, stream(5, chains, "warm")
    field = action.cold(chains, dtype)
    return group.move(field, 0.4 * group.draw_algebra(field, rng))


def test_a_plain_sum_depends_on_the_threads():
    """The tests below can fail: what they are about happens."""
    values = torch.randn(1, 100_003, dtype=torch.float64, generator=stream(1, 0, "values"))
    assert differ(lambda: values.sum(1)) and not differ(lambda: sum_over_sites(values))
    # A single pair of factors happens to agree once in ten times.
    rng = stream(1, 0, "factors")
    left, right = torch.randn(2, 12, 40003, dtype=torch.complex128, generator=rng)
    pairs = list(zip(left, right, strict=True))
    assert differ(lambda: [a * b for a, b in pairs])
    assert not differ(lambda: [complex_product(a, b) for a, b in pairs])


LARGE = 9 * 4096**2 // 8 + 4097


@pytest.mark.parametrize(
    ("count", "chains"),
    [
        pytest.param(c, n, marks=pytest.mark.slow if c == LARGE and n != 2 else ())
        for c, n in itertools.product([1, 5, 4096, 4097, 40000, LARGE], [1, 2, 3])
    ],
)
def test_sums_are_the_same_for_any_number_of_threads_and_chains(count, chains):
    values = torch.randn(chains, count, dtype=torch.float64, generator=stream(2, 0, "values"))
    total = sum_over_sites(values)
    assert total.shape == (chains,)
    sums = [float(row.astype("longdouble").sum()) for row in values.numpy()]
    exact = torch.tensor(sums, dtype=torch.float64)
    bound = 1e-15 * values.abs().sum(1)
    assert bool(((total - exact).abs() <= bound).all())
    torch.set_num_threads(3)
    for chain in range(chains):
        assert torch.equal(sum_over_sites(values[chain : chain + 1])[0], total[chain])
    strided = torch.stack([values, values], 2)[..., 0]
    assert torch.equal(sum_over_sites(strided), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_sums_of_other_types(dtype):
    values = torch.randn(2, 5, 9001, dtype=dtype, generator=stream(3, 0, "values"))
    total = sum_over_sites(values)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert total.dtype == wide
    torch.testing.assert_close(total, values.to(wide).sum((1, 2)), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("chains", [1, 2, 3, 9])
def test_sums_over_rows(chains):
    values = torch.randn(40001, chains, dtype=torch.float32, generator=stream(4, 0, "values"))
    assert not differ(lambda: sum_over_rows(values), range(1, 8))
    torch.testing.assert_close(sum_over_rows(values), values.double().sum(0))


def test_gradients_pass_through_sums():
    values = torch.randn(2, 9000, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        (sum_over_sites(values) * torch.tensor([1.0, 2.0])).sum(), values
    )
    assert torch.equal(gradient, torch.tensor([[1.0], [2.0]]).double().expand(2, 9000))


def test_projection_is_right():
    """The phase without arctan2: all quadrants, and determinants far from one."""
    for n in (2, 3, 4):
        group = SUN(n)
        start = group.haar((64,), torch.complex128, stream(6, n, "haar"))
        angle = torch.linspace(-3.1, 3.1, 64, dtype=torch.float64)
        turned = start * torch.polar(torch.ones_like(angle), angle / n)[:, None, None]
        torch.testing.assert_close(group.project(turned), start, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "chains"),
    [
        # One number of chains each; all pairs in the slow tests.
        pytest.param(name, chains, marks=() if chains == 1 + 2 * (n % 2) else pytest.mark.slow)
        for n, name in enumerate(ACTIONS)
        for chains in (1, 3)
    ],
)
def test_actions_forces_and_groups(name, chains):
    action = ACTIONS[name]
    group, field = action.group, warm(action, chains)
    momentum = group.draw_algebra(field, stream(7, 0, "momentum"))

    def compute():
        values = [
            action.in_torch(field),
            action.force_in_torch(field),
            group.kinetic_energy(momentum),
        ]
        values += [group.project(group.move(field, momentum)), group.distance(field, 0.5 * field)]
        values += [group.draw_algebra(field, stream(7, 0, "momentum"))]
        for find in (find_action, find_force):
            compiled = find(action, field)
            values += [compiled(field)] if compiled is not None else []
        return values

    assert not differ(compute)


WAYS = [(torch.float64, "1"), (torch.float32, "1"), (torch.float32, "0")]


@pytest.mark.parametrize(
    ("name", "dtype", "native"),
    [
        # Two of three ways each, every way for scalars, angles and matrices.
        pytest.param(name, *way, marks=pytest.mark.slow if w == n % 3 else ())
        for n, name in enumerate(ACTIONS)
        for w, way in enumerate(WAYS)
    ],
)
def test_hmc(name, dtype, native, monkeypatch):
    monkeypatch.setenv("FLOWMC_NATIVE", native)
    action = ACTIONS[name]
    kernel = HMC(action, trajectory=0.05, steps=1, check_reversibility=1.0)
    state = kernel.init(warm(action, 1, dtype))

    def compute():
        after, info = kernel.step(state, stream(8, 0, "update"))
        return after.field, after.action, dict(info.values)

    assert not differ(compute)


@pytest.mark.parametrize("name", ACTIONS)
def test_hot_starts_and_priors(name):
    action = ACTIONS[name]
    priors = [HaarPrior(action)] if action.is_gauge else []
    if not action.is_gauge:
        priors = [GaussianPrior(action, scale=0.7), FreeFieldPrior(action, m2=0.6)]

    def compute():
        hot = action.hot(1, stream(9, 0, "hot"))
        return hot, [prior.sample(1, stream(9, 0, "prior")) for prior in priors]

    assert not differ(compute)


def scrambled(flow, scale):
    rng = stream(10, 0, "weights")
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=rng)
            parameter.add_((scale * noise).to(parameter.dtype))
    return flow


PHI2 = Phi4([182, 186], lam=0.7, m2=-0.3)
PHI_SMALL = Phi4([32, 30], lam=0.7, m2=-0.3)
PHI3 = Phi4([6, 7, 5], lam=0.7, m2=-0.3)
U1_WIDE = Wilson("U(1)", [260, 256], beta=2.0)
SU2 = Wilson("SU(2)", [4, 12, 12], beta=2.0)
SU3 = Wilson("SU(3)", [4, 4, 4, 8], beta=5.7)

FLOWS = {
    "coupling": (PHI2, lambda a: AffineCouplingFlow(a, layers=2, hidden=[5, 4]), 0.02),
    "odd coupling": (PHI2, lambda a: AffineCouplingFlow(a, layers=2, hidden=[5], odd=True), 0.02),
    "continuous": (PHI_SMALL, lambda a: ContinuousFlow(a, steps=2), 1e-4),
    "continuous 3d": (PHI3, lambda a: ContinuousFlow(a, steps=2), 1e-4),
    "adaptive": (PHI3, lambda a: ContinuousFlow(a, integrator="dopri5", tolerance=0.1), 1e-4),
    "residual u1": (U1_WIDE, lambda a: ResidualFlow(a, initial_coefficient=0.1), 0.02),
    "residual u1 network": (
        Wilson("U(1)", [64, 64], beta=2.0),
        lambda a: ResidualFlow(a, loops=["plaquette", "rectangle"], coefficients="network"),
        0.02,
    ),
    "plaquette": (Wilson("U(1)", [182, 181], beta=2.0), PlaquetteFlow, 0.1),
    "defect u1": (ACTIONS["u1_defect"], lambda a: DefectFlow(a, width=1), 0.1),
    "defect su3": (
        DefectWilson("SU(3)", [4, 4, 4, 6], beta=5.7, defect=0.3),
        lambda a: DefectFlow(a, width=1),
        0.02,
    ),
    "residual su2": (SU2, lambda a: ResidualFlow(a, coefficients="network"), 0.02),
    "residual su3": (SU3, lambda a: ResidualFlow(a, initial_coefficient=0.02), 0.02),
}


@pytest.mark.parametrize(
    ("dtype", "chains"),
    [
        (torch.float64, 1),
        pytest.param(torch.float64, 3, marks=pytest.mark.slow),
        pytest.param(torch.float32, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", FLOWS)
def test_flows(name, dtype, chains):
    action, make, scale = FLOWS[name]
    torch.manual_seed(1)
    # Links keep their own precision, residual flows have weights in double precision.
    flow = make(action) if action.is_gauge else make(action).to(dtype)
    scrambled(flow, scale)
    field = warm(action, chains, dtype)
    zero = torch.zeros(chains, dtype=torch.float64)

    def compute():
        y, log_density = flow.forward(field, zero)
        return y, log_density, flow.inverse(y, log_density)

    assert bool((flow.forward(field, zero)[0] != field).any())
    assert not differ(compute)


def test_independence():
    model = FlowModel(GaussianPrior(PHI2), AffineCouplingFlow(PHI2, layers=2)).to(torch.float64)
    scrambled(model.flow, 0.01)
    kernel = Independence(PHI2, model, proposals=2)
    state = kernel.init(warm(PHI2, 1))

    def compute():
        after, info = kernel.step(state, stream(11, 0, "update"))
        return after.field, dict(after.log_q), dict(info.values)

    assert not differ(compute)


@pytest.mark.parametrize("extents", [[5, 4], [8, 9]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_local_flow(dtype, extents):
    action = Phi4([61, 64], lam=0.7, m2=-0.3)
    block = Block.of(action, extents)
    flow = BlockCouplingFlow(block, layers=2, hidden=[5, 4])
    model = scrambled(LocalFlowModel(block, BlockGaussian(action, block), flow).to(dtype), 0.02)
    kernel = LocalFlow(action, model)
    state = kernel.init(warm(action, 1, dtype))

    def compute():
        after, info = kernel.step(state, stream(12, 0, "update"))
        return after.field, dict(info.values)

    assert not differ(compute)


MEASURED = {
    1: [*(ACTIONS[name] for name in ("phi4", "u1")), Wilson("SU(2)", [14, 13, 14, 13], beta=5.7)],
    3: [ACTIONS["free"], ACTIONS["u1_defect"], Wilson("SU(3)", [6, 6, 7, 6], beta=2.0)],
}
# Parameters without a default.
OPTIONS = {"gradient_flow": {"flow_time": 0.02}}


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("name", BUILTIN["observables"])
def test_observables(name, chains):
    observable = functools.partial(resolve("observables", name), **OPTIONS.get(name, {}))
    measured = 0
    for action in MEASURED[chains]:
        field = warm(action, chains)
        try:
            observable(field, action)
        except ConfigError:
            continue  # not an observable of this theory
        measured += 1
        assert not differ(lambda field=field, action=action: observable(field, action))
    assert measured
