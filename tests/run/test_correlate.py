"""`flowmc correlate` from end to end: the same numbers from every format, resume, refusals."""

import json
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path

import flowmc_adapters
import numpy as np
import pytest
import torch
from pyerrors.input.json import load_json_dict

from flowmc.actions import Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.store import SeriesStore, measured_before
from flowmc.ensembles.stored import Member, StoredEnsemble
from flowmc.groups import SUN, U1
from flowmc.io import write_field
from flowmc.kernels import HMC
from flowmc.registry import ConfigError
from tests.processes import environment, forked


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
    """Write a configuration, without the page unless it is asked for."""
    tables = {**tables, "analysis": {"report": False, **tables.get("analysis", {})}}
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
        status, document, _ = correlate(
            capsys, config, "--output", tmp_path / f"out_{format}" / "out"
        )
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
    from flowmc.ensembles import stored as stored_ensemble

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


@pytest.mark.parametrize("several", [False, True])
def test_the_lock_comes_before_the_look(tmp_path, capsys, monkeypatch, several):
    """Two that start at once must not both find the directory free."""
    write_u1(tmp_path, count=4)
    tables = u1_config(tmp_path)
    del tables["derivative"]
    if several:
        ensembles = [tables["ensemble"] | {"name": f"b{beta}", "beta": beta} for beta in (2.0, 2.1)]
        tables |= {"ensemble": ensembles, "target": [{"beta": [2.05]}]}
    held = []
    monkeypatch.setattr(
        CorrelateDirectory, "check_free", lambda self, *a, **k: held.append(self.is_in_place)
    )
    main(["correlate", write_config(tmp_path / "a.toml", tables), "--output", str(tmp_path / "o")])
    assert held == [True]


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


LIVE = {
    "chains": {"count": 2, "seed": 4, "start": "cold"},
    "update": [{"kernel": "hmc", "trajectory": 1.0, "steps": 6}],
    "run": {"thermalization": 20, "updates": 30},
}


def test_live_chain_and_its_run_directory_agree(tmp_path, capsys):
    tables = u1_config(tmp_path, derivative=[], analysis={"report": True}, **LIVE)
    del tables["ensemble"]
    config = write_config(tmp_path / "live.toml", tables)
    status, live, _ = correlate(capsys, config, "--output", tmp_path / "live")
    assert status == 0 and live["replicas"] == {"chain0000": 30, "chain0001": 30}
    tables = {
        "ensemble": {"run": "live/chain", "batch": 7},
        "measure": tables["measure"],
        "target": tables["target"],
    }
    config = write_config(tmp_path / "run.toml", tables)
    status, of_run, _ = correlate(capsys, config, "--output", tmp_path / "of_run")
    assert status == 0
    for label, section in live["sections"].items():
        for name, entry in section["results"].items():
            again = of_run["sections"][label]["results"][name]
            assert again["value"] == pytest.approx(entry["value"], rel=1e-9, abs=1e-12)
    assert (tmp_path / "live" / "report.html").stat().st_size > 10_000
    stored = load_json_dict(str(tmp_path / "live" / "results.json.gz"), verbose=False)
    assert list(stored["source: plaquette"].idl) == ["live|chain0000", "live|chain0001"]
    tables["theory"] = {"action": "wilson", "group": "U(1)", "lattice": [6, 6], "beta": 2.5}
    config = write_config(tmp_path / "run.toml", tables)
    status, _, error = correlate(capsys, config, "--output", tmp_path / "other")
    assert status == 2 and "is not that of the run" in error


def test_one_hdf5_file_with_many_configurations(tmp_path, capsys):
    action = write_u1(tmp_path / "files", count=20)
    for number in range(1, 21):
        flowmc_adapters.append_field(
            tmp_path / "all.h5",
            flowmc_adapters.read_field(tmp_path / "files" / f"u1.{number}.h5"),
            number,
        )
    documents = []
    for name, files in (("one", "all.h5"), ("many", "files")):
        config = write_config(
            tmp_path / "c.toml", u1_config(tmp_path, ensemble={"files": files, "name": "e"})
        )
        status, document, _ = correlate(capsys, config, "--output", tmp_path / name)
        assert status == 0
        documents.append(document["sections"])
    assert documents[0] == documents[1]
    assert action.beta == 2.0


