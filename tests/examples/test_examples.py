"""Every example runs, shortened, through the command line; the main one also on real files."""

import json
import math
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

from flowmc.chains.config import load_config
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.flows.cards.files import load_flow
from flowmc.flows.cards.matching import orient
from tests.processes import environment, forked

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
REAL = ROOT.parent / "shared" / "configs"
CORRELATIONS = sorted(p.name for p in EXAMPLES.glob("*correlate*.toml"))
COMBINATIONS = sorted(p.name for p in EXAMPLES.glob("*.toml") if "[[ensemble]]" in p.read_text())
RUNS = sorted(
    p.name
    for p in EXAMPLES.glob("*.toml")
    if "[run]" in p.read_text() and p.name not in (*CORRELATIONS, *COMBINATIONS)
)
PAGES = ["su3_hybrid.toml", "u1_exchange.toml"]
assert set(PAGES) <= set(RUNS)
TRAININGS = sorted(
    str(p.relative_to(EXAMPLES))
    for p in EXAMPLES.rglob("*.toml")
    if "[training]" in p.read_text() and "[free_energy]" not in p.read_text()
)
# Of a family of trainings that differ in couplings and sizes, one runs every time.
MOSTLY_SLOW = [
    *(f"zoo/su3_4d_{step}.toml" for step in ("b5.70_b5.85", "b5.85_b6.00", "b6.00_b6.30")),
    *(f"zoo/su3_4d_b6.00_defect2_{c}.toml" for c in ("0.31_0.00", "0.55_0.31")),
    *(f"zoo/su3_4d_b6.00_defect2_{c}.toml" for c in ("0.77_0.55", "1.00_0.77")),
    *(f"zoo/phi4_{n}x{n}_l{lam}.toml" for n, lam in ((12, 5.276), (20, 4.807))),
    *("zoo/phi4_32x32_l4.572.toml", "zoo/phi4_64x64_l4.398.toml", "zoo/phi4_64x8_k0.3.toml"),
    *(f"zoo/phi4_{volume}_k{k}.toml" for volume in ("16x8", "64x8") for k in (0.275, 0.28)),
    # Conditional, as phi4_conditional.toml
    *("zoo/phi4_16x8_kappa.toml", "zoo/phi4_64x8_kappa.toml"),
    "zoo/u1_2d_b7.00_defect4_0.34_0.00.toml",
    *(f"zoo/u1_2d_residual_{b}.toml" for b in ("b3.676_b4.532", "b4.532_b5.620", "b5.620_b7.000")),
]
assert set(MOSTLY_SLOW) <= set(TRAININGS)
FREE_ENERGIES = sorted(p.name for p in EXAMPLES.glob("*.toml") if "[free_energy]" in p.read_text())
CAMPAIGNS = sorted(p.name for p in EXAMPLES.glob("campaigns/*.toml") if "[run]" in p.read_text())
# Real 4^3 x 8 SU(3) files of four codes: they fit the main example as they are.
FITTING = [
    "nersc/glu-lat..400",
    "nersc/qlua-random-gauge.nersc",
    "ildg/nissa-L4T8conf",
    "scidac/weak_field.lime",
    "milc/lat.sample.l4448",
]


def shortened(name: str, folder: Path, report: bool = True, **chains: str) -> Path:
    """Write a copy of an example that takes seconds, its modules beside it; return its path."""
    table = tomllib.loads((EXAMPLES / name).read_text())
    if "run" in table:
        table["run"] |= {"thermalization": 1, "updates": 2, "report": report}
        table["chains"] |= {"count": min(2, table["chains"].get("count", 1)), **chains}
        if "file" in table["chains"] and not chains:
            table["chains"]["file"] = str(EXAMPLES / table["chains"]["file"])
        if "save_every" in table["run"]:
            table["run"]["save_every"] = 1
        for update in table["update"]:
            if "repeat" in update:
                update["repeat"] = 1
    if "training" in table and "free_energy" not in table:
        batch = max(
            4, table["training"].get("couplings_per_batch", 0), 2 + 2 * len(table.get("size", []))
        )
        table["training"] |= {"steps": 2, "warmup": 0, "batch": batch, "evaluate_samples": 32}
        if "ensemble" in table:
            table["ensemble"] = {"files": str(folder)}
            for number in range(5):
                field = np.random.default_rng(number).normal(size=table["theory"]["lattice"])
                np.save(folder / f"phi.{number}.npy", field)
        if "exchange" in table:
            table["exchange"] |= {"chains": 4, "thermalization": 2}
        if "chains" in table:
            table["chains"] |= {"count": 4, "thermalization": 2}
    if "free_energy" in table:
        table["free_energy"]["samples"] = 32
        table.get("chains", {}).update(count=8, thermalization=2, measurements=10, separation=1)
        table.get("training", {}).update(steps=2, batch=8)
        if "steps" in table.get("protocol", {}):
            table["protocol"]["steps"] = 2
    path = folder / Path(name).name
    path.write_text(toml_text(table))
    for module in (EXAMPLES / name).parent.glob("*.py"):
        shutil.copy(module, folder)
    return path


