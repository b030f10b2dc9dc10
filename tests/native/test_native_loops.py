"""Loops as words: torch against links multiplied along them, compiled code against torch."""

import dataclasses

import numpy as np
import pytest
import torch

from flowmc.actions import Action, Wilson, check_force
from flowmc.kernels.integrators import trajectory
from flowmc.lattice import sum_over_sites
from flowmc.loop_plan import plan_for
from flowmc.loops import SHAPES, images, loop_holonomy
from flowmc.native import (
    find_action,
    find_force,
    find_trajectory,
    link_fields,
    loop_program,
    schedule,
    torch_only,
    why_in_torch,
)
from flowmc.splitting import INTEGRATORS
from flowmc.terms import Loops, LoopWeights, Plaquettes

GROUPS = ["U(1)", "SU(2)", "SU(3)"]
# (lattice, chains): lanes filled by chains, by cuts, by both; extents of 2, where longer loops run
# around the lattice, and odd ones.
CASES = [((2, 3), 3), ((6, 4), 1), ((2, 5, 4), 1), ((3, 2, 2), 9), ((2, 2, 3, 2), 1)]
# Once around a site in both ways, a chain of three plaquettes, and one that crosses itself.
WORDS = {
    "eight": (1, 2, -1, -2, -1, -2, 1, 2),
    "chain": (1, 2, 1, 2, 1, 2, -1, -1, -1, -2, -2, -2),
    "twice": (1, 2, -1, -2, 1, 2, -1, -2),
    "backwards": (-2, -1, -1, 2, 1, 1),
}
LEAPFROG = INTEGRATORS["leapfrog"]


class Improved(Wilson):
    """Plaquettes and other loops, with any weights."""

    def __init__(self, group, lattice, *, beta, words, weights=None, plaquettes=True):
        super().__init__(group, lattice, beta=beta)
        numbers = tuple(0.2 + 0.1 * n for n in range(len(words)))
        self.loops = Loops(self.group, words, numbers, weights)
        self.plaquettes = plaquettes

    def as_data(self):
        plaquettes = (Plaquettes(self.group, self.beta),) if self.plaquettes else ()
        return (*plaquettes, self.loops)


def weights_of(words, lattice, seed=5):
    rng = torch.Generator().manual_seed(seed)
    return LoopWeights(torch.rand(len(words), *lattice, dtype=torch.float64, generator=rng))


def draw(action, chains, dtype=torch.float64):
    rng = torch.Generator().manual_seed(3)
    field = action.hot(chains, rng, dtype)
    momentum = action.group.draw_algebra(field, rng)
    step_size = 0.02 + 0.02 * torch.rand(chains, dtype=torch.float64, generator=rng)
    return field, momentum, step_size


def word_by_word(term, field):
    """The definition, link by link."""
    total = torch.zeros(field.shape[0], dtype=torch.float64)
    for place, (word, number) in enumerate(zip(term.words, term.by_word, strict=True)):
        product = loop_holonomy(field, word, term.group)
        if field.is_complex():
            trace = torch.diagonal(product, dim1=-2, dim2=-1).sum(-1).real / term.group.n
        else:
            trace = torch.cos(product)
        weight = 1.0 if term.weights is None else term.weights.table[place]
        total = total - number * sum_over_sites(weight * trace)
    return total


def words_of(shape, dimensions):
    if shape == "all":
        return tuple(word for one in SHAPES for word in words_of(one, dimensions))
    return (WORDS[shape],) if shape in WORDS else images(SHAPES[shape], dimensions)


