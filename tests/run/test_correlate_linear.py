"""`flowmc correlate` with ``method = "linear"``: from files to derivatives at zero step."""

import json

import numpy as np
import pytest
import torch
from scipy.special import iv

from flowmc.actions import FreeScalar, Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.groups import U1
from flowmc.io import write_field
from flowmc.observables import topological_charge

LINEAR = {"method": "linear", "coupling": "beta", "step": 0.05}


def write_u1(folder, count, beta=1.5, first=1):
    action = Wilson(U1(), (4, 4), beta=beta)
    fields = sample_wilson_2d(action, first + count, torch.Generator().manual_seed(3))[first:]
    for number, field in enumerate(fields, start=first):
        write_field(folder / f"u1.{number}.h5", field, action, format="hdf5")


def config(path, folder, *derivatives, **tables):
    content = {
        "theory": {"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 1.5},
        "ensemble": {"files": str(folder), "batch": 50},
        "measure": {
            "observables": ["plaquette", "action", {"name": "wilson_loop", "extents": [2, 2]}]
        },
        "derivative": list(derivatives or [LINEAR]),
        "analysis": {"report": False},
        **tables,
    }
    path.write_text(toml_text(content))
    return str(path)


def correlate(capsys, *arguments):
    status = main(["correlate", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def exact(beta, volume=16):
    """Return <P> and d<P>/d beta of U(1) on the torus by the character expansion."""

    def mean(b):
        n = np.arange(-20, 21)
        slope = (iv(n - 1, b) + iv(n + 1, b)) / 2
        return (iv(n, b) ** (volume - 1) * slope).sum() / (iv(n, b) ** volume).sum()

    return mean(beta), (mean(beta + 1e-4) - mean(beta - 1e-4)) / 2e-4


def test_derivatives_are_exact(tmp_path, capsys):
    """5 standard deviations: 6e-7 each."""
    write_u1(tmp_path / "files", 300)
    path = config(tmp_path / "c.toml", tmp_path / "files")
    status, document, _ = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 0
    section = document["sections"]["d_beta (linear)"]
    plaquette, slope = exact(1.5)
    found = section["results"]["plaquette"]
    assert abs(found["value"] - slope) < 5 * found["error"]
    # 7.2 with five coefficients fitted on 150 configurations; the topology of 4x4 limits it.
    assert found["gain_reweighting"]["value"] > 4
    assert found["gain_independent"]["value"] > 100
    # S / V = -beta P depends on beta itself.
    found = section["results"]["action"]
    assert abs(found["value"] + plaquette + 1.5 * slope) < 5 * found["error"]
    details = section["details"]
    assert details["variance_of_bracket"] < 0.25 * details["variance_of_insertion"]
    assert set(details["coefficients"]) >= {"plaquette", "rectangle"}


def test_an_ensemble_that_grows(tmp_path, capsys):
    """Rows that were measured stay, with the coefficients that were theirs."""
    folder = tmp_path / "files"
    write_u1(folder, 60)
    path = config(tmp_path / "c.toml", folder)
    out = tmp_path / "out"
    status, first, _ = correlate(capsys, path, "--output", out)
    assert status == 0
    write_u1(folder, 60, first=61)
    status, second, error = correlate(capsys, path, "--output", out, "--resume")
    assert status == 0 and error.count("60 of them are measured already") == 2
    small, large = (d["sections"]["d_beta (linear)"]["results"] for d in (first, second))
    _, slope = exact(1.5)
    for found in (small["plaquette"], large["plaquette"]):
        assert abs(found["value"] - slope) < 5 * found["error"]
    assert large["plaquette"]["samples"] == 120


def test_batches_change_nothing(tmp_path, capsys):
    """Also where divergences are stochastic."""
    folder = tmp_path / "files"
    write_u1(folder, 40)
    fields = [{"name": "krylov", "degree": 1}, {"name": "loops", "loops": ["plaquette"]}]
    results = []
    for batch in (7, 40):
        source = {"files": str(folder), "batch": batch}
        path = config(tmp_path / "c.toml", folder, LINEAR | {"fields": fields}, ensemble=source)
        status, document, _ = correlate(capsys, path, "--output", tmp_path / f"out{batch}")
        assert status == 0
        results.append(document["sections"]["d_beta (linear)"]["results"]["plaquette"])
    assert results[0]["value"] == pytest.approx(results[1]["value"], rel=1e-10)


@pytest.mark.slow
def test_effective_masses_of_the_free_field(tmp_path, capsys):
    """The derivative of the lattice pole mass, cosh m = 1 + m2 / 2."""
    action = FreeScalar([4, 8], m2=0.5)
    folder = tmp_path / "free"
    for number, field in enumerate(action.sample(400, torch.Generator().manual_seed(5))):
        write_field(folder / f"free.{number}.h5", field, action, format="hdf5")
    tables = {
        "theory": {"action": "free", "lattice": [4, 8], "m2": 0.5},
        "measure": {"observables": ["correlator", "phi2"]},
        "analysis": {"effective_masses": ["correlator"]},
    }
    derivative = {"method": "linear", "coupling": "m2"}
    path = config(tmp_path / "c.toml", folder, derivative, **tables)
    status, document, _ = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 0
    found = document["sections"]["d_m2 (linear)"]["results"]["mean_mass correlator"]
    slope = 0.5 / np.sinh(np.arccosh(1.25))
    assert abs(found["value"] - slope) < 5 * found["error"] < 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"coupling": "kappa"}, "no coupling 'kappa'"),
        ({"fields": ["kernels"]}, "kernels move scalar fields"),
        ({"fields": ["loop"]}, "did you mean 'loops'"),
        ({"fields": [{"name": "loops", "loops": ["chair"]}]}, "does not exist"),
        ({"fields": [{"name": "loops", "degree": 2}]}, "unknown key 'degree'"),
        ({"folds": 1}, "folds = 1"),
        ({"steps": [0.1]}, "unknown key 'steps'"),
    ],
)
def test_unusable_keys(tmp_path, capsys, change, text):
    write_u1(tmp_path / "files", 4)
    path = config(tmp_path / "c.toml", tmp_path / "files", LINEAR | change)
    status, _, error = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 2 and text in error


