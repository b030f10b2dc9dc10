"""`flowmc report` on synthetic run directories with known contents."""

import json
import math
import re

import h5py
import numpy as np
import pytest
from scipy.special import erfc

from flowmc import zoo
from flowmc.commands import report
from flowmc.commands.report import summarise
from flowmc.registry import ConfigError
from tests.run.recorded_runs import autoregressive, drawings_of, invoke, make_run, refuse


def test_promised_keys_and_exact_values(tmp_path, capsys):
    path = make_run(tmp_path / "run", rows=4000)
    assert invoke(path, "--json") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out, parse_constant=refuse)
    assert not printed.err
    assert document["updates"] == 4000 and document["chains"] == 4
    assert set(document["kernels"]["hmc"]) >= {"acceptance", "seconds", "calls"}
    # Gaussian energy errors of mean 0.3: erfc(sqrt(0.3) / 2); 16000 trials, five sigma.
    assert document["kernels"]["hmc"]["acceptance"] == pytest.approx(
        erfc(math.sqrt(0.3) / 2), abs=5 * math.sqrt(0.25 / 16000)
    )
    assert document["kernels"]["hmc"]["calls"] == 4100
    assert document["kernels"]["hmc"]["step_size"] == [0.1]
    plaquette = document["observables"]["plaquette"]
    assert set(plaquette) >= {"mean", "error", "tau_int", "tau_int_error", "samples"}
    assert plaquette["samples"] == 16000
    assert abs(plaquette["mean"] - 0.9) < 5 * plaquette["error"]
    assert abs(plaquette["tau_int"] - 4.5) < 5 * plaquette["tau_int_error"]
    assert plaquette["error"] == pytest.approx(0.01 * math.sqrt(9 / 16000), rel=0.2)
    correlator = document["observables"]["correlator"]
    assert [len(correlator[key]) for key in ("mean", "error", "tau_int")] == [5, 5, 5]
    assert document["warnings"] == []
    cost = document["cost"]["observables"]["plaquette"]
    expected = 2 * plaquette["tau_int"] * 0.5 / 4
    assert cost["seconds_per_independent_sample"] == pytest.approx(expected, rel=1e-6)
    assert document["cost"]["shares"]["hmc"] == pytest.approx(0.7)
    assert "replicas" not in document


def test_running_directory_counts_written_rows_only(tmp_path):
    path = make_run(tmp_path / "run", rows=1000, written=400, measure_every=5)
    document = summarise(path)
    assert document["updates"] == 2000
    assert document["updates_requested"] == 5000
    assert document["observables"]["plaquette"]["samples"] == 1600
    assert "not complete" in document["warnings"][-1]
    assert document["cost"]["seconds_per_measurement"] == pytest.approx(0.5 * 5 / 4)


def test_ladder(tmp_path):
    path = make_run(tmp_path / "run", replicas=3, rows=3000)
    document = summarise(path)
    exchange = document["exchange"]
    first, second = exchange["pairs"]
    assert first["couplings"] == [{"beta": 6.0}, {"beta": 4.5}]
    assert abs(first["acceptance"] - 0.25) < 5 * first["error"]
    assert abs(second["work_mean"] - 0.7) < 5 * second["work_mean_error"]
    assert second["erfc_estimate"] == pytest.approx(erfc(math.sqrt(0.7) / 2), rel=0.1)
    assert abs(second["symmetry_pull"]) < 4
    assert exchange["round_trips"] > 100
    fraction = exchange["replica_diffusion"]["up_fraction"]
    assert fraction[0] == 1 and fraction[-1] == 0 and 0.2 < fraction[1] < 0.8
    assert set(document["kernels"]) >= {"hmc", "hmc[0]", "hmc[2]", "exchange", "pair[1]"}
    assert document["kernels"]["exchange"]["acceptance"] == pytest.approx(0.325, abs=0.03)
    means = [entry["mean"] for entry in document["replicas"]["observables"]["plaquette"]]
    assert means == pytest.approx([0.9, 0.82, 0.74], abs=0.005)


