"""Every registered family of vector fields keeps its contract, every derivative its answer."""

import inspect
import json

import pytest

from flowmc.actions import AnisotropicWilson, FreeScalar, Phi4, Wilson
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.io import write_field
from flowmc.random import stream
from flowmc.registry import BUILTIN, parameters, resolve
from flowmc.testing import ContractError, check_vector_fields
from flowmc.vector_fields import KernelFields

THEORIES = (
    Phi4([4, 3], m2=-1.0, lam=0.5),
    Wilson("U(1)", [3, 4], beta=1.0),
    AnisotropicWilson("SU(2)", [3, 2], beta=1.3, anisotropy=1.4),
)


@pytest.mark.parametrize("name", BUILTIN["vector_fields"])
def test_registered_families(name):
    component, taken = resolve("vector_fields", name), 0
    for action in THEORIES:
        takes_coupling = "coupling" in inspect.signature(component).parameters
        coupling = next(iter(action.parameters))
        try:
            fields = component(action, *([coupling] if takes_coupling else []))
        except ValueError as refusal:
            assert repr(action) in str(refusal)
            continue
        check_vector_fields(fields, action)
        taken += 1
    assert taken


class Wrong(KernelFields):
    def divergences(self, field, rng):
        return 1.01 * super().divergences(field, rng)


class Noisy(Wrong):
    """Says that its divergences are estimates, but these are not those of the velocities."""

    divergence_is_exact = False


@pytest.mark.parametrize(("kind", "sentence"), [(Wrong, "no derivatives"), (Noisy, "biased")])
def test_a_wrong_divergence_is_found(kind, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_vector_fields(kind(THEORIES[0]), THEORIES[0])


@pytest.mark.parametrize("name", BUILTIN["derivatives"])
def test_registered_derivatives_of_the_free_field(name, tmp_path, capsys):
    """Of <phi^2> and <S> / V by m2, 5.5 standard errors: false alarms of 4e-8 each."""
    action, h = FreeScalar([3, 4], m2=0.8), 0.01
    ensemble = tmp_path / "files"
    ensemble.mkdir()
    for number, field in enumerate(action.sample(100, stream(5, 0, "draws"))):
        write_field(ensemble / f"free.{number}.npy", field, action, format="npy")
    required = inspect.Parameter.empty
    keys = parameters(resolve("derivatives", name))
    # What a method may ask for beside the coupling are steps.
    steps = {k: [h] for k, one in keys.items() if one.default is required and k != "coupling"}
    tables = {
        "theory": {"action": "free", "lattice": [3, 4], "m2": 0.8},
        "ensemble": {"files": str(ensemble), "batch": 50},
        "measure": {"observables": ["phi2", "action"]},
        "derivative": [{"method": name, "coupling": "m2", **steps}],
        "analysis": {"report": False},
    }
    (tmp_path / "c.toml").write_text(toml_text(tables))
    out = ["--output", str(tmp_path / "out"), "--json"]
    assert main(["correlate", str(tmp_path / "c.toml"), *out]) == 0
    section = json.loads(capsys.readouterr().out)["sections"][f"d_m2 ({name})"]

    def phi2(m2):
        return float(action.at(m2=m2).propagator()[0, 0])

    # S / V is 1/2 by equipartition, whatever m2 is.
    exact = {"phi2": (phi2(0.8 + h) - phi2(0.8 - h)) / (2 * h), "action": 0.0}
    for label, slope in exact.items():
        found = section["results"][label]
        assert abs(found["value"] - slope) <= 5.5 * found["error"] + 2e-3 * abs(slope)
        assert found["error"] < 0.4
