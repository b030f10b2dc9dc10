"""What `flowmc report` says about ladders: against simulated walkers and the formulas."""

import json
import re

import h5py
import numpy as np
import pytest

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.commands import report
from flowmc.commands.report import summarise
from flowmc.estimators.ladder import expected_round_trip_rate
from flowmc.reports.analysis.kernel_summary import summarise_kernels
from flowmc.reports.words import step_size_text
from tests.estimators.test_ladder_transport import simulate
from tests.run.recorded_runs import drawings_of, invoke, make_run, refuse

REJECTION = [0.75, 0.6]  # of make_run


def replace_walkers(path, rejection, chains, schedule="even_odd"):
    """Let the three replicas exchange with other rates: walkers and counts, all of them new."""
    with h5py.File(path / "measurements.h5", "r+") as file:
        group = file["production"]
        rows = len(group["updates"])
        walkers = simulate(rejection, rows, chains, schedule)
        group["walkers"][...] = walkers
        moved = np.diff(np.concatenate([np.tile(np.arange(3), (1, chains, 1)), walkers]), axis=0)
        for pair in range(2):
            tried = np.tile((np.arange(rows)[:, None] + pair + 1) % 2, (1, chains))
            first, second = moved[..., pair] != 0, moved[..., pair + 1] != 0
            group[f"kernels/pair[{pair}]/tried"][...] = tried
            group[f"kernels/pair[{pair}]/accepted"][...] = first & second & (tried > 0)


def test_transport_of_independent_exchanges(tmp_path):
    exchange = summarise(make_run(tmp_path / "run", replicas=3, rows=6000, chains=8))["exchange"]
    assert abs(exchange["barrier"] - sum(REJECTION)) < 5 * exchange["barrier_error"]
    rate = exchange["round_trip_rate"]
    assert rate["expected_per_update"] == pytest.approx(
        expected_round_trip_rate(REJECTION), rel=0.05
    )
    assert rate["optimal_per_update"] == pytest.approx(1 / (2 + 2 * 1.35), rel=0.02)
    difference = rate["per_update"] - rate["expected_per_update"]
    assert abs(difference) < 5 * rate["per_update_error"]
    # Eight ladders, half a second per update.
    assert rate["per_second"] == pytest.approx(rate["per_update"] * 8 / 0.5, rel=1e-6)
    assert not rate["is_lower_bound"]
    assert exchange["updates_per_round_trip"] == pytest.approx(3 / rate["per_update"])
    matrix = np.array(exchange["transition_matrix"])
    # Each pair is tried in every second update.
    expected = np.array([[0.875, 0.125, 0], [0.125, 0.675, 0.2], [0, 0.2, 0.8]])
    np.testing.assert_allclose(matrix, expected, atol=0.02)
    assert exchange["relaxation_updates"] == pytest.approx(
        -1 / np.log(np.sort(np.linalg.eigvalsh(expected))[-2]), rel=0.1
    )
    assert 0 < exchange["position_tau_int"] < 20
    diffusivity = exchange["replica_diffusion"]["diffusivity"]
    assert len(diffusivity) == 2 and diffusivity[0] < diffusivity[1]
    diffusion = exchange["replica_diffusion"]
    np.testing.assert_allclose(
        diffusion["up_fraction"], diffusion["expected_up_fraction"], atol=0.05
    )
    assert exchange["bottleneck"] is None


@pytest.mark.usefixtures("undrawn")
def test_bottleneck_is_named(tmp_path, capsys):
    path = make_run(tmp_path / "run", replicas=3, rows=4000, vector=False)
    replace_walkers(path, [0.1, 0.95], 4)
    bottleneck = summarise(path)["exchange"]["bottleneck"]
    assert bottleneck["pair"] == 1
    assert "beta=4.5 -> beta=3" in bottleneck["reason"] and "if all pairs" in bottleneck["reason"]
    assert invoke(path) == 0
    assert "bottleneck: beta=4.5 -> beta=3" in capsys.readouterr().out
    # Too few trips: by the rejection rate.
    path = make_run(tmp_path / "short", replicas=3, rows=200, vector=False)
    replace_walkers(path, [0.1, 0.995], 4)
    bottleneck = summarise(path)["exchange"]["bottleneck"]
    assert bottleneck["pair"] == 1 and "rejected" in bottleneck["reason"]


def test_running_walkers_make_no_bottleneck(tmp_path):
    """Nothing is rejected: the share falls at the ends alone, and that is as it should be."""
    path = make_run(tmp_path / "run", replicas=3, rows=2000, vector=False)
    replace_walkers(path, [0.0, 0.0], 4)
    exchange = summarise(path)["exchange"]
    assert exchange["bottleneck"] is None
    assert exchange["round_trip_rate"]["per_update"] == pytest.approx(0.5, abs=0.01)
    assert exchange["replica_diffusion"]["up_fraction"] == pytest.approx([1, 0.5, 0], abs=0.01)


