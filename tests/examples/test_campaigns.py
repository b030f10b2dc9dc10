"""The campaigns run, shortened, and compare with exact numbers."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowmc.cli import main
from flowmc.config.toml_text import toml_text

CAMPAIGNS = Path(__file__).parents[2] / "examples" / "campaigns"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    return importlib.import_module


def short_run(campaign, name, folder, updates=8, **theory):
    table = campaign.configuration(name)
    table["theory"] |= theory
    table["run"] |= {"thermalization": 1, "updates": updates, "measure_every": 2, "report": False}
    table["chains"] |= {"count": 2, "block": 2}
    config = folder / f"{name}.toml"
    config.write_text(toml_text(table))
    assert main(["run", str(config), "--output", str(folder / name)]) == 0


@pytest.mark.parametrize(
    ("module", "theory"),
    [
        ("u1_ladders", {}),
        pytest.param("u1_external", {}, marks=pytest.mark.slow),
        pytest.param("su3_ladders", {"lattice": [4, 4, 4, 4]}, marks=pytest.mark.slow),
    ],
)
def test_campaign(module, theory, script, tmp_path):
    """All runs of a campaign, and the table of what they say."""
    costs, campaign = script("ladder_costs"), script(module).CAMPAIGN
    runs = []
    for name in campaign.names:
        short_run(campaign, name, tmp_path, **theory)
        runs.append(costs.read(name, tmp_path, [0.9, 1.0, 1.1]))
        kernels = runs[-1].report["kernels"].values()
        assert all(entry.get("non_finite", 0) == 0 for entry in kernels)
        assert runs[-1].recorded.updates == 8
    lines = [line.split(" | ") for line in campaign.table(runs).splitlines()]
    assert [line[0].removeprefix("| ") for line in lines[2:]] == list(campaign.names)
    assert len({len(line) for line in lines}) == 1
    by_name = {
        run.name: dict(zip(lines[0], line, strict=True))
        for run, line in zip(runs, lines[2:], strict=True)
    }
    assert by_name["hmc"]["round trips / s"] == "-"
    for run in runs:
        if run.recorded.replicas > 1:
            rate = run.report["exchange"]["round_trip_rate"]["per_update"]
            shown = by_name[run.name]["round trips / s"].removeprefix(">= ")
            # An update takes a second.
            assert float(shown.partition("(")[0]) == pytest.approx(rate, abs=1e-2)


def test_costs(script, tmp_path):
    """tau is counted in updates, whatever the distance of measurements; errors are propagated."""
    costs, campaign = script("ladder_costs"), script("u1_ladders").CAMPAIGN
    short_run(campaign, "sampler", tmp_path, updates=40)
    found = costs.read("sampler", tmp_path, [0.9, 1.0, 1.1])
    charge = found.report["observables"]["topological_charge"]
    assert found.tau == (2 * charge["tau_int"], 2 * charge["tau_int_error"])
    exact = replace(found, tau=(3.0, 0.3), seconds=(2.0, 0.1))
    assert exact.cost == pytest.approx((12.0, 12.0 * math.hypot(0.1, 0.05)))


@pytest.mark.slow
def test_script(tmp_path):
    command = [sys.executable, str(CAMPAIGNS / "u1_ladders.py"), "--scale", "0.002"]
    command += ["--rounds", "2", "--output", str(tmp_path), "--only", "hmc", "flow"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| hmc", "| flow"]
    # Swaps of the flow ladder: 68 %, of 32 ladders in 40 updates.
    swaps = float(lines[3].split(" | ")[2].removesuffix(" %"))
    assert 55 < swaps < 80


@pytest.mark.slow
def test_the_phi4_line(script, tmp_path, monkeypatch):
    """All ways of sampling the smallest size, in this process, with times that are given."""
    line = script("phi4_line")

    def run(table, output):
        table["run"] |= {"thermalization": 5}
        table["chains"] |= {"count": 8, "block": 8}
        config = output.with_suffix(".toml")
        config.write_text(toml_text(table))
        assert main(["run", str(config), "--output", str(output)]) == 0
        return 1.0

    monkeypatch.setattr(line, "run", run)
    (tmp_path / "timings_8.json").write_text(
        json.dumps({"hmc": [2e-4] * 3, "flow": [1e-3] * 3, "hmc + flow": [1.2e-3, 1.2e-3, 1.3e-3]})
    )
    found = [line.measure(8, kind, tmp_path, 0.03) for kind in line.KINDS]
    assert [measured.seconds[0] for measured in found] == [2e-4, 1e-3, 1.2e-3]
    assert found[1].acceptance > 0.9
    table = [line.row(measured, found[0], 100.0) for measured in found]
    assert len({tuple(row) for row in table}) == 1
    saved = found[0].cost[0] - found[1].cost[0]
    assert table[1]["paid after"] == (f"{100 / saved:.2g}" if saved > 0 else "never")
    assert found[1].cost[0] == pytest.approx(2 * found[1].tau[0] * 1e-3)