def test_frozen_charge_is_a_bound(tmp_path):
    document = summarise(make_run(tmp_path / "run", charge=True))
    charge = document["observables"]["topological_charge"]
    assert charge["is_lower_bound"] and charge["hops"] == 1
    assert any("topological charge changed once" in text for text in document["warnings"])


def test_independence_diagnostics(tmp_path):
    document = summarise(make_run(tmp_path / "run", independence=True))
    kernel = document["kernels"]["independence"]
    assert kernel["ess"] == pytest.approx(math.exp(-0.49), abs=0.02)
    assert kernel["longest_rejection_run"] >= 8
    # Gaussian ln w: the chain's weights are shifted by s^2, and q covers p.
    assert kernel["coverage"] == pytest.approx(1, abs=0.05)
    assert kernel["max_weight_share"] < 0.01
    assert not document["warnings"]


def test_wrong_energy_errors_are_caught(tmp_path):
    """Planted: energy errors that a wrong force would give."""
    document = summarise(make_run(tmp_path / "run", energy_offset=0.2))
    assert any("<exp(-dH)>" in text and "from 1" in text for text in document["warnings"])


@pytest.mark.parametrize("spread", [2.0, 4.0, 5.0, 7.0])
def test_wide_energy_errors_of_a_sound_chain_are_no_alarm(tmp_path, spread):
    """dH of mean s^2 / 2 and width s is in equilibrium, and <exp(-dH)> of a sample far below 1."""
    document = summarise(make_run(tmp_path / "run", energy_error=spread**2 / 2, vector=False))
    assert not any("dH" in text for text in document["warnings"])
    assert document["kernels"]["hmc"]["exp_minus_energy_error"]["mean"] is not None


def test_wide_energy_errors_of_a_wrong_force_are_caught(tmp_path):
    path = make_run(tmp_path / "run", energy_error=2.0, energy_offset=0.5, rows=4000, vector=False)
    assert any("2 P(dH < 0)" in text for text in summarise(path)["warnings"])


def with_weights(path, change_proposals, change_held):
    """Write a run with an independence kernel, and change its log-weights."""
    make_run(path, independence=True, vector=False)
    rng = np.random.default_rng(43)
    with h5py.File(path / "measurements.h5", "r+") as file:
        kernel = file["production/kernels/independence"]
        for name, change in (("log_weights", change_proposals), ("log_weight", change_held)):
            kernel[name][...] = change(kernel[name][()], rng)
    document = summarise(path)
    return document["kernels"]["independence"], document["warnings"]


def unchanged(values, rng):
    return values


def test_a_flow_that_wastes_proposals_has_dropped_no_mode(tmp_path):
    """40 % of its proposals are where the target is not: <1/w>_p <w>_q is 0.6, nothing is lost."""

    def wasted(values, rng):
        return np.where(rng.random(values.shape) < 0.4, values - 30.0, values)

    kernel, warnings = with_weights(tmp_path / "run", wasted, unchanged)
    assert kernel["coverage"] == pytest.approx(0.6, abs=0.05)
    assert kernel["covered_share"] == pytest.approx(1, abs=0.05)
    assert not warnings


def test_a_dropped_mode_is_caught(tmp_path):
    """Half of the chain's time is spent where the flow proposes nothing."""

    def elsewhere(values, rng):
        return np.where(rng.random(values.shape) < 0.5, values + 30.0, values)

    kernel, warnings = with_weights(tmp_path / "run", unchanged, elsewhere)
    assert kernel["covered_share"] == pytest.approx(0.5, abs=0.05)
    assert any("dropped a mode" in text for text in warnings)


