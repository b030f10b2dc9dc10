"""`flowmc correlate` from end to end: the same numbers from every format, resume, refusals."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from pyerrors.input.json import load_json_dict

from flowmc.actions import Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.cli import main
from flowmc.groups import SUN, U1
from flowmc.io import write_field
from flowmc.kernels import HMC
from flowmc.run.toml_text import toml_text


def write_su3(folder, formats, count=24):
    """Write one SU(3) chain in several formats, with a hole in the numbers."""
    action = Wilson(SUN(3), (2, 2, 2, 4), beta=5.7)
    rng = torch.Generator().manual_seed(5)
    kernel = HMC(action, trajectory=1.0, steps=8)
    state = kernel.init(action.cold(1))
    for update in range(1, 10 + count + 1):
        state, _ = kernel.step(state, rng)
        number = 10 * update
        if update > 10 and number != 200:
            for format in formats:
                path = folder / format / f"lat.{number}"
                write_field(path, state.field, action, format=format, precision=64)


def write_u1(folder, beta=2.0, count=40, lattice=(6, 6), seed=1):
    action = Wilson(U1(), lattice, beta=beta)
    rng = torch.Generator().manual_seed(seed)
    for number, field in enumerate(sample_wilson_2d(action, count, rng), start=1):
        write_field(folder / f"u1.{number}.h5", field, action, format="hdf5")
    return action


def u1_config(folder, **tables):
    config = {
        "theory": {"action": "wilson", "group": "U(1)", "lattice": [6, 6], "beta": 2.0},
        "ensemble": {"files": str(folder / "*.h5")},
        "measure": {"observables": ["plaquette", {"name": "wilson_loop", "extents": [2, 2]}]},
        "target": [{"beta": [1.9, 2.1]}],
        "derivative": [{"method": "difference", "coupling": "beta", "steps": [0.05, 0.1]}],
    }
    return {**config, **tables}


def write_config(path, tables):
    path.write_text(toml_text(tables))
    return str(path)


def correlate(capsys, *arguments):
    status = main(["correlate", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_nersc_and_ildg_give_identical_numbers(tmp_path, capsys):
    write_su3(tmp_path, ["nersc", "ildg", "hdf5"])
    documents = []
    for format in ("nersc", "ildg", "hdf5"):
        tables = {
            "theory": {
                "action": "wilson",
                "group": "SU(3)",
                "lattice": [2, 2, 2, 4],
                "beta": 5.7,
            },
            "ensemble": {"files": format, "name": "lat"},
            "measure": {"observables": ["plaquette", {"name": "wilson_loop", "extents": [1, 2]}]},
            "target": [{"beta": 5.71}],
            "derivative": [{"method": "difference", "coupling": "beta", "steps": [0.01, 0.02]}],
        }
        config = write_config(tmp_path / f"{format}.toml", tables)
        status, document, _ = correlate(capsys, config, "--output", tmp_path / f"out_{format}")
        assert status == 0
        documents.append(document)
    assert documents[0] == documents[1] == documents[2]
    assert documents[0]["configurations"] == 23 and documents[0]["spacing"] == 10
    slope = documents[0]["sections"]["d_beta (difference)"]["results"]["plaquette"]
    assert slope["value"] > 0


def test_results_are_written_in_all_forms(tmp_path, capsys):
    write_u1(tmp_path / "files")
    config = write_config(tmp_path / "c.toml", u1_config(tmp_path / "files"))
    status, document, _ = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 0
    out = tmp_path / "out"
    stored = load_json_dict(str(out / "results.json.gz"), verbose=False)
    plaquette = stored["source: plaquette"]
    plaquette.gamma_method()
    expected = document["sections"]["source"]["results"]["plaquette"]
    assert plaquette.value == pytest.approx(expected["value"])
    assert plaquette.dvalue == pytest.approx(expected["error"])
    assert list(plaquette.idl.values()) == [range(1, 41)]
    rows = (out / "results.csv").read_text().splitlines()
    assert rows[0].startswith("name,value,error") and len(rows) > 10
    assert tomllib.loads((out / "config.toml").read_text())["ensemble"]["every"] == 1
    assert (out / "results.h5").exists() and (out / "provenance.json").exists()
    # Two targets, one derivative; differences say what they gain.
    change = document["sections"]["beta=2.1"]["results"]["change of plaquette"]
    assert change["value"] > 0 and 0 < change["rho"]["value"] <= 1
    assert change["gain_independent"]["value"] > 1


def test_resume_measures_only_what_is_new(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "files"
    write_u1(folder, count=30)
    late = tmp_path / "late"
    late.mkdir()
    for path in sorted(folder.iterdir())[::3]:
        shutil.move(path, late / path.name)
    config = write_config(tmp_path / "c.toml", u1_config(folder))
    out = tmp_path / "out"
    assert correlate(capsys, config, "--output", out)[0] == 0
    status, _, error = correlate(capsys, config, "--output", out)
    assert status == 2 and "--resume" in error
    for path in late.iterdir():
        shutil.move(path, folder / path.name)
    measured = []
    from flowmc.run import stored_ensemble

    load = stored_ensemble.load_field
    monkeypatch.setattr(
        stored_ensemble,
        "load_field",
        lambda path, *a, **k: measured.append(Path(path).name) or load(path, *a, **k),
    )
    status, grown, error = correlate(capsys, config, "--output", out, "--resume")
    assert status == 0 and "20 of them are measured already" in error
    assert len(measured) == 10
    status, fresh, _ = correlate(capsys, config, "--output", tmp_path / "fresh")
    assert status == 0
    # Summed in other batches: equal up to rounding.
    for label, section in fresh["sections"].items():
        for name, entry in section["results"].items():
            again = grown["sections"][label]["results"][name]
            assert again["value"] == pytest.approx(entry["value"], rel=1e-12), (label, name)
    changed = u1_config(folder, target=[{"beta": 2.3}])
    config = write_config(tmp_path / "c.toml", changed)
    status, _, error = correlate(capsys, config, "--output", out, "--resume")
    assert status == 2 and "target" in error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ensembel": {}}, "did you mean 'ensemble'"),
        ({"ensemble": {"file": "x"}}, "unknown key 'file'; did you mean 'files'"),
        ({"ensemble": {}}, "come either from files"),
        ({"ensemble": {"files": "x", "run": "y"}}, "files and run"),
        ({"ensemble": {"files": "nothing.*"}}, "there is no configuration file"),
        ({"target": [{"betta": 1.0}]}, "did you mean 'beta'"),
        ({"target": [{"flow": "identity"}]}, "needs a coupling"),
        ({"target": [{"beta": [1.0, 2.0], "flow": "zoo:x"}]}, "a flow leads to one theory"),
        ({"target": [{"beta": 2.1}, {"beta": 2.1}]}, "tell them apart"),
        ({"target": [{"beta": 2.1, "save": "nersc"}]}, "hold SU(N) links"),
        ({"target": [{"beta": 2.1, "precision": 32}]}, "needs save"),
        ({"derivative": [{"coupling": "beta"}]}, "missing key 'method'"),
        ({"derivative": [{"method": "diference"}]}, "did you mean 'difference'"),
        (
            {"derivative": [{"method": "difference", "coupling": "beta", "steps": [-1.0]}]},
            "different positive numbers",
        ),
        (
            {"derivative": [{"method": "difference", "coupling": "bta", "steps": [0.1]}]},
            "did you mean 'beta'",
        ),
        (
            {
                "derivative": [
                    {
                        "method": "difference",
                        "coupling": "beta",
                        "steps": [0.1, 0.2],
                        "flows": [["identity", "identity"]],
                    }
                ]
            },
            "one pair for each of 2 steps",
        ),
        ({"analysis": {"effective_masses": ["plaquete"]}}, "did you mean 'plaquette'"),
        ({"chains": {"seed": 1}}, "come either from files"),
    ],
)
def test_unusable_configurations(tmp_path, capsys, change, words):
    write_u1(tmp_path / "files", count=1)
    config = write_config(tmp_path / "c.toml", u1_config(tmp_path / "files", **change))
    status, _, error = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 2
    assert words in error


def test_correlated_configurations_carry_weights(tmp_path, capsys):
    action = write_u1(tmp_path / "files", count=12)
    tables = u1_config(tmp_path / "files", target=[{"beta": 2.2, "save": "hdf5"}], derivative=[])
    config = write_config(tmp_path / "c.toml", tables)
    status, _, _ = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 0
    folder = tmp_path / "out" / "correlated" / "beta=2.2"
    rows = [row.split(",") for row in (folder / "weights.csv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in rows] == list(range(1, 13))
    from flowmc.io import load_field

    stored = load_field(folder / "u1.7", action)
    target = action.at(beta=2.2)
    expected = float(action(stored.field) - target(stored.field))
    assert float(stored.metadata["FLOWMC_LOG_WEIGHT"]) == pytest.approx(expected)
    assert float(rows[6][2]) == pytest.approx(expected)
    assert np.mean([float(row[3]) for row in rows]) == pytest.approx(1)
