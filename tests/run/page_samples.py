"""Small directories and files of every kind that has a page, and their pages."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from flowmc.cli import main
from flowmc.commands.report import write_report
from flowmc.config.toml_text import toml_text
from tests.run.small_runs import save_untrained_flow
from tests.run.test_combine import tables_of, write_draws
from tests.run.test_correlate import u1_config, write_u1
from tests.run.test_flow_report import make_flow_run
from tests.run.test_report import make_run

FREE = {"action": "free", "lattice": [4, 4], "m2": 0.5}
HMC = {"kernel": "hmc", "trajectory": 1.0, "steps": 4, "jitter": 0.3}
CHAINS = {"count": 12, "measurements": 20, "thermalization": 20, "separation": 2}


def command(*words: str | Path) -> None:
    """Run a command of flowmc that has to succeed."""
    status = main([str(word) for word in words])
    assert status == 0, words


def write(path: Path, tables: dict) -> Path:
    path.write_text(toml_text(tables))
    return path


def add_polyakov(path: Path) -> None:
    """Add a complex observable to a run."""
    rng = np.random.default_rng(2)
    with h5py.File(path / "measurements.h5", "r+") as file:
        for phase in ("thermalization", "production"):
            shape = file[f"{phase}/observables/plaquette"].shape
            values = rng.normal(size=(*shape, 2))
            values[np.isnan(file[f"{phase}/observables/plaquette"][()])] = np.nan
            file[f"{phase}/observables/polyakov_loop"] = values


def correlate_page(folder: Path) -> Path:
    write_u1(folder / "files")
    tables = u1_config(
        folder / "files",
        derivative=[
            {"method": "difference", "coupling": "beta", "steps": [0.05, 0.1]},
            {"method": "linear", "coupling": "beta"},
        ],
    )
    tables["measure"]["observables"].append("polyakov_loop")
    command("correlate", write(folder / "c.toml", tables), "--output", folder / "out")
    return folder / "out" / "report.html"


def combine_page(folder: Path) -> Path:
    ensembles = []
    for seed, beta in enumerate((1.4, 2.0, 2.6)):
        write_draws(folder / f"b{beta}", beta, 30, seed)
        ensembles.append({"beta": beta, "files": str(folder / f"b{beta}")})
    tables = tables_of(
        ensembles,
        measure={"observables": ["plaquette", "action"]},
        target=[{"beta": [1.7, 2.4]}],
        analysis={"report": True},
    )
    command("correlate", write(folder / "c.toml", tables), "--output", folder / "out")
    return folder / "out" / "report.html"


def free_energy_pages(folder: Path) -> dict[str, Path]:
    phi4 = {"action": "phi4", "lattice": [4, 4], "m2": -1.0, "lambda": 0.5}
    save_untrained_flow(folder / "flow.safetensors")
    configurations = {
        "annealing": {
            "theory": FREE,
            "free_energy": {"method": "annealing", "seed": 3, "samples": 300, "batch": 300},
            "protocol": {"m2": [2.0, 0.5], "steps": 4},
            "update": [HMC],
            "chains": CHAINS,
        },
        "line": {
            "theory": FREE,
            "free_energy": {"method": "chain", "seed": 3},
            "protocol": {"m2": [2.0, 1.0, 0.5]},
            "update": [HMC],
            "chains": CHAINS,
        },
        "weights": {
            "theory": phi4,
            "free_energy": {"method": "q", "seed": 3, "samples": 300},
            "flow": {"file": str(folder / "flow.safetensors")},
        },
    }
    pages = {}
    for name, tables in configurations.items():
        config = write(folder / f"{name}.toml", tables)
        command("free-energy", config, "--output", folder / name)
        pages[f"free energy, {name}"] = folder / name / "report.html"
    return pages


def training_page(folder: Path) -> Path:
    """Write what a training leaves, with a step that was skipped and a killed process's line."""
    save_untrained_flow(folder / "flow.safetensors")
    rng = np.random.default_rng(1)
    with open(folder / "flow.log.jsonl", "w") as log:
        for step in range(10, 1010, 10):
            entry = {
                "step": step,
                "loss": -20 + 400 / step + 0.1 * rng.normal(),
                "ess": 0.8 - 8 / step,
                "gradient_norm": None if step == 500 else 50 / step,
                "learning_rate": 1e-3 * (1 - step / 2000),
                "seconds": 0.1 * step,
                "skipped": int(step >= 500),
                "density_error": 0.0,
                "max_weight_share": 1 / step,
            }
            log.write(json.dumps(entry) + "\n")
        log.write('{"step": 10')
    command("report", folder / "flow.safetensors")
    return folder / "flow.report.html"


def make_pages(folder: Path) -> dict[str, Path]:
    """Make one page of every kind; return their paths by name."""
    chain = make_run(folder / "chain", charge=True, independence=True)
    add_polyakov(chain)
    ladder = make_run(folder / "ladder", replicas=3, rows=400)
    compared = folder / "comparison.html"
    command("report", chain, ladder, "--page", compared)
    pages = {
        "chain": write_report(chain),
        "ladder": write_report(ladder),
        "gradient flow": write_report(make_flow_run(folder / "flow", rows=300)),
        "comparison": compared,
    }
    makers = {"correlate": correlate_page, "combine": combine_page, "training": training_page}
    for name, page_of in makers.items():
        (folder / name).mkdir()
        pages[name] = page_of(folder / name)
    (folder / "free").mkdir()
    return {**pages, **free_energy_pages(folder / "free")}
