"""Two samplers on different replicas, one per rank, against exact values."""

import h5py
import numpy as np
import pytest

from flowmc.actions.theory import build_action, describe_theory
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.files import save_flow
from flowmc.flows.models import FlowModel
from tests.mpi import launch, needs_mpi
from tests.parallel.test_rank_invariance import PROGRAM
from tests.run.small_runs import write

MASSES = [0.5, 1.5]
THEORY = {"action": "free", "lattice": [2], "m2": MASSES[0]}
CHAINS = 2000


def save_gaussian(path, m2):
    """Write a sampler of independent sites, wider than the field at either mass."""
    action = build_action(THEORY | {"m2": m2})
    prior = {"name": "gaussian", "parameters": {"scale": 1.1}}
    model = FlowModel(
        build_prior({"name": "gaussian", "scale": 1.1}, action),
        build_flow({"name": "identity"}, action),
    )
    flow = {"name": "identity", "parameters": {}}
    save_flow(path, model, {"flow": flow, "prior": prior, "theory": describe_theory(action)})


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2])
def test_samplers_on_different_replicas_are_independent(tmp_path, ranks):
    """<S> of a free field is half the number of sites, at every mass."""
    for mass in MASSES:
        save_gaussian(tmp_path / f"{mass}.safetensors", mass)
    sampler = {"kernel": "independence", "proposals": 1}
    tables = {
        "theory": THEORY,
        "chains": {"count": CHAINS, "block": CHAINS, "seed": 3},
        "update": [
            *(sampler | {"flow": f"{mass}.safetensors"} for mass in MASSES),
            {"kernel": "exchange"},
        ],
        "ladder": {"m2": MASSES},
        "run": {"updates": 60, "thermalization": 20, "report": False},
    }
    done = launch(ranks, PROGRAM, tmp_path, write(tmp_path / "a.toml", tables))
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "a" / "measurements.h5") as file:
        means = 2 * file["production/observables/action"][()].mean(0)
    # The chains are independent.  5.5 standard errors are exceeded with a probability of 4e-8.
    errors = means.std(0, ddof=1) / np.sqrt(CHAINS)
    assert (abs(means.mean(0) - 1.0) < 5.5 * errors).all(), (means.mean(0), errors)