def test_random_schedule_expects_fewer_trips(tmp_path):
    path = make_run(tmp_path / "run", replicas=3, rows=4000, vector=False)
    before = summarise(path)["exchange"]["round_trip_rate"]["expected_per_update"]
    with open(path / "config.toml", "a") as file:
        file.write('\n[[update]]\nkernel = "exchange"\nschedule = "random"\n')
    rate = summarise(path)["exchange"]["round_trip_rate"]["expected_per_update"]
    # 2n instead of 2 in the denominator.
    assert 1 / rate - 1 / before == pytest.approx(2)


@pytest.mark.usefixtures("undrawn")
def test_distant_rows_bound_the_rate(tmp_path, capsys):
    path = make_run(tmp_path / "run", replicas=3, rows=500, measure_every=5, vector=False)
    with h5py.File(path / "measurements.h5", "r+") as file:
        for pair in range(2):
            for key in ("tried", "accepted"):
                file[f"production/kernels/pair[{pair}]/{key}"][...] *= 5
    document = summarise(path)
    assert document["exchange"]["round_trip_rate"]["is_lower_bound"]
    assert invoke(path) == 0
    printed = capsys.readouterr().out
    assert "at least" in printed and "5 updates apart" in printed


@pytest.mark.usefixtures("undrawn")
def test_replicas_in_a_table(tmp_path, capsys):
    path = make_run(tmp_path / "run", replicas=3, rows=2000, vector=False)
    assert invoke(path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^replica +plaquette +topological_charge +tau_int of", printed, re.M)
    assert re.search(r"^beta=6 \(target\) +0\.\d+\(\d+\)", printed, re.M)
    assert re.search(r"^beta=3 +0\.7\d*\(\d+\)", printed, re.M)
    page = (path / "report.html").read_text()
    assert "All replicas" in page and "Tuning" not in page


def test_tuned_couplings_are_those_of_production(tmp_path):
    path = make_run(tmp_path / "run", replicas=3, rows=100, vector=False)
    with h5py.File(path / "measurements.h5", "r+") as file:
        for phase in ("thermalization", "production"):
            rows = len(file[f"{phase}/updates"])
            columns = np.tile([6.0, 4.25, 3.0], (rows, 1))
            if phase == "thermalization":
                columns[:50, 1] = 4.5
            file[f"{phase}/couplings/beta"] = columns
    assert RecordedRun.open(path).replica_name(1) == "beta=4.25"
    document = summarise(path)
    assert [entry["beta"] for entry in document["replicas"]["couplings"]] == [6.0, 4.25, 3.0]
    assert document["exchange"]["pairs"][0]["couplings"] == [{"beta": 6.0}, {"beta": 4.25}]
    page = report.write_report(path).read_text()
    drawings = drawings_of(page)
    assert "Tuning of the ladder" in page
    assert len(drawings) == 12


@pytest.mark.parametrize(
    ("written", "replicas"),
    [
        # Every number of rows and every number of replicas once; all pairs in the slow tests.
        pytest.param(written, replicas, marks=() if written + replicas == 4 else pytest.mark.slow)
        for written in (1, 2, 9)
        for replicas in (2, 3)
    ],
)
def test_ladders_that_have_just_begun(tmp_path, capsys, written, replicas):
    path = make_run(
        tmp_path / "run", rows=20, written=written, thermalization=0, replicas=replicas, chains=2
    )
    assert invoke(path) == 0
    capsys.readouterr()
    assert invoke(path, "--json") == 0
    exchange = json.loads(capsys.readouterr().out, parse_constant=refuse)["exchange"]
    assert len(exchange["replica_diffusion"]["diffusivity"]) == replicas - 1
    assert (exchange["transition_matrix"] is None) == (written == 1)


def test_parts_in_the_order_of_the_ladder(tmp_path):
    path = make_run(tmp_path / "run", replicas=3, rows=40, vector=False)
    with h5py.File(path / "measurements.h5", "r+") as file:
        kernels = file["production/kernels"]
        for old, new in (("pair[0]", "pair[9]"), ("pair[1]", "pair[10]")):
            kernels.move(old, new)
    found = summarise_kernels(RecordedRun.open(path), [])
    assert [name for name in found if name.startswith("pair")] == ["pair[9]", "pair[10]"]


def test_equal_step_sizes_stand_once():
    assert step_size_text([0.1, 0.1]) == "step size 0.1"
    assert step_size_text([0.1, 0.125]) == "step size 0.1, 0.125"
