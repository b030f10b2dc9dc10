"""From names and tables to objects and back: keys, types, descriptions."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import flowmc
from flowmc import docstrings, observables, registry
from flowmc.actions import Phi4
from flowmc.actions.theory import build_action
from flowmc.config.entries import read_observables, read_update, resolved_update
from flowmc.correlate.config import read_correlate_config
from flowmc.correlate.difference import Difference
from flowmc.flows import GaussianPrior, Identity
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.tables import flat
from flowmc.flows.cards.tables import resolved as resolved_part
from flowmc.kernels import SignFlip
from flowmc.registry import BUILTIN, ConfigError, table_model, validate
from flowmc.training import ReverseKL
from flowmc.training.tables import read_training
from flowmc.vector_fields import KernelFields

HERE = __name__
THEORY = {"action": "phi4", "lattice": [4, 4], "m2": -1.0, "lambda": 0.5}


@pytest.fixture
def action():
    return build_action(THEORY)


class OwnAction(Phi4):
    """phi^4 with a default.

    Args:
        lam: quartic coupling.
    """

    def __init__(self, lattice, *, lam: float = 1.5):
        super().__init__(lattice, lam=lam, m2=-1.0)


class OwnKernel(SignFlip):
    def __init__(self, action, *, lam: float = 1.5, pairs: tuple[int, ...] = (1, 2)):
        super().__init__(action)


class OwnFlow(Identity):
    def __init__(self, lattice, *, lam: float = 1.5):
        super().__init__()


class OwnPrior(GaussianPrior):
    def __init__(self, action, *, lam: float = 1.5):
        super().__init__(action)


class OwnObjective(ReverseKL):
    def __init__(self, model, action, *, lam: float = 1.5):
        super().__init__(model, action)


class OwnDerivative(Difference):
    def __init__(self, label, context, *, coupling: str, lam: float = 1.5):
        super().__init__(label, context, coupling=coupling, steps=[lam])


class OwnFields(KernelFields):
    def __init__(self, action, *, lam: float = 1.5):
        super().__init__(action)


def own_observable(field, action, *, lam: float = 1.5):
    """Return the mean."""
    return lam * field.mean((1, 2))


def test_action_with_lambda_through_every_door(monkeypatch):
    table = {**THEORY, "action": f"{HERE}:OwnAction"}
    del table["m2"]
    action = build_action(table)
    assert action.parameters["lambda"] == 0.5 and action.quartic == 0.5
    with pytest.raises(ConfigError, match="unknown key 'lam'; did you mean 'lambda'"):
        build_action({**table, "lam": 1.0})
    moved = build_action({"action": "phi4", **THEORY}).at(**{"lambda": 0.7})
    assert moved.quartic == 0.7 and moved.on_lattice([6, 6]).parameters["lambda"] == 0.7
    path = build_action({"action": "double_well", "lattice": [8], "m0": 0.5, "lambda": 2.0})
    assert path.at(**{"lambda": 3.0}).on_lattice([10]).parameters["lambda"] == 3.0


def test_kernel_with_lambda_through_every_door():
    entry = read_update({"kernel": f"{HERE}:OwnKernel", "lambda": 2.5}, 1)
    assert entry.keys == {"lam": 2.5}
    table = resolved_update(entry)
    assert table["lambda"] == 2.5 and table["pairs"] == [1, 2] and "lam" not in table
    assert resolved_update(read_update(table, 1)) == table


def test_observable_with_lambda_through_every_door(action):
    [entry] = read_observables(
        {"observables": [{"name": f"{HERE}:own_observable", "lambda": 2}]}, action
    )
    assert entry.label == "own_observable(lambda=2)" and entry.keys == {"lam": 2.0}


@pytest.mark.parametrize(
    ("kind", "name", "build"),
    [("flows", "OwnFlow", build_flow), ("priors", "OwnPrior", build_prior)],
)
def test_flows_and_priors_with_lambda_through_every_door(kind, name, build, action):
    card = resolved_part(kind, {"name": f"{HERE}:{name}"})
    assert card["parameters"] == {"lambda": 1.5}
    built = build({**flat(card), "lambda": 2.5}, action)
    assert built._construction[1] == {"lam": 2.5}


def test_objective_with_lambda_through_every_door():
    table = {"objective": f"{HERE}:OwnObjective", "steps": 1, "batch": 2, "lambda": 2.5}
    *_, options = read_training(table, "sampler", configurations=None)
    assert options == {"lam": 2.5}


def test_derivative_and_fields_with_lambda_through_every_door(tmp_path):
    tables = {
        "theory": THEORY,
        "ensemble": {"files": "x"},
        "derivative": [{"method": f"{HERE}:OwnDerivative", "coupling": "m2"}],
    }
    config = read_correlate_config(tables, tmp_path)
    assert config.resolved["derivative"][0]["lambda"] == 1.5
    again = read_correlate_config({**tables, **config.resolved}, tmp_path)
    assert again.derivatives[0].keys == {"coupling": "m2", "lam": 1.5}
    own = validate(registry.resolve("vector_fields", f"{HERE}:OwnFields"), {"lambda": 3}, "fields")
    assert own == {"lam": 3.0}


def test_lambda_is_spelt_in_one_place():
    spelt = {
        path.name
        for path in Path(flowmc.__file__).parent.rglob("*.py")
        if re.search(r"[\"']lambda[\"']", path.read_text(encoding="utf-8"))
    }
    assert spelt == {"registry.py"}


class Peculiar:
    """Keys that models have other uses for.

    Args:
        copy, schema: of nothing; see :class:`Peculiar`,
            on two lines.
        _x: hidden.
        model_y: a choice.
        field: only Python can give it.
    """

    def __init__(
        self,
        *,
        copy: int,
        schema: list[int] | None = None,
        _x: float = 1.0,
        model_y: Literal["a", "b"] = "a",
        field: torch.Tensor | None = None,
        anything: Any = None,
    ):
        pass


def test_keys_may_have_any_name():
    table = {"copy": 2.0, "schema": ["3"], "_x": 1, "model_y": "b", "anything": {"a": [1]}}
    assert validate(Peculiar, table, "[x]") == {
        "copy": 2,
        "schema": [3],
        "_x": 1.0,
        "model_y": "b",
        "anything": {"a": [1]},
    }
    for wrong, words in (
        ({"copy": 1, "skema": 1}, "unknown key 'skema'; did you mean 'schema'"),
        ({"copy": "one"}, r"\[x\]: copy = 'one': Input should be a valid integer"),
        ({"copy": 1, "model_y": "c"}, "model_y = 'c': Input should be 'a' or 'b'"),
        ({"copy": 1, "schema": [1, "x"]}, r"schema = \[1, 'x'\]: "),
        ({"schema": [1]}, "missing key 'copy'"),
        ({"copy": 1, "_x": "inf"}, "_x = 'inf': should be finite"),
        ({"copy": 1, "field": 3}, "field = 3: "),
    ):
        with pytest.raises(ConfigError, match=words):
            validate(Peculiar, wrong, "[x]")


def test_models_say_what_docstrings_say():
    fields = {one.alias: one for one in table_model(Peculiar).model_fields.values()}
    assert fields["copy"].description == "of nothing; see `Peculiar`, on two lines."
    assert fields["schema"].description == fields["copy"].description
    assert fields["copy"].is_required() and fields["_x"].default == 1.0
    assert fields["anything"].description is None
    assert docstrings.summary(Peculiar) == "Keys that models have other uses for"


@pytest.mark.parametrize("kind", BUILTIN)
def test_what_is_registered_has_the_name_that_it_says(kind):
    for name in BUILTIN[kind]:
        said = getattr(registry.resolve(kind, name), "name", None)
        # Flows, priors and functions have no name of their own.
        assert not isinstance(said, str) or said == name
        if kind in ("actions", "kernels"):
            assert said == name
        if kind in ("actions", "kernels", "observables"):
            assert registry.built_in_title(kind, name)


def test_titles_are_not_inherited():
    assert registry.title_of(Phi4) and not registry.title_of(OwnAction)
    titled = observables.observable(title="Mean")(own_observable)
    assert registry.title_of(titled) == "Mean" and not registry.title_of(own_observable)


@pytest.mark.parametrize("kind", BUILTIN)
def test_every_key_is_described(kind):
    undescribed = [
        f"{name}: {field.alias}"
        for name in BUILTIN[kind]
        for field in table_model(registry.resolve(kind, name)).model_fields.values()
        if not field.description
    ]
    assert not undescribed