def test_replicas_are_told_apart(tmp_path):
    for place in ("a/lat.1", "a/lat.2", "b/lat.1", "b/x_7.2"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        np.save(tmp_path / "f.npy", np.zeros((4, 4)))
        shutil.move(tmp_path / "f.npy", tmp_path / place)
    ensemble = StoredEnsemble.of_files([str(tmp_path / "a")])
    assert ensemble.name == "lat" and ensemble.history.lengths == [2]
    both = StoredEnsemble.of_files([str(tmp_path / "a"), str(tmp_path / "b" / "*")])
    replicas = {(one.replica, one.number) for one in both.members}
    assert replicas == {("a_lat", 1), ("a_lat", 2), ("b_lat", 1), ("b_x_7", 2)}
    part = both.selected(first=2)
    assert len(part) == 2
    with pytest.raises(ConfigError, match="there twice"):
        StoredEnsemble.of_files([str(tmp_path / "a" / "lat.1")] * 2)
    with pytest.raises(ConfigError, match="from 7 to None"):
        both.selected(first=7)
    np.save(tmp_path / "nameless.npy", np.zeros((4, 4)))
    with pytest.raises(ConfigError, match="no configuration number"):
        StoredEnsemble.of_files([str(tmp_path / "nameless.npy")])


def test_files_of_another_coupling_are_named(tmp_path, capsys):
    write_u1(tmp_path / "files", beta=2.5, count=12)
    for path in sorted((tmp_path / "files").iterdir()):
        field = flowmc_adapters.read_field(path)
        field.metadata["BETA"] = "2.5"
        flowmc_adapters.write_field(path, field, "hdf5")
    config = write_config(tmp_path / "c.toml", u1_config(tmp_path / "files", derivative=[]))
    status, document, error = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 0 and "say beta = 2.5" in error
    assert any("beta = 2.5" in text for text in document["sections"]["source"]["warnings"])


def test_diagnostics_mark_numbers_as_bounds(tmp_path, capsys):
    """Weights that are too wide, and a charge that does not move, are named and marked."""
    write_u1(tmp_path / "files", count=40)
    tables = u1_config(
        tmp_path / "files",
        measure={"observables": ["plaquette", "topological_charge"]},
        target=[{"beta": 6.0}],
        derivative=[],
    )
    config = write_config(tmp_path / "c.toml", tables)
    status, document, _ = correlate(capsys, config, "--output", tmp_path / "out")
    far = document["sections"]["beta=6.0"]
    assert status == 0 and far["weights"]["beta=6.0"]["is_bound"]
    assert any("fewer than 10 / ESS" in text for text in far["warnings"])
    assert all(entry["is_bound"] for entry in far["results"].values())
    action = Wilson(U1(), (6, 6), beta=2.0)
    cold = tmp_path / "cold"
    rng = torch.Generator().manual_seed(1)
    for number in range(30):
        field = action.cold(1) + 0.01 * torch.randn(action.field_shape(1), generator=rng)
        write_field(cold / f"u1.{number}.h5", field.double(), action, format="hdf5")
    config = write_config(tmp_path / "c.toml", {**tables, "ensemble": {"files": "cold"}})
    status, document, _ = correlate(capsys, config, "--output", tmp_path / "out_cold")
    source = document["sections"]["source"]
    assert source["results"]["topological_charge"]["is_bound"]
    assert any("frozen" in text for text in source["warnings"])
    # The charge along the gradient flow is one as well; the energies beside it are not.
    flowed = {"name": "gradient_flow", "flow_time": 0.5, "points": 2}
    tables = {**tables, "measure": {"observables": [flowed]}, "target": []}
    config = write_config(tmp_path / "c.toml", {**tables, "ensemble": {"files": "cold"}})
    status, document, error = correlate(capsys, config, "--output", tmp_path / "out_flow")
    assert status == 0, error
    results = document["sections"]["source"]["results"]
    frozen = [name for name, one in results.items() if any("frozen" in t for t in one["warnings"])]
    assert [name.rpartition("[")[2] for name in frozen] == ["1,2]"]


def test_rows_count_only_when_they_are_on_the_disk(tmp_path):
    """What a kill leaves behind: rows without their mark are measured again."""
    members = [Member("r", number, "x") for number in (1, 2, 3)]
    path = tmp_path / "series.h5"
    store = SeriesStore.create(path, StoredEnsemble("e", members), {"action": (), "a/b": (2,)})
    store.write(0, {"action": np.ones(1), "a/b": np.ones((1, 2))})
    store.sync()
    store.write(1, {"action": np.full(1, 2.0), "a/b": np.full((1, 2), 2.0)})
    assert measured_before(path) == {("r", 1)}
    with pytest.raises(ValueError, match="missing or unknown"):
        store.write(2, {"action": np.ones(1)})
    store.close()
    assert measured_before(path) == {("r", 1), ("r", 2)}
    more = StoredEnsemble("e", [Member("q", 9, "x"), *members])
    grown = SeriesStore.create(path, more, {"action": (), "a/b": (2,)})
    grown.close()
    assert grown.keys == [("q", 9), ("r", 1), ("r", 2), ("r", 3)]
    assert list(grown.measured) == [False, True, True, False]
    np.testing.assert_array_equal(grown.columns()["a/b"][2], [2.0, 2.0])
    with pytest.raises(ConfigError, match="other columns"):
        SeriesStore.create(path, more, {"action": ()})


@pytest.mark.slow
def test_flows_lead_to_exact_answers(tmp_path, capsys):
    """A flow of the zoo on another lattice than it was trained on: right within 5 sigma, and
    better than reweighting.  The other way its inverse is used."""
    from scipy.special import ive

    def exact(beta, volume=64):
        n = np.arange(-40, 41)
        ratio = ive(n, beta) / ive(0, beta)
        slope = 0.5 * (ive(n - 1, beta) + ive(n + 1, beta)) / ive(0, beta)
        return float(np.sum(ratio ** (volume - 1) * slope) / np.sum(ratio**volume))

    flow = "zoo:u1_2d_residual_b3.000_b3.676"
    for start, end in ((3.0, 3.676), (3.676, 3.0)):
        folder = tmp_path / f"b{start}"
        write_u1(folder, beta=start, count=200, lattice=(8, 8), seed=9)
        tables = {
            "theory": {"action": "wilson", "group": "U(1)", "lattice": [8, 8], "beta": start},
            "ensemble": {"files": str(folder)},
            "measure": {"observables": ["plaquette"]},
            "target": [{"beta": end, "flow": flow, "label": "flowed"}, {"beta": end}],
        }
        config = write_config(tmp_path / "c.toml", tables)
        status, document, _ = correlate(capsys, config, "--output", tmp_path / f"out{start}")
        assert status == 0
        flowed = document["sections"]["flowed"]
        plain = document["sections"][f"beta={end}"]
        for name, truth in (
            ("plaquette", exact(end)),
            ("change of plaquette", exact(end) - exact(start)),
        ):
            result = flowed["results"][name]
            assert abs(result["value"] - truth) < 5 * result["error"], (start, name)
        assert flowed["weights"]["flowed"]["ess"] > 2 * plain["weights"][f"beta={end}"]["ess"]
        change = flowed["results"]["change of plaquette"]
        assert change["gain_reweighting"]["value"] > 1
    # The same flow does not lead elsewhere.
    tables["target"] = [{"beta": 3.2, "flow": flow}]
    config = write_config(tmp_path / "c.toml", tables)
    status, _, error = correlate(capsys, config, "--output", tmp_path / "none")
    assert status == 2 and "[[target]] beta=3.2" in error and "flow" in error


_KILLED = """
import os, signal, sys
from flowmc.cli import main
from flowmc.ensembles import stored
from flowmc.correlate import store
store._SYNC_SECONDS = 0.0
load, left = stored.load_field, [int(sys.argv[1])]
def counted(*arguments, **keys):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return load(*arguments, **keys)
stored.load_field = counted
main(sys.argv[2:])
"""


def test_a_killed_measurement_continues(tmp_path, capsys):
    """SIGKILL in the middle: what was measured stays, and the results are those of one go."""
    write_u1(tmp_path / "files", count=30)
    tables = u1_config(tmp_path / "files")
    tables["ensemble"]["batch"] = 4
    config = write_config(tmp_path / "c.toml", tables)
    command = ["correlate", config, "--output", str(tmp_path / "out")]
    done = subprocess.run(
        forked("-c", _KILLED, 18, *command), env=environment(), capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert len(measured_before(tmp_path / "out" / "series.h5")) == 16
    status, again, error = correlate(capsys, *command[1:], "--resume")
    assert status == 0 and "16 of them are measured already" in error
    status, whole, _ = correlate(capsys, config, "--output", tmp_path / "whole" / "out")
    assert status == 0 and whole == again


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measure": {"observables": ["phi2"]}}, "phi2 is an observable of scalar fields"),
        ({"target": [{"beta": 2.1, "flow": "none.safetensors"}]}, "none.safetensors"),
    ],
)
def test_mistakes_show_before_a_live_chain_runs(tmp_path, capsys, change, words):
    tables = u1_config(tmp_path, **LIVE) | change
    del tables["ensemble"]
    config = write_config(tmp_path / "c.toml", tables)
    status, _, error = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 2 and words in error
    assert not (tmp_path / "out").exists()


