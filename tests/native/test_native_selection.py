"""Which cases native kernels take, and that layout, batch and threads leave no trace."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from flowmc.actions import (
    Action,
    AnisotropicWilson,
    DefectWilson,
    Phi4,
    SumAction,
    Wilson,
    check_force,
)
from flowmc.kernels.integrators import trajectory
from flowmc.native import (
    compiled,
    find_action,
    find_force,
    find_trajectory,
    link_fields,
    scalar,
    schedule,
    torch_only,
    why_in_torch,
)
from flowmc.splitting import INTEGRATORS
from flowmc.terms import Term

LEAPFROG = INTEGRATORS["leapfrog"]
ACTIONS = [
    Phi4((4, 6), m2=-0.5, lam=0.7),
    Wilson("U(1)", (4, 6), beta=2.0),
    Wilson("SU(2)", (4, 3, 2), beta=2.0),
    Wilson("SU(3)", (4, 4, 2), beta=5.0),
    DefectWilson("SU(3)", (3, 4, 6), beta=5.0, defect=0.3, defect_extents=(2, 3)),
]
NAMES = ["phi4", "U(1)", "SU(2)", "SU(3)", "defect"]


def draw(action, chains, dtype=torch.float64):
    rng = torch.Generator().manual_seed(3)
    field = action.hot(chains, rng, dtype)
    momentum = action.group.draw_algebra(field, rng)
    step_size = 0.03 + 0.02 * torch.rand(chains, dtype=torch.float64, generator=rng)
    return field, momentum, step_size


@pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
@pytest.mark.parametrize("chains", [1, 3, 37])
def test_independent_of_threads(action, chains, monkeypatch):
    monkeypatch.setattr(schedule, "_SHORTEST_SLICE", 1.0)
    field, momentum, step_size = draw(action, chains)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        run = find_trajectory(action, field, LEAPFROG)
        results.append(
            [
                *run(field, momentum, step_size, 5),
                find_force(action, field)(field),
                find_action(action, field)(field),
            ]
        )
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
def test_a_chain_does_not_feel_its_batch(action, dtype):
    field, momentum, step_size = draw(action, 19, dtype)
    run = find_trajectory(action, field, LEAPFROG)
    together = run(field, momentum, step_size, 5)
    for part in (slice(4, 5), slice(7, 10)):
        alone = run(field[part], momentum[part], step_size[part], 5)
        assert torch.equal(alone[0], together[0][part])
        assert torch.equal(alone[1], together[1][part])


@pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
def test_any_strides(action):
    field, momentum, step_size = draw(action, 3)
    run = find_trajectory(action, field, LEAPFROG)
    expected = run(field, momentum, step_size, 2)
    strided = torch.stack([field, field], -1)[..., 0]
    backwards = momentum.flip(0).contiguous().flip(0).transpose(1, 2).contiguous().transpose(1, 2)
    before = strided.clone()
    result = run(strided, backwards, step_size[:, None].expand(-1, 2)[:, 0], 2)
    assert all(map(torch.equal, result, expected))
    assert torch.equal(strided, before)
    if field.is_complex():
        result = run(field.conj().resolve_conj().conj(), momentum, step_size, 2)
        assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("module,action", [(scalar, ACTIONS[0]), (link_fields, ACTIONS[3])])
@pytest.mark.parametrize("chains", [1, 16])
def test_a_wrong_wrap_is_caught(module, action, chains, monkeypatch):
    field, _, _ = draw(action, chains)
    assert (find_force(action, field)(field) - action.force_in_torch(field)).abs().max() < 1e-12
    right = module.layout_for

    def wrong(*arguments):
        layout = right(*arguments)
        neighbours = layout.neighbours.copy()
        neighbours[1] = neighbours[0]
        return dataclasses.replace(layout, neighbours=neighbours)

    monkeypatch.setattr(module, "layout_for", wrong)
    assert (find_force(action, field)(field) - action.force_in_torch(field)).abs().max() > 1e-3


def test_what_is_left_to_torch(monkeypatch):
    action = ACTIONS[0]
    field, _, _ = draw(action, 2)
    assert find_force(action, field)
    with torch_only():
        assert find_force(action, field) is None
    assert find_force(action, field)
    assert find_trajectory(action, field, INTEGRATORS["force_gradient"]) is None
    assert find_force(action, field.half()) is None
    assert find_force(action, field[:, :3]) is None
    assert find_force(action, field[:0]) is None
    assert find_force(action, field.clone().requires_grad_()) is None
    assert find_force(action, field.to("meta")) is None
    assert find_force(Wilson("SU(4)", (2, 2), beta=1.0), torch.zeros(1, 2, 2, 2, 4, 4)) is None
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    assert find_force(action, field) is None
    assert find_action(action, field) is None
    assert find_trajectory(action, field, LEAPFROG) is None


COUPLINGS = {"m2": -0.5, "lam": 0.7}


class Same(Phi4):
    """A subclass that changes nothing."""


class Heavier(Phi4):
    """Changes what the terms are made of."""

    def __init__(self, lattice, **couplings):
        super().__init__(lattice, **couplings)
        self.a += 1.0


class Striped(Wilson):
    """Weights of its own, which both engines read."""

    def plaquette_weights(self):
        x = torch.arange(self.lattice[0], dtype=torch.float64)
        weights = (1 + 0.5 * torch.cos(x)).reshape(-1, *[1] * (self.dimensions - 1))
        planes = self.dimensions * (self.dimensions - 1) // 2
        return weights.expand(planes, *self.lattice).contiguous()


COMPILED = {
    "subclass": Same((4, 6), **COUPLINGS),
    "other terms": Heavier((4, 6), **COUPLINGS),
    "sum": ACTIONS[0] + Heavier((4, 6), **COUPLINGS),
    "multiple": 0.3 * ACTIONS[0],
    "anisotropic": AnisotropicWilson("SU(3)", (3, 2, 4), beta=5.0, anisotropy=1.7),
    "weights": Striped("SU(2)", (4, 3, 2), beta=2.0),
    "sum of weights": 0.5 * (ACTIONS[1] + 0.3 * Striped("U(1)", (4, 6), beta=2.0)),
    "multiple of a defect": -0.5 * ACTIONS[4],
}


@pytest.mark.parametrize("name", COMPILED)
def test_terms_are_compiled_whoever_declares_them(name, monkeypatch):
    action = COMPILED[name]
    assert why_in_torch(action) is None
    field, momentum, step_size = draw(action, 3)
    value, force = action(field), action.force(field)
    ours = find_trajectory(action, field, LEAPFROG)(field, momentum, step_size, 4)
    rng = torch.Generator().manual_seed(4)
    assert check_force(action, field, rng) < 1e-8
    with torch_only():
        assert torch.allclose(action(field), value, rtol=1e-12, atol=1e-12)
        assert (action.force(field) - force).abs().max() < 1e-12
        theirs = trajectory(action, action.group, field, momentum, LEAPFROG, step_size, 4)
        # Of a theory with half of the coupling it is another one.
        assert not torch.allclose((0.5 * action)(field), value, rtol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-12


class Tilted(Phi4):
    def __call__(self, field):
        return super().__call__(field) + field.flatten(1).sum(1)


class TiltedAgain(Tilted):
    """Inherits the other density."""


class Pushed(Phi4):
    def force(self, field):
        return super().force(field) + 1.0


def test_formulas_of_ones_own_are_never_compiled():
    field, _, _ = draw(ACTIONS[0], 3)
    plain, force = ACTIONS[0](field), ACTIONS[0].force(field)
    for kind in (Tilted, TiltedAgain):
        action = kind((4, 6), **COUPLINGS)
        for whole in (action, 1.0 * action, SumAction([action])):
            assert (
                find_action(whole, field) is None
                and find_trajectory(whole, field, LEAPFROG) is None
            )
            assert torch.allclose(whole(field), plain + field.flatten(1).sum(1), rtol=1e-12)
        assert "formulas of its own" in why_in_torch(action)
    pushed = Pushed((4, 6), **COUPLINGS)
    assert find_trajectory(pushed, field, LEAPFROG) is None
    assert torch.allclose(pushed.force(field), force + 1.0)
    # Also of one object only.
    one = Phi4((4, 6), **COUPLINGS)
    one.force = lambda field: torch.zeros_like(field)
    assert find_trajectory(one, field, LEAPFROG) is None


class Kick(Term):
    """A term of one's own: torch's formulas alone."""

    def value(self, field):
        return field.flatten(1).sum(1).double()

    def force(self, field):
        return torch.ones_like(field)

    def times(self, factor):
        raise NotImplementedError

    def plus(self, other):
        return None


class Kicked(Phi4):
    def as_data(self):
        return (*super().as_data(), Kick())


class OfSpins(Wilson):
    """Terms of links do not fit spins."""

    place = "sites"


def test_terms_that_no_kernel_reads_are_left_to_torch():
    action = Kicked((4, 6), **COUPLINGS)
    field, _, _ = draw(action, 3)
    assert why_in_torch(action) == (
        "there are no kernels for Hopping and Kick of R on the sites of a 4x6 lattice"
    )
    assert find_action(action, field) is None
    assert torch.allclose(action(field), ACTIONS[0](field) + field.flatten(1).sum(1), rtol=1e-12)
    assert check_force(action, field, torch.Generator().manual_seed(4)) < 1e-8
    spins = OfSpins("SU(3)", (4, 6), beta=1.0)
    assert find_action(spins, spins.cold(1)) is None and "no kernels" in why_in_torch(spins)


def test_an_action_without_formulas_is_refused():
    class Nothing(Action):
        pass

    with pytest.raises(TypeError, match="Nothing says neither what it is"):
        Nothing()


@pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
def test_gradients_pass_through_an_action(action):
    field, _, _ = draw(action, 2)
    leaf = field.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(action(leaf).sum(), leaf)
    expected = action.group.gradient_from_euclidean(field, gradient)
    assert (action.force(field) - expected).abs().max() < 1e-11
    if not field.is_complex():
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(field, torch.ones_like(field))
            slope = torch.autograd.forward_ad.unpack_dual(action(dual)).tangent
        assert torch.allclose(slope, gradient.flatten(1).sum(1), atol=1e-11)


def test_wrong_input_is_named():
    action = ACTIONS[0]
    field, momentum, step_size = draw(action, 3)
    run = find_trajectory(action, field, LEAPFROG)
    with pytest.raises(ValueError, match="does not fit the phi4 action"):
        run(field[:, :2], momentum, step_size, 1)
    with pytest.raises(ValueError, match="one step size per chain"):
        run(field, momentum, step_size[:2], 1)
    with pytest.raises(ValueError, match="momenta of the same shape"):
        run(field, momentum[:2], step_size, 1)
    with pytest.raises(ValueError, match="of one precision on the CPU"):
        run(field, momentum.float(), step_size, 1)


def test_import_is_cheap():
    code = "import sys, flowmc.native; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_a_changed_formula_is_compiled_anew(monkeypatch):
    def kernel(x):
        return x + 1

    compiled.compiled(kernel)(1)
    again = compiled.compiled(kernel)
    again(1)
    assert sum(again.stats.cache_hits.values()) == 1
    monkeypatch.setattr(compiled, "_sources", lambda: "another version")
    changed = compiled.compiled(kernel)
    changed(1)
    assert sum(changed.stats.cache_hits.values()) == 0


def test_a_cache_of_arguments_whose_class_has_moved(monkeypatch):
    def kernel(x):
        return x + 2

    first = compiled.compiled(kernel)
    assert first(1) == 3
    read = type(first._cache._cache_file)._load_index
    removed = []

    def moved(file):
        if not removed:
            removed.append(file._index_path)
            raise AttributeError("Can't get attribute 'Arguments'")
        return read(file)

    monkeypatch.setattr(type(first._cache._cache_file), "_load_index", moved)
    again = compiled.compiled(kernel)
    assert removed and not os.path.exists(removed[0])
    assert again(1) == 3 and os.path.exists(removed[0])


def test_nowhere_to_cache(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", refuse)
    assert compiled.compiled(lambda x: x + 1)(1) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own_threads(monkeypatch):
    monkeypatch.setattr(schedule, "_SHORTEST_SLICE", 1.0)
    torch.set_num_threads(2)
    action = ACTIONS[0]
    field, _, _ = draw(action, 2)
    expected = find_force(action, field)(field)
    child = os.fork()
    if child == 0:
        same = torch.equal(find_force(action, field)(field), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