@pytest.mark.parametrize("shape", [*SHAPES, *WORDS, "all"])
@pytest.mark.parametrize("group", [*GROUPS, "SU(4)"])
def test_a_term_is_the_sum_over_its_words(group, shape):
    for lattice in ((3, 2), (2, 3, 2)) if shape != "all" else ((2, 3, 2, 2),):
        words = words_of(shape, len(lattice))
        if not words or (group == "SU(4)" and shape == "all"):
            continue
        for weights in (None, weights_of(words, lattice)):
            action = Improved(
                group, lattice, beta=1.0, words=words, weights=weights, plaquettes=False
            )
            field, _, _ = draw(action, 2)
            leaf = field.clone().requires_grad_()
            value = word_by_word(action.loops, leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            force = action.group.gradient_from_euclidean(field, gradient)
            assert torch.allclose(action.loops.value(field), value.detach(), rtol=1e-12, atol=1e-11)
            assert (action.loops.force(field) - force).abs().max() < 1e-12
            # Another weight is another term.
            assert not torch.allclose(
                action.loops.times(1.1).value(field), value.detach(), rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("lattice,chains", CASES)
@pytest.mark.parametrize("shape", ["rectangle", "chair", "backwards", "all"])
def test_agrees_with_torch(group, lattice, chains, shape):
    words = words_of(shape, len(lattice))
    if not words:
        pytest.skip("a bent loop needs three directions")
    for weights in (None, weights_of(words, lattice)):
        action = Improved(group, lattice, beta=2.3, words=words, weights=weights)
        assert why_in_torch(action) is None
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 5e-5)):
            # Single precision is another compilation, of the same formulas.
            if dtype == torch.float32 and (group, shape) != ("SU(3)", "rectangle"):
                continue
            field, momentum, step_size = draw(action, chains, dtype)
            ours = find_trajectory(action, field, LEAPFROG)(field, momentum, step_size, 2)
            with torch_only():
                theirs = trajectory(action, action.group, field, momentum, LEAPFROG, step_size, 2)
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == field.dtype and a.shape == b.shape
                assert (a - b).abs().max() < tolerance * b.abs().max()
            force = action.force_in_torch(field)
            assert (action.force(field) - force).abs().max() < tolerance * force.abs().max()
            value = action(field)
            assert value.dtype == torch.float64 and value.shape == (chains,)
            scale = 10 * len(words) * action.volume
            assert (value - action.in_torch(field)).abs().max() < tolerance * scale


@pytest.mark.parametrize("group", GROUPS)
def test_force_is_the_derivative_of_the_action(group):
    lattice = (2, 3, 4)
    words = words_of("all", 3)
    action = Improved(group, lattice, beta=1.0, words=words, weights=weights_of(words, lattice))
    rng = torch.Generator().manual_seed(4)
    field = action.hot(2, rng)
    assert find_force(action, field) and find_action(action, field)
    assert check_force(action, field, rng) < 1e-8
    with torch_only():
        assert check_force(action, field, rng) < 1e-8


def test_plaquettes_as_words_are_the_plaquette_action():
    lattice = (4, 3, 2)
    for group in GROUPS:
        plain = Wilson(group, lattice, beta=2.0)
        term = Loops(plain.group, images(SHAPES["plaquette"], 3), 2.0)
        field, _, _ = draw(plain, 2)
        assert torch.allclose(term.value(field), plain(field), rtol=1e-13)
        assert (term.force(field) - plain.force(field)).abs().max() < 1e-13


class Weighted(Improved):
    """Changes nothing."""


def sums():
    lattice, words = (4, 2, 3), images(SHAPES["rectangle"], 3)
    one = Improved("SU(3)", lattice, beta=2.0, words=words)
    bent = Improved("SU(3)", lattice, beta=1.0, words=images(SHAPES["chair"], 3))
    heavy = Weighted("SU(3)", lattice, beta=1.0, words=words, weights=weights_of(words, lattice))
    return {
        "multiple": (-0.3 * one, 2),
        "same": (one + 0.5 * one, 2),
        "wilson": (Wilson("SU(3)", lattice, beta=1.0) + one, 2),
        "other shapes": (one + bent, 2),
        "weights": (one + 0.5 * heavy, 3),
        "twice the weights": (heavy + 2.0 * heavy, 2),
    }


@pytest.mark.parametrize("name", sums())
def test_sums_are_compiled(name):
    action, terms = sums()[name]
    assert why_in_torch(action) is None and len(action.as_data()) == terms
    field, _, _ = draw(action, 2)
    parts = getattr(action, "terms", [action])
    with torch_only():
        value = sum(part(field) for part in parts)
        force = sum(part.force(field) for part in parts)
    assert torch.allclose(action(field), value, rtol=1e-12)
    assert (action.force(field) - force).abs().max() < 1e-12