def test_a_wrong_density_shows_as_coverage_above_one(tmp_path):
    kernel, warnings = with_weights(tmp_path / "run", unchanged, lambda values, rng: values - 0.4)
    assert kernel["coverage"] == pytest.approx(math.exp(0.4), abs=0.08)
    assert any("cannot be above 1" in text for text in warnings)


def test_wrong_jacobian_is_caught(tmp_path):
    """Planted: works shifted as by a wrong Jacobian break the symmetry of exact exchanges."""
    path = make_run(tmp_path / "run", replicas=3)
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/kernels/pair[0]/work"][...] += 0.5
    document = summarise(path)
    assert any("pair[0]" in text and "Jacobian" in text for text in document["warnings"])


def test_drift_is_caught(tmp_path):
    path = make_run(tmp_path / "run")
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/observables/plaquette"][:150] -= 0.015
    assert any("thermalisation was too short" in text for text in summarise(path)["warnings"])


def test_drift_is_caught_in_a_run_whose_errors_are_bounds(tmp_path):
    path = make_run(tmp_path / "run", rows=200, vector=False)
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/observables/plaquette"][:40] -= 0.3
    document = summarise(path)
    assert document["observables"]["plaquette"]["is_lower_bound"]
    assert any("thermalisation was too short" in text for text in document["warnings"])
    sound = summarise(make_run(tmp_path / "sound", rows=200, vector=False))
    assert not any("thermalisation" in text for text in sound["warnings"])


