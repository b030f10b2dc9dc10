"""What `flowmc report` says about the gradient flow, and about charges with and without it."""

import json
import re

import h5py
import numpy as np
import pytest

from flowmc.commands.report import summarise
from tests.estimators.test_scale import TIMES, exact_t0, exact_w0, series
from tests.run.recorded_runs import invoke, make_run, refuse
from tests.run.small_runs import write

LABEL = "gradient_flow(flow_time=4.0,points=20)"
CONFIG = """
[theory]
action = "wilson"
group = "SU(3)"
lattice = [16, 16, 16, 16]
beta = 6.0

[measure]
observables = ["topological_charge", {name = "gradient_flow", flow_time = 4.0, points = 20}]
"""


def make_flow_run(path, *, rows=1000, scale=1.0, lattice=16, hops=0.2, replicas=1):
    path = make_run(path, rows=rows, chains=2, vector=False, replicas=replicas)
    (path / "config.toml").write_text(CONFIG.replace("16", str(lattice)))
    rng = np.random.default_rng(3)
    with h5py.File(path / "measurements.h5", "r+") as file:
        for phase in ("thermalization", "production"):
            count = len(file[f"{phase}/updates"])
            charge = np.cumsum(
                rng.choice([-1, 0, 1], size=(count, 2), p=[hops / 2, 1 - hops, hops / 2]), axis=0
            )
            charge = (charge + 4) % 9 - 4
            values = np.empty((count, 2, replicas, 20, 3))
            for column in range(2):
                for replica in range(replicas):
                    curve = series(rng, count, 2, 0.5)
                    values[:, :, replica, :, column] = scale * curve / (1 + 0.1 * replica)
            values[..., 2] = (0.97 * charge + 0.02 * rng.normal(size=(count, 2)))[:, :, None, None]
            data = file.create_dataset(f"{phase}/observables/{LABEL}", data=values)
            data.attrs["parameters"] = json.dumps({"flow_time": 4.0, "points": 20})
            # Small volume: narrow around zero, but no integer.
            if "topological_charge" in file[f"{phase}/observables"]:
                del file[f"{phase}/observables/topological_charge"]
            file[f"{phase}/observables/topological_charge"] = 0.04 * rng.normal(
                size=(count, 2, replicas)
            )
    return path


def test_scales(tmp_path, capsys):
    path = make_flow_run(tmp_path / "run")
    assert invoke(path, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    flow = document["gradient_flow"][LABEL]
    for key, exact in (("t0", exact_t0()), ("w0", exact_w0())):
        for suffix in ("", "_plaquette"):
            entry = flow[key + suffix]
            assert set(entry) >= {"mean", "error", "tau_int", "tau_int_error", "samples"}
            assert abs(entry["mean"] - exact) < 5 * entry["error"] + 1e-3
            assert 0 < entry["error"] < 0.02 * exact
    assert flow["flow_times"] == pytest.approx(TIMES.tolist())
    assert len(flow["t2_energy"]["clover"]["mean"]) == 20
    assert flow["charge"] == "topological_charge(flow_time=4.0)"
    assert LABEL not in document["observables"]
    assert invoke(path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^t0/a\^2 +3\.0\d*\(\d+\)", printed, re.M) and "w0/a" in printed
    page = (path / "report.html").read_text()
    assert "Gradient flow" in page and "t<sub>0</sub>" in page


def test_charge_of_the_flow_hops(tmp_path):
    observables = summarise(make_flow_run(tmp_path / "run"))["observables"]
    charge = observables["topological_charge(flow_time=4.0)"]
    # 2 chains, 999 steps each, a fifth of them hops.
    assert charge["hops"] == pytest.approx(400, abs=5 * 18)
    frozen = make_flow_run(tmp_path / "frozen", hops=0.0)
    document = summarise(frozen)
    charge = document["observables"]["topological_charge(flow_time=4.0)"]
    assert charge["is_lower_bound"] and charge["hops"] == 0
    assert any("flow_time=4.0" in text and "frozen" in text for text in document["warnings"])


def test_charge_without_flow_is_not_called_frozen(tmp_path):
    document = summarise(make_flow_run(tmp_path / "run"))
    charge = document["observables"]["topological_charge"]
    assert "hops" not in charge and not charge["is_lower_bound"]
    (said,) = [text for text in document["warnings"] if text.startswith("topological_charge:")]
    assert "frozen" not in said and "flow_time" in said


def test_flow_that_is_too_short_or_too_long(tmp_path):
    document = summarise(make_flow_run(tmp_path / "short", scale=0.5))
    assert document["gradient_flow"][LABEL]["t0"] is None
    assert any("larger flow_time" in text for text in document["warnings"])
    document = summarise(make_flow_run(tmp_path / "small", lattice=8))
    assert any("distorted by the volume" in text for text in document["warnings"])


@pytest.mark.usefixtures("undrawn")
def test_scales_of_all_replicas(tmp_path, capsys):
    path = make_flow_run(tmp_path / "run", replicas=3)
    entries = summarise(path)["gradient_flow"][LABEL]["replicas"]
    t0 = [entry["t0"]["mean"] for entry in entries]
    assert t0[0] < t0[1] < t0[2]
    assert invoke(path) == 0
    assert re.search(r"^replica .* t0/a\^2$", capsys.readouterr().out, re.M)


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_measures_the_flow(tmp_path, capsys):
    from flowmc.cli import main

    flow = {"name": "gradient_flow", "flow_time": 0.4, "points": 4, "step": 0.1}
    tables = {
        "theory": {"action": "wilson", "group": "SU(2)", "lattice": [2, 2, 2, 4], "beta": 2.0},
        "chains": {"count": 2, "seed": 1},
        "update": [{"kernel": "hmc", "steps": 3}],
        "run": {"updates": 20, "thermalization": 2},
        "measure": {
            "observables": [
                flow,
                {"name": "topological_charge", "flow_time": 0.4, "step": 0.1},
                {"name": "energy_density", "flow_time": 0.4, "step": 0.1},
            ]
        },
    }
    assert main(["run", write(tmp_path / "a.toml", tables), "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        group = file["production/observables"]
        (label,) = [name for name in group if name.startswith("gradient_flow")]
        (charge,) = [name for name in group if name.startswith("topological")]
        (energy,) = [name for name in group if name.startswith("energy")]
        assert group[label].shape == (20, 2, 1, 4, 3)
        np.testing.assert_allclose(group[label][..., -1, 2], group[charge][()], atol=1e-12)
        clover = 0.16 * group[energy][()]
        np.testing.assert_allclose(group[label][..., -1, 0], clover, rtol=1e-12)
    document = summarise(tmp_path / "out")
    assert document["gradient_flow"][label]["flow_times"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.usefixtures("undrawn")
def test_two_dimensions_have_no_scale(tmp_path, capsys):
    path = make_flow_run(tmp_path / "run")
    text = CONFIG.replace("[16, 16, 16, 16]", "[16, 16]").replace("SU(3)", "U(1)")
    (path / "config.toml").write_text(text)
    flow = summarise(path)["gradient_flow"][LABEL]
    assert "t0" not in flow and len(flow["t2_energy"]["plaquette"]["error"]) == 20
    assert invoke(path) == 0
    assert "t^2 E at t = 4" in capsys.readouterr().out
