"""Two flows of equal weights in one cycle, and runs whose flows are no longer what they were."""

import json
import math

import h5py
import numpy as np
import pytest

from flowmc.actions import FreeScalar
from flowmc.actions.theory import describe_theory
from flowmc.cli import main
from flowmc.flows import GaussianPrior
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import save_flow
from flowmc.flows.models import FlowModel
from tests.run.small_runs import config, save_untrained_flow, write

ACTION = FreeScalar([2, 2], m2=3.0)
# <phi^2> = (1/V) sum_p 1 / (2 (p^2 + m^2)), with p^2 = 0, 4, 4, 8.
PHI2 = (1 / 3 + 1 / 7 + 1 / 7 + 1 / 11) / 8
BATCHES = 128


class Stretch(Flow):
    """y = factor * x: a user's flow without weights."""

    def __init__(self, action, *, factor: float):
        super().__init__()
        self.factor, self.volume = factor, action.volume

    def forward(self, x, log_density):
        return self.factor * x, log_density - self.volume * math.log(self.factor)

    def inverse(self, y, log_density):
        return y / self.factor, log_density + self.volume * math.log(self.factor)


def save(path, factor):
    save_flow(
        path,
        FlowModel(GaussianPrior(ACTION, scale=0.45), Stretch(ACTION, factor=factor)).double(),
        {
            "flow": {"name": f"{__name__}:Stretch", "parameters": {"factor": factor}},
            "prior": {"name": "gaussian", "parameters": {"scale": 0.45}},
            "theory": describe_theory(ACTION),
        },
    )


def test_two_samplers_of_equal_weights_do_not_share_a_density(tmp_path):
    """<phi^2> within 5.5 errors (4e-8): from exact independent chains, in batches."""
    for name, bound in (("a", 0.8), ("b", 2.0)):
        save(tmp_path / f"{name}.safetensors", bound)
    kernel = {"kernel": "independence", "proposals": 1}
    tables = {
        "theory": {"action": "free", "lattice": [2, 2], "m2": 3.0},
        "chains": {"count": 64 * BATCHES, "block": 64 * BATCHES, "seed": 5},
        "update": [{**kernel, "flow": f"{name}.safetensors"} for name in "ab"],
        "run": {"thermalization": 20, "updates": 10, "report": False},
        "measure": {"observables": ["phi2"]},
    }
    command = ["run", write(tmp_path / "a.toml", tables), "--output", str(tmp_path / "o")]
    assert main([*command, "--trust", __name__]) == 0
    with h5py.File(tmp_path / "o" / "measurements.h5", "r") as file:
        rows = np.asarray(file["production/observables/phi2"])
    means = rows.reshape(rows.shape[0], BATCHES, -1).mean((0, 2))
    error = means.std(ddof=1) / BATCHES**0.5
    assert error < 0.01 * PHI2
    assert abs(means.mean() - PHI2) < 5.5 * error


@pytest.mark.parametrize("old", ["0123456789abcdef", 32 * "0"])
def test_resume_with_another_digest_is_refused(old, tmp_path, capsys):
    save_untrained_flow(tmp_path / "f.safetensors")
    tables = config(update=[{"kernel": "independence", "flow": "f.safetensors"}])
    command = ["run", write(tmp_path / "a.toml", tables), "--output", str(tmp_path / "o")]
    assert main(command) == 0
    provenance = tmp_path / "o" / "provenance.json"
    content = json.loads(provenance.read_text())
    content["flows"]["f.safetensors"]["fingerprint"] = old
    provenance.write_text(json.dumps(content))
    assert main([*command, "--resume"]) == 2
    said = capsys.readouterr().err
    assert ("older flowmc" in said) == (len(old) == 16) and "f.safetensors" in said