@pytest.mark.parametrize("chains", [1, 3, 37])
def test_independent_of_threads(chains, monkeypatch):
    monkeypatch.setattr(schedule, "_SHORTEST_SLICE", 1.0)
    # Several levels of paths.
    words = words_of("chair", 3) + words_of("rectangle", 3) + words_of("long_rectangle", 3)
    action = Improved("SU(2)", (2, 4, 3), beta=2.0, words=words)
    field, momentum, step_size = draw(action, chains)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        run = find_trajectory(action, field, LEAPFROG)
        results.append([*run(field, momentum, step_size, 3), action.force(field), action(field)])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    alone = run(field[:1], momentum[:1], step_size[:1], 3)
    assert torch.equal(alone[0], results[0][0][:1])


def test_paths_wait_for_those_elsewhere(monkeypatch):
    """Planted, paths that are made of paths at other sites are made together with these."""
    words = words_of("rectangle", 2) + words_of("long_rectangle", 2)
    action = Improved("SU(2)", (4, 3), beta=2.0, words=words)
    field, _, _ = draw(action, 1)
    assert (action.force(field) - action.force_in_torch(field)).abs().max() < 1e-12
    monkeypatch.setattr(loop_program, "_bounds", lambda levels: np.array([0, len(levels)]))
    loop_program.prepare.cache_clear()
    # Of another field: what the same memory holds of the first one would be right for that.
    other = action.group.compose(field, field)
    assert not (action.force(other) - action.force_in_torch(other)).abs().max() < 1e-3
    loop_program.prepare.cache_clear()


def test_a_wrong_wrap_is_caught(monkeypatch):
    action = Improved("SU(3)", (4, 4), beta=2.0, words=words_of("rectangle", 2))
    field, _, _ = draw(action, 1)
    assert (action.force(field) - action.force_in_torch(field)).abs().max() < 1e-12
    right = link_fields.layout_for

    def wrong(*arguments):
        found = right(*arguments)
        neighbours = found.neighbours.copy()
        neighbours[1] = neighbours[0]
        return dataclasses.replace(found, neighbours=neighbours)

    monkeypatch.setattr(link_fields, "layout_for", wrong)
    assert (action.force(field) - action.force_in_torch(field)).abs().max() > 1e-3


def test_few_paths_are_made():
    """In four dimensions: 4 lines of two links serve 12 rectangles, and every side needs one more.

    Against 36 products if every rectangle were multiplied alone, and 72 for its staples.
    """
    plan = plan_for(images(SHAPES["rectangle"], 4), 4)
    assert len(plan.joints) == 4
    assert sum(side.second is not None for sides in plan.loops for side in sides) == 24
    # A long loop is planned at once.
    plan = plan_for(((1,) * 30 + (2,) * 30 + (-1,) * 30 + (-2,) * 30,), 2)
    assert len(plan.joints) < 120


@pytest.mark.parametrize(
    ("words", "numbers", "message"),
    [
        (((1, 2, -1),), 1.0, "no closed loop"),
        (((),), 1.0, "no closed loop"),
        (((1, 0, -1, 0),), 1.0, "no closed loop"),
        (((1, 2, -2, 2, -1, -2),), 1.0, "goes back along a link"),
        (((1, -1),), 1.0, "goes back along a link"),
        (((1, 2, -1, -2),), (1.0, 2.0), "1 words, 2 coefficients"),
        ((), 1.0, "0 words"),
    ],
)
def test_what_is_no_loop_is_refused(words, numbers, message):
    group = Wilson("SU(2)", (2, 2), beta=1.0).group
    with pytest.raises(ValueError, match=message):
        Loops(group, words, numbers)


def test_a_loop_in_a_direction_that_is_not_there():
    class Flat(Action):
        def __init__(self):
            whole = Wilson("SU(2)", (2, 2), beta=1.0)
            self.group, self.lattice, self.parameters = whole.group, whole.lattice, {}

        def as_data(self):
            return (Loops(self.group, ((1, 3, -1, -3),), 1.0),)

    action = Flat()
    with pytest.raises(ValueError, match="direction 2, but the lattice has 2 directions"):
        action(action.cold(1))
