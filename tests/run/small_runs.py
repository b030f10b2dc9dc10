"""Short runs that the tests of this directory share."""

import copy
import hashlib
from pathlib import Path

import torch

from flowmc.actions.theory import build_action, describe_theory
from flowmc.config.toml_text import toml_text
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.files import save_flow
from flowmc.flows.models import FlowModel

PHI4 = {
    "theory": {"action": "phi4", "lattice": [4, 4], "m2": -1.0, "lambda": 0.5},
    "chains": {"count": 3, "seed": 7, "block": 2},
    "update": [{"kernel": "hmc", "steps": 3, "target_acceptance": 0.8}],
    "run": {
        "thermalization": 5,
        "updates": 20,
        "measure_every": 2,
        "checkpoint_every": 3,
        "report": False,
    },
}


def config(**changes):
    """Return a copy of PHI4 with keys of its tables replaced: ``config(run={"updates": 3})``."""
    tables = copy.deepcopy(PHI4)
    for name, change in changes.items():
        if isinstance(change, dict):
            tables.setdefault(name, {}).update(change)
        else:
            tables[name] = change
    return tables


def write(path: Path, tables) -> str:
    path.write_text(toml_text(tables))
    return str(path)


def digests(directory: Path) -> dict[str, str]:
    """Return the hashes of all files that must not depend on how a run was interrupted."""
    timed = ("log.jsonl", "provenance.json", "report.html")
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in timed
    }


def save_untrained_flow(path: Path, theory=None, seed: int = 1, **entries) -> None:
    """Write a sampler for the theory of PHI4, with random weights; entries go into its card."""
    action = build_action(theory or PHI4["theory"])
    flow_table, prior_table = {"layers": 2}, {"m2": 1.0}
    torch.manual_seed(seed)
    model = FlowModel(
        build_prior({"name": "free_field", **prior_table}, action),
        build_flow({"name": "affine_coupling", **flow_table}, action),
    )
    card = {
        "flow": {"name": "affine_coupling", "parameters": flow_table},
        "prior": {"name": "free_field", "parameters": prior_table},
        "theory": describe_theory(action),
        **entries,
    }
    save_flow(path, model, card)
