"""Every observable that is registered keeps its contract, and the check finds what does not."""

import inspect

import pytest
import torch

from flowmc.actions import Phi4, Wilson
from flowmc.observables import plaquette
from flowmc.registry import BUILTIN, ConfigError, parameters, resolve
from flowmc.testing import ContractError, check_observable

THEORIES = (
    Phi4([4, 3], m2=-0.5, lam=0.7),
    Wilson("U(1)", [4, 3], beta=1.0),
    Wilson("SU(2)", [3, 2, 4], beta=1.0),
    Wilson("SU(3)", [2, 2, 2, 3], beta=5.0),
)


def keys_of(function):
    """Return a small number for every key that is required."""
    required = inspect.Parameter.empty
    return {k: 0.05 for k, one in parameters(function).items() if one.default is required}


@pytest.mark.parametrize("name", BUILTIN["observables"])
def test_registered_observables(name):
    function, taken = resolve("observables", name), set()
    for action in THEORIES:
        try:
            function(action.cold(1), action, **keys_of(function))
        except ConfigError as refusal:
            assert name in str(refusal), "a refusal names what refuses"
            continue
        check_observable(function, action, **keys_of(function))
        taken.add(action.is_gauge)
    assert taken, f"{name} is for no theory"


def reduced(field, action):
    return plaquette(field, action).mean()


def normalised(field, action):
    value = plaquette(field, action)
    return value / value.abs().max()


def one_link(field, action):
    return torch.cos(field.flatten(1)[:, 0])


def infinite(field, action):
    return plaquette(field, action) / 0.0


def moving(field, action):
    field += 0.1
    return plaquette(field, action)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (reduced, r"should be \(chains, ...\)"),
        (normalised, "depends on other chains"),
        (one_link, "not gauge invariant"),
        (infinite, "not finite"),
        (moving, "changes the field"),
    ],
)
def test_what_is_broken_is_found(function, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_observable(function, THEORIES[1])