REAL = Path(__file__).parents[3] / "shared" / "configs"


@pytest.mark.skipif(not REAL.is_dir(), reason="the files of other codes are not at hand")
def test_real_files_of_four_codes_in_one_ensemble(tmp_path, capsys):
    """NERSC, ILDG, SciDAC and MILC files of 4^3 x 8, one configuration each."""
    for number, name in enumerate(
        (
            "nersc/glu-lat..400",
            "ildg/nissa-L4T8conf",
            "scidac/weak_field.lime",
            "milc/lat.sample.l4448",
        )
    ):
        (tmp_path / "files").mkdir(exist_ok=True)
        shutil.copy(REAL / name, tmp_path / "files" / f"lat.{number}")
    tables = {
        "theory": {"action": "wilson", "group": "SU(3)", "lattice": [4, 4, 4, 8], "beta": 6.0},
        "ensemble": {"files": "files"},
        "target": [{"beta": 6.0001}],
        "measure": {"observables": ["plaquette"]},
    }
    config = write_config(tmp_path / "c.toml", tables)
    status, document, _ = correlate(capsys, config, "--output", tmp_path / "out")
    assert status == 0
    result = document["sections"]["source"]["results"]["plaquette"]
    inspected = [flowmc_adapters.inspect(tmp_path / "files" / f"lat.{n}") for n in range(4)]
    expected = np.mean([one["plaquette"] for one in inspected])
    assert result["value"] == pytest.approx(expected, abs=1e-6)
    # Four configurations have a mean and no error, and the report says so.
    assert result["error"] is None and "too few" in result["warnings"][0]
