"""The campaigns run, shortened, and compare with exact numbers."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowmc.cli import main
from flowmc.run.toml_text import toml_text

CAMPAIGNS = Path(__file__).parents[2] / "examples" / "campaigns"


@pytest.mark.parametrize("name", ["hmc", "plain", "residual", "flow", "sampler"])
def test_campaign_runs(name, tmp_path, capsys):
    table = tomllib.loads((CAMPAIGNS / f"u1_16x16_b7_{name}.toml").read_text())
    table["run"] |= {"thermalization": 1, "updates": 4}
    table["chains"]["count"] = 2
    config = tmp_path / f"{name}.toml"
    config.write_text(toml_text(table))
    assert main(["run", str(config), "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["updates"] == 4
    kernels = report["kernels"].values()
    assert all(entry.get("non_finite", 0) == 0 for entry in kernels)


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
