"""The compiled inverse of a masked layer against torch's iteration."""

import pytest
import torch

from flowmc.actions import Wilson
from flowmc.flows import ResidualFlow
from flowmc.native import find_link_solver, links, schedule

ACTION = Wilson("SU(3)", (2, 4, 2), beta=5.0)


def make(scale, dtype=torch.complex128):
    rng = torch.Generator().manual_seed(7)
    flow = ResidualFlow(ACTION, share="layer", coefficients="network")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng).double())
    return flow, ACTION.hot(3, rng).to(dtype)


def invert(flow, x, monkeypatch, native):
    monkeypatch.setenv("FLOWMC_NATIVE", "1" if native else "0")
    assert (find_link_solver(flow.group, x.flatten(1, -3)) is not None) == native
    with torch.no_grad():
        return flow.inverse(x, torch.zeros(len(x), dtype=torch.float64))


# From a map close to the identity to the largest coefficients.
@pytest.mark.parametrize("scale", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_agrees_with_torch(scale, dtype, monkeypatch):
    flow, x = make(scale, dtype)
    ours, density = invert(flow, x, monkeypatch, True)
    theirs, expected = invert(flow, x, monkeypatch, False)
    assert ours.dtype == dtype
    # Near the bound each layer multiplies rounding by up to 1 / (1 - bound).
    loose = 1 if dtype == torch.complex128 else 1e9
    assert (ours - theirs).abs().max() < loose * (1e-10 if scale > 1 else 2e-14)
    assert (density - expected).abs().max() < loose * (1e-8 if scale > 1 else 1e-12)


def test_a_wrong_projection_is_caught(monkeypatch):
    flow, x = make(0.3)
    right, _ = invert(flow, x, monkeypatch, True)
    true = links.solve_links
    monkeypatch.setattr(links, "solve_links", lambda t, c, n, e: true(t, c.mH, n, e))
    wrong, _ = invert(flow, x, monkeypatch, True)
    assert (wrong - right).abs().max() > 1e-2


def test_same_bits_for_any_number_of_threads_and_batch(monkeypatch):
    monkeypatch.setattr(schedule, "_SHORTEST_SLICE", 1.0)
    flow, x = make(0.3)
    expected, _ = invert(flow, x, monkeypatch, True)
    torch.set_num_threads(3)
    again, _ = invert(flow, x, monkeypatch, True)
    assert torch.equal(again, expected)


def test_what_has_not_converged_says_so():
    rng = torch.Generator().manual_seed(1)
    target = ACTION.group.haar((3, 5), torch.complex128, rng)
    closing = 0.2 * ACTION.group.haar((3, 5), torch.complex128, rng)
    solved, converged = links.solve_links(target, closing, 60, 1e-14)
    assert converged.all()
    _, converged = links.solve_links(target, closing, 3, 1e-14)
    assert not converged.any()
    target[1, 2, 0, 0] = torch.nan
    others, converged = links.solve_links(target, closing, 60, 1e-14)
    assert converged.tolist() == [True, False, True]
    assert torch.equal(others[0], solved[0]) and torch.equal(others[2], solved[2])


def test_what_is_left_to_torch():
    _, x = make(0.3)
    flat = x.flatten(1, -3)
    assert find_link_solver(ACTION.group, flat) is not None
    assert find_link_solver(Wilson("SU(2)", (2, 2), beta=1.0).group, flat) is None
    assert find_link_solver(ACTION.group, flat.to("meta")) is None
    assert find_link_solver(ACTION.group, flat[:, :0]) is None
