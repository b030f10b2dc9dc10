"""Small directories and files of every kind that has a page, their pages and JSON documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.cli import main
from flowmc.commands.report import compare
from flowmc.config.toml_text import toml_text
from flowmc.reports.analysis.summary import analyse_run
from flowmc.reports.analysis.training import TrainingRecord
from flowmc.reports.as_html import as_html
from flowmc.reports.as_json import strict_json
from flowmc.reports.chain import run_document, run_json
from flowmc.reports.comparison import comparison_document
from flowmc.reports.document import Document
from flowmc.reports.training import training_document, training_json
from tests.run.recorded_runs import make_run
from tests.run.small_runs import save_untrained_flow
from tests.run.test_combine import tables_of, write_draws
from tests.run.test_correlate import u1_config, write_u1
from tests.run.test_flow_report import make_flow_run


class Page(NamedTuple):
    """A page and the JSON document of the command that writes it."""

    path: Path
    document: dict[str, Any]


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


def written(folder: Path) -> Page:
    """Return what a command has written into its directory."""
    return Page(folder / "report.html", json.loads((folder / "summary.json").read_text()))


def page_of(folder: Path, name: str, document: Document, found: dict) -> Page:
    """Write a page; its JSON document is that of the command."""
    path = folder / f"{name}.html"
    path.write_text(as_html(document))
    return Page(path, json.loads(strict_json(found)))


def run_pages(folder: Path) -> dict[str, Page]:
    """Make the pages of runs, each of which is analysed once, and of two of them compared."""
    chain = make_run(folder / "chain", charge=True, independence=True)
    add_polyakov(chain)
    flow = make_flow_run(folder / "flow", rows=300)
    ladder = make_run(folder / "ladder", replicas=3, rows=400, vector=False)
    runs = {"chain": chain, "ladder": ladder, "gradient flow": flow}
    analyses = {name: analyse_run(RecordedRun.open(path)) for name, path in runs.items()}
    two = [analyses["chain"], analyses["ladder"]]
    compared = compare(two)
    found = dict(zip(("chain", "ladder"), compared["runs"], strict=True))
    found["gradient flow"] = run_json(analyses["gradient flow"])
    pages = {
        name: page_of(folder, name, run_document(one), found[name])
        for name, one in analyses.items()
    }
    comparison = page_of(folder, "comparison", comparison_document(two, compared), compared)
    return {**pages, "comparison": comparison}


def correlate_page(folder: Path) -> Page:
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
    return written(folder / "out")


def combine_page(folder: Path) -> Page:
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
    return written(folder / "out")


def free_energy_pages(folder: Path) -> dict[str, Page]:
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
        pages[f"free energy, {name}"] = written(folder / name)
    return pages


def training_page(folder: Path) -> Page:
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
    record = TrainingRecord.open(folder / "flow.safetensors")
    return page_of(folder, "training", training_document(record), training_json(record))


def make_pages(folder: Path) -> dict[str, Page]:
    """Make one page of every kind; return them by name."""
    pages = run_pages(folder)
    makers = {"correlate": correlate_page, "combine": combine_page, "training": training_page}
    for name, make in makers.items():
        (folder / name).mkdir()
        pages[name] = make(folder / name)
    (folder / "free").mkdir()
    return {**pages, **free_energy_pages(folder / "free")}