def test_comparison_with_training(tmp_path, capsys):
    slow = make_run(tmp_path / "slow", seed=1, coefficient=0.9)
    flows = {"flows": [{"name": "a", "card": {"training": {"seconds": 100.0}}}]}
    fast = make_run(tmp_path / "fast", seed=2, coefficient=0.0, provenance=flows)
    assert invoke(slow, fast, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    first, second = document["observables"]["plaquette"]
    assert first["gain"] == 1
    assert abs(second["gain"] - 19) < 5 * second["gain_error"]
    samples = document["runs"][1]["cost"]["observables"]["plaquette"]["independent_samples"]
    assert second["with_training"] == pytest.approx(
        second["seconds_per_independent_sample"] + 100.0 / samples
    )
    saved = first["seconds_per_independent_sample"] - second["seconds_per_independent_sample"]
    assert second["break_even_samples"] == pytest.approx(100.0 / saved)
    assert invoke(slow, fast) == 0
    assert "break-even" in capsys.readouterr().out


def test_training_includes_that_of_the_flows_it_began_from(tmp_path, capsys):
    """Of two flows with one ancestor, that is counted once."""
    own = zoo.card("phi4_64x8_kappa")["training"]
    assert own["config"]["training"]["start_from"] == "zoo:phi4_16x8_kappa"
    before = zoo.card("phi4_16x8_kappa")["training"]["seconds"]
    other = {"seconds": 7.0, "ancestors": [{"flow": "zoo:phi4_16x8_kappa", "seconds": before}]}
    flows = {"a": {"card": {"training": own}}, "b": {"card": {"training": other}}}
    path = make_run(tmp_path / "run", provenance={"flows": flows})
    document = summarise(path)
    assert document["cost"]["training_seconds"] == pytest.approx(own["seconds"] + before + 7.0)
    assert before > 5 * own["seconds"]

    lost = {"seconds": 7.0, "config": {"training": {"start_from": "elsewhere/gone.safetensors"}}}
    path = make_run(tmp_path / "lost", provenance={"flows": {"a": {"card": {"training": lost}}}})
    assert any("gone.safetensors" in text for text in summarise(path)["warnings"])


def test_comparison_marks_bounds_and_machines(tmp_path, capsys):
    """A frozen charge: its cost is a lower bound, and so is what it gains to leave it."""
    one = {"ranks": 1, "threads": 2, "device": "cpu", "cpu": "x"}
    slow = make_run(tmp_path / "slow", charge=True, provenance=one)
    two = {**one, "ranks": 4, "flows": [{"card": {"training": {"seconds": 100.0}}}]}
    fast = make_run(tmp_path / "fast", charge=True, provenance=two)
    with h5py.File(fast / "measurements.h5", "r+") as file:
        charge = file["production/observables/topological_charge"]
        charge[...] = np.random.default_rng(42).integers(-2, 3, size=charge.shape)
    assert invoke(slow, fast, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    first, second = document["observables"]["topological_charge"]
    assert first["is_lower_bound"] and not second["is_lower_bound"]
    assert second["gain_bound"] == "lower" and second["break_even_bound"] == "upper"
    assert [machine["ranks"] for machine in document["machines"]] == [1, 4]
    assert "ranks 1, 4" in document["warnings"][0] and "threads" not in document["warnings"][0]
    assert invoke(fast, slow) == 0
    printed = capsys.readouterr().out
    line = next(x for x in printed.splitlines() if x.startswith("topological") and "slow" in x)
    assert "<= 0." in line
    assert "were not given the same machine" in printed


def test_cost_of_a_vector_is_not_that_of_its_unluckiest_component(tmp_path):
    """20 components of one tau_int: the largest estimate is high by two of its errors."""
    path = make_run(tmp_path / "run", rows=1000)
    rng = np.random.default_rng(41)
    values = np.concatenate([autoregressive(rng, (1000, 4, 1, 1), 0.8) for _ in range(20)], axis=3)
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/observables/many"] = values
    cost = summarise(path)["cost"]
    entry = cost["observables"]["many"]
    exact = 9.0 * cost["seconds_per_measurement"]  # 2 tau_int = (1 + a) / (1 - a)
    # The error is that of one component; the mean of twenty scatters less.
    assert abs(entry["seconds_per_independent_sample"] - exact) < entry["error"]


def test_text_and_page(tmp_path, capsys):
    path = make_run(tmp_path / "run", replicas=3, rows=400)
    assert invoke(path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"plaquette +0\.\d+\(\d+\)", printed)
    assert "round trips" in printed and "Does it pay?" in printed
    assert re.search(r"\d+ of \d+ checks passed", printed)
    page = (path / "report.html").read_text()
    assert "plaquette" in page and "topological charge" in page.lower()
    # Self-contained: nothing is fetched, parts of drawings refer to each other.
    assert not re.findall(r"(?:src|href)\s*=\s*(?!\"data:|\"#)\S+", page)
    assert not re.search(r"<script|<link|@import|url\((?!#)", page)
    drawings = drawings_of(page)
    # Each for a wide and a narrow page.
    assert page.count("<figure") == 6 and len(drawings) == 12
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(identifiers)


@pytest.mark.parametrize("written", [1, 9])
def test_page_of_a_run_that_has_just_begun(tmp_path, written):
    """Nothing but a few rows: no error known, no autocorrelation function, but a page."""
    path = make_run(tmp_path / "run", rows=20, written=written, thermalization=0, independence=True)
    assert "not complete" in report.write_report(path).read_text()


def test_unusable_directories(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    unwritten = make_run(tmp_path / "unwritten", written=0)
    damaged = make_run(tmp_path / "damaged")
    (damaged / "measurements.h5").write_bytes(b"nothing")
    for path, words in [
        (tmp_path / "absent", "not a directory"),
        (tmp_path / "empty", "no measurements.h5"),
        (unwritten, "no production measurement"),
        (damaged, "cannot be read"),
    ]:
        assert invoke(path, "--json") == 2
        printed = capsys.readouterr()
        assert not printed.out and words in printed.err
        with pytest.raises(ConfigError, match=words):
            summarise(path)


def test_nothing_but_measurements(tmp_path):
    """Log, configuration and checkpoint lost: the physics is still reported."""
    path = make_run(tmp_path / "run")
    for name in ("log.jsonl", "config.toml", "provenance.json", "checkpoint.h5"):
        (path / name).unlink()
    document = summarise(path)
    assert document["kernels"]["hmc"]["seconds"] is None
    assert document["cost"]["observables"] == {}
    assert document["observables"]["plaquette"]["error"] > 0


def test_series_of_not_a_number_is_null_in_json(tmp_path, capsys):
    path = make_run(tmp_path / "run", rows=3, chains=2, vector=False)
    assert invoke(path, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["observables"]["plaquette"]["error"] is None


@pytest.mark.usefixtures("undrawn")
def test_updates_are_left_out_as_thermalisation(tmp_path, capsys):
    """A drift that the thermalisation did not cover, until `--from` says where it ended."""
    path = make_run(tmp_path / "run", rows=2000, measure_every=2)
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/observables/plaquette"][:300] -= 0.015
        kept = file["production/observables/plaquette"][300:]
    assert any("thermalisation was too short" in text for text in summarise(path)["warnings"])
    assert invoke(path, "--from", 600, "--json") == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert not document["warnings"]
    assert document["updates_left_out"] == 600 and document["updates"] == 3400
    assert document["observables"]["plaquette"]["samples"] == kept.size
    assert document["observables"]["plaquette"]["mean"] == pytest.approx(kept.mean(), abs=1e-12)
    # What is left out of a run that goes on is left out of what is planned, too.
    other = make_run(tmp_path / "other", rows=1000, written=400)
    assert invoke(other, "--from", 100, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["updates"] == 300 and "300 of 900 updates" in document["warnings"][-1]
    for first in (-1, 4000):
        assert invoke(path, "--from", first) == 2
        assert f"--from {first} leaves no measurement" in capsys.readouterr().err
    assert invoke(path, "--from", 600) == 0
    assert "left out before" in (path / "report.html").read_text()


def test_left_out_updates_of_a_ladder(tmp_path):
    from flowmc.chains.storage.recorded import RecordedRun
    from flowmc.reports.analysis.summary import analyse_run

    path = make_run(tmp_path / "run", replicas=3, rows=400)
    run = RecordedRun.open(path).from_update(150)
    assert run.production.walkers.shape[0] == 250 and run.thermalization.rows == 250
    analysis = analyse_run(run)
    assert analysis.exchange["round_trips"] < 200
    assert len(analysis.series["plaquette"][0]) == 250


def test_whether_other_kernels_pay_is_said_as_far_as_one_run_knows(tmp_path):
    document = summarise(make_run(tmp_path / "hmc", rows=2000))
    assert document["pays"]["verdict"] == "hmc alone"

    # Of the time, 70 % are HMC, 20 % flow proposals, the rest measurements and files.
    path = make_run(tmp_path / "both", rows=4000, independence=True)
    document = summarise(path)
    pays, observables = document["pays"], document["observables"]
    assert pays["verdict"] == "undecided" and pays["hmc_share"] == pytest.approx(0.8)
    entry = pays["observables"]["plaquette"]
    tau = observables["plaquette"]["tau_int"]
    assert entry["hmc_alone_must_exceed_tau_int"] == pytest.approx(tau / 0.8)
    assert entry["hmc_alone_must_exceed_tau_int_error"] == pytest.approx(
        observables["plaquette"]["tau_int_error"] / 0.8
    )
    assert "cannot tell" in pays["answer"][-1] and "flowmc report" in pays["answer"][-1]

    # Few accepted proposals cannot be what makes 16,000 / 9 samples independent.
    with h5py.File(path / "measurements.h5", "r+") as file:
        accepted = file["production/kernels/independence/accepted"]
        accepted[...] = 0
        accepted[100, 0] = 5
    document = summarise(path)
    assert document["pays"]["verdict"] == "only costs"
    assert "only costs" in document["pays"]["answer"][0]
    assert "leave out flow proposals" in document["pays"]["next"][0]
    # As many as a quarter of them could.
    with h5py.File(path / "measurements.h5", "r+") as file:
        file["production/kernels/independence/accepted"][:150] = 1
    assert summarise(path)["pays"]["verdict"] == "undecided"


def test_hmc_of_the_target_alone_is_a_part_of_a_ladder(tmp_path):
    path = make_run(tmp_path / "ladder", replicas=3, rows=2000)
    pays = summarise(path)["pays"]
    # 70 % HMC, whose steps are 10, 12 and 15; 10 % measurements and files.
    assert pays["hmc_share"] == pytest.approx(0.7 * 10 / 37 + 0.1 / 3)
    assert "replica exchange" in pays["answer"][0]


def test_comparison_says_what_pays(tmp_path, capsys):
    slow = make_run(tmp_path / "slow", seed=1, coefficient=0.9, vector=False)
    fast = make_run(tmp_path / "fast", seed=2, coefficient=0.0, vector=False)
    frozen = make_run(tmp_path / "frozen", seed=3, charge=True, vector=False)
    hops = make_run(tmp_path / "hops", seed=4, charge=True, vector=False)
    with h5py.File(hops / "measurements.h5", "r+") as file:
        rows = file["production/observables/topological_charge"]
        rows[...] = np.random.default_rng(5).integers(-1, 2, size=rows.shape)
    for first, second, words in [
        (slow, fast, "it pays, "),
        (fast, slow, "it does not pay, the gain is 0.0"),
        (slow, slow, "not decided, the gain is 1"),
        (frozen, hops, "it pays, at least "),
        (hops, frozen, "it does not pay, the gain is at most 0.0"),
        (frozen, frozen, "not decided, tau_int is a lower bound in both"),
    ]:
        assert invoke(first, second, "--json") == 0
        (text,) = json.loads(capsys.readouterr().out)["pays"]
        assert words in text, (first, second)
    page = tmp_path / "comparison.html"
    assert invoke(slow, fast) == 0 and not page.exists()
    assert invoke(slow, fast, "--page", page) == 0
    text = page.read_text()
    assert "it pays" in text and "disagree" not in text
    assert "it pays" in capsys.readouterr().out
    (tmp_path / "directory").mkdir()
    assert invoke(slow, "--page", tmp_path / "directory") == 2
    assert "was not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ({}, []),
        ({"charge": True}, ["topological_charge"]),
        ({"energy_offset": 0.2}, ["hmc"]),
    ],
)
def test_checks_are_listed_whether_they_passed_or_not(tmp_path, options, failed):
    document = summarise(make_run(tmp_path / "run", independence=True, **options))
    checks = document["checks"]
    assert sorted({check["subject"] for check in checks if not check["passed"]}) == failed
    assert {check["subject"] for check in checks} >= {"plaquette", "hmc", "independence"}
    # Every warning is about a check that is listed.
    for text in document["warnings"]:
        assert text.partition(":")[0] in failed
    passed = [check for check in checks if check["passed"]]
    assert any(
        check["what"] == "first fifth against second half" and "σ, chance" in check["value"]
        for check in passed
    )


@pytest.mark.usefixtures("undrawn")
def test_components_of_complex_numbers_are_re_and_im(tmp_path, capsys):
    path = make_run(tmp_path / "run", rows=100, vector=False)
    with h5py.File(path / "measurements.h5", "r+") as file:
        for phase in ("thermalization", "production"):
            shape = file[f"{phase}/observables/plaquette"].shape
            values = np.random.default_rng(2).normal(size=(*shape, 2))
            file[f"{phase}/observables/polyakov_loop(axis=0)"] = values
    assert invoke(path) == 0
    printed = capsys.readouterr().out
    assert "Re polyakov_loop(axis=0)" in printed and "Im polyakov_loop(axis=0)" in printed
    page = (path / "report.html").read_text()
    assert "<td>Re</td>" in page and "<td>Im</td>" in page