def test_subdirectories_are_named_by_a_pattern(tmp_path, capsys):
    write_u1(tmp_path / "chains" / "a", 30)
    derivative = LINEAR | {"fields": ["loops"]}
    path = config(tmp_path / "c.toml", tmp_path / "chains", derivative)
    status, _, error = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 2 and '/*"' in error
    path = config(tmp_path / "c.toml", tmp_path / "chains" / "*", derivative)
    status, document, _ = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 0 and document["configurations"] == 30


def test_too_few_configurations(tmp_path, capsys):
    write_u1(tmp_path / "files", 8)
    path = config(tmp_path / "c.toml", tmp_path / "files")
    status, _, error = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 2 and "too few to fit" in error


def squared_charge(field, action):
    """A user's observable that jumps."""
    return topological_charge(field, action).round().square()


def exact_squared_charge(beta, points=4001):
    """Return <Q^2> of U(1) on 16 plaquettes and its derivative, from Z(theta)."""

    def mean(b):
        step = 0.05
        plaquette = np.linspace(-np.pi, np.pi, points)
        weight = np.exp(b * np.cos(plaquette))

        def log_z(theta):
            n = np.arange(-15, 16)[:, None]
            phase = (n + theta / (2 * np.pi)) * plaquette
            return np.log((np.trapezoid(weight * np.cos(phase), plaquette) ** 16).sum())

        values = [log_z(k * step) for k in (-2, -1, 0, 1, 2)]
        return -np.dot([-1, 16, -30, 16, -1], values) / (12 * step**2)

    return mean(beta), (mean(beta + 1e-3) - mean(beta - 1e-3)) / 2e-3


@pytest.mark.slow
def test_an_observable_that_jumps_is_reweighted(tmp_path, capsys):
    """5 standard deviations: 6e-7; along the vector fields alone it was off by the boundaries."""
    write_u1(tmp_path / "files", 400)
    measured = {"observables": [f"{__name__}:squared_charge", "plaquette"]}
    path = config(tmp_path / "c.toml", tmp_path / "files", measure=measured)
    status, document, _ = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 0
    section = document["sections"]["d_beta (linear)"]
    found = section["results"]["squared_charge"]
    value, slope = exact_squared_charge(1.5)
    assert 0.1 < value < 1
    assert found["error"] < abs(slope)
    assert abs(found["value"] - slope) < 5 * found["error"]
    said = " ".join(section["warnings"])
    assert "squared_charge jumps" in said and "plaquette jumps" not in said


def test_plain_reweighting(tmp_path, capsys):
    write_u1(tmp_path / "files", 100)
    path = config(tmp_path / "c.toml", tmp_path / "files", LINEAR | {"fields": []})
    status, document, _ = correlate(capsys, path, "--output", tmp_path / "out")
    assert status == 0
    found = document["sections"]["d_beta (linear)"]["results"]["plaquette"]
    assert abs(found["value"] - exact(1.5)[1]) < 5 * found["error"]
    assert "gain_reweighting" not in found