@pytest.mark.parametrize(
    ("name", "page"),
    [
        # The page takes longer than such a run: fast are one of a ladder and one of a file.
        *((name, name in PAGES) for name in RUNS),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in RUNS if name not in PAGES),
    ],
)
def test_run_example(name, page, tmp_path, capsys):
    config = shortened(name, tmp_path, report=page)
    output = tmp_path / "run"
    assert main(["run", str(config), "--output", str(output)]) == 0
    assert not page or (output / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    assert main(["report", str(output), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["updates"] == 2
    assert all(entry["samples"] > 0 for entry in report["observables"].values())
    if list(output.glob("ensemble/*.seeds")):
        capsys.readouterr()
        assert main(["regenerate", str(output), "--check", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["configurations"] == 4


@pytest.mark.parametrize(
    "name",
    [
        n if n == "phi4_correlate.toml" else pytest.param(n, marks=pytest.mark.slow)
        for n in CORRELATIONS
    ],
)
def test_correlate_example(name, tmp_path, capsys):
    path = shortened(name, tmp_path)
    table = tomllib.loads(path.read_text())
    # Enough configurations for the coefficients of all vector fields.
    updates = {"su3": 18, "phi4_conditional": 4}.get(name.partition("_correlate")[0], 30)
    table["run"] |= {"updates": updates, "measure_every": 1}
    table["run"].pop("save_every", None)
    path.write_text(toml_text(table))
    output = tmp_path / "out"
    assert main(["correlate", str(path), "--output", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["configurations"] == updates * table["chains"].get("count", 1)
    sections = document["sections"]
    for method in {entry["method"] for entry in table["derivative"]}:
        assert next(value for key, value in sections.items() if method in key)["results"]
    assert (output / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combine_example(name, tmp_path, capsys):
    path = shortened(name, tmp_path)
    table = tomllib.loads(path.read_text())
    table["run"] |= {"thermalization": 10, "updates": 25, "measure_every": 1}
    path.write_text(toml_text(table))
    output = tmp_path / "out"
    assert main(["correlate", str(path), "--output", str(output), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["ensembles"]) == len(table["ensemble"])
    assert document["configurations"] == 25 * 2 * len(table["ensemble"])
    sections = document["sections"]
    assert len(sections) == 1 + len(table["ensemble"]) + len(table["target"][0]["beta"])
    assert all(section["results"] for section in sections.values())
    assert (output / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in MOSTLY_SLOW else n for n in TRAININGS],
)
def test_training_example(name, tmp_path, capsys):
    for library in ("zuko", "nflows", "normflows"):
        if name == f"extending/{library}_train.toml":
            pytest.importorskip(library)
    config = shortened(name, tmp_path)
    output = tmp_path / "flow.safetensors"
    assert main(["train", str(config), "--output", str(output)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(output), "--samples", "16", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["samples"] == 16


@pytest.mark.parametrize("name", FREE_ENERGIES)
def test_free_energy_example(name, tmp_path, capsys):
    config = shortened(name, tmp_path)
    output = tmp_path / "run"
    assert main(["free-energy", str(config), "--output", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert math.isfinite(result["log_z"]) and result["log_z_error"] > 0
    assert (output / "report.html").stat().st_size > 5_000


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_campaign_configuration(name):
    """Campaigns take hours: only their tables are checked, and that the flows fit."""
    config = load_config(EXAMPLES / "campaigns" / name)
    actions = config.actions
    flows = config.ladder.flows if config.ladder else []
    for flow, first, second in zip(flows, actions, actions[1:], strict=False):
        if flow != "identity":
            source = flow if flow.startswith("zoo:") else config.path(flow)
            loaded = load_flow(source, lattice=first.lattice)
            orient(loaded.card, loaded.flow, first, second)


def test_comparison_of_the_phi4_examples(tmp_path, capsys):
    outputs = []
    for kind in ("hmc", "hybrid"):
        config = shortened(f"phi4_{kind}.toml", tmp_path, report=False)
        outputs.append(str(tmp_path / kind))
        assert main(["run", str(config), "--output", outputs[-1]]) == 0
    capsys.readouterr()
    assert main(["report", *outputs]) == 0
    assert "susceptibility" in capsys.readouterr().out


@pytest.mark.parametrize("name", FITTING)
def test_main_example_continues_real_files(name, tmp_path, capsys):
    source = REAL / name
    if not source.exists():
        pytest.skip(f"real configuration files are not here: {source} is missing")
    config = shortened("su3_hybrid.toml", tmp_path, report=False, file=str(source))
    output = tmp_path / "run"
    assert main(["run", str(config), "--output", str(output)]) == 0
    written = sorted((output / "ensemble").iterdir())
    assert len(written) == 2
    capsys.readouterr()
    assert main(["inspect", "--json", *map(str, written)]) == 0
    for report in json.loads(capsys.readouterr().out):
        assert report["format"] == "nersc"
        assert report["dims"] == [4, 4, 4, 8]
        assert report["checksum"]["ok"]
        assert report["unitarity_error"] < 1e-12


def test_file_benchmark_runs():
    script = EXAMPLES / "benchmarks" / "file_throughput.py"
    result = subprocess.run(
        forked(script, "--quick", "--rounds", 1),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "16x16x16x16" in result.stdout


def quick_benchmark(name, *arguments, folder="benchmarks"):
    """Run a benchmark with --quick; return what it prints."""
    script = EXAMPLES / folder / f"{name}.py"
    result = subprocess.run(
        forked(script, "--quick", *arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(table):
    """Return the cells of the rows of a printed table, without its head."""
    return [line.split("|") for line in table.splitlines() if line.startswith("| ")][2:]


def test_training_step_benchmark_runs():
    assert quick_benchmark("training_step").count("| 4x4 |") == 9


@pytest.mark.slow
def test_optimisers_benchmark_runs():
    rows = rows_of(quick_benchmark("optimisers"))
    assert len(rows) == 2 and all(0 < float(row[3].partition("(")[0]) <= 1 for row in rows)


@pytest.mark.slow
def test_time_to_ess_benchmark_runs():
    rows = rows_of(quick_benchmark("time_to_ess"))
    assert [row[4].strip() for row in rows] == ["11", "11"]
    assert float(rows[1][6].partition("(")[0]) > 0.5  # begins with what the zoo's flow knows


def test_gains_script_runs():
    (row,) = rows_of(quick_benchmark("gains", "--only", "2d", folder="derivatives"))
    assert float(row[4].partition("(")[0]) > 1  # the fields do take noise away


@pytest.mark.slow
def test_free_energies_script_runs():
    result = subprocess.run(
        forked(EXAMPLES / "free_energies.py", "--quick", "--only", "su3"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 12  # two of the head, ten estimators
    assert all(line.count("|") == 7 for line in lines)


@pytest.mark.slow
def test_kappa_line_script_runs():
    """On 16x8, where it is fast, and compares with that lattice."""
    done = subprocess.run(
        forked(EXAMPLES / "phi4_kappa_line.py", "--lattice", "16x8", "--samples", 64),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 0.")]
    assert len(rows) >= 4 and all(line.count("|") == 8 for line in rows)
    # Five standard deviations of 64 draws and of the references where the flow is good, 2e-6.
    pulls = {line.split("|")[1].strip(): float(line.split("|")[5]) for line in rows}
    assert all(abs(pulls[kappa]) < 5 for kappa in ("0.2", "0.25", "0.3"))


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("charge_history.py", ["--updates", "4"], "HMC and 4 proposals of a flow"),
        ("ladder_walkers.py", ["--updates", "4"], "walkers, one of them in colour"),
        ("zoo_ess.py", [], "64x64"),
    ],
)
def test_the_pictures_of_the_documents(tmp_path, script, options, words):
    """`docs/figures` is from these scripts."""
    picture = tmp_path / "a.svg"
    command = [str(EXAMPLES / script), str(picture), *options]
    done = subprocess.run(
        forked(*command), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = picture.read_text()
    assert words in text and "<svg" in text
