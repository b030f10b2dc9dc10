"""What a kernel owns of every chain: checkpointed, kept or dropped when another moves the field."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from flowmc.actions import Phi4
from flowmc.cli import main
from flowmc.kernels import HMC, Cycle, State
from flowmc.kernels.base import begin
from tests.run.small_runs import config, digests, write
from tests.run.tally import Tally

HERE = Path(__file__).parent
# The second tally sees the field of the first, the first one that of HMC.
UPDATES = [{"kernel": "hmc", "steps": 2}, *2 * [{"kernel": "carrying_tally:Tally"}]]
LADDER = {"update": [*UPDATES, {"kernel": "exchange"}], "ladder": {"m2": [-1.0, -0.9]}}


@pytest.mark.parametrize("ladder", [False, True], ids=["one replica", "ladder"])
def test_a_stopped_run_goes_on_with_what_kernels_own(ladder, tmp_path, monkeypatch, capsys):
    shutil.copy(HERE / "tally.py", tmp_path / "carrying_tally.py")
    tables = config(run={"updates": 12, "checkpoint_every": 1}, update=UPDATES)
    path = write(tmp_path / "a.toml", tables | LADDER if ladder else tables)
    monkeypatch.chdir(tmp_path)
    assert main(["run", path, "--output", "whole"]) == 0
    monkeypatch.setenv("FLOWMC_TEST_STOP", "21")
    with contextlib.suppress(KeyboardInterrupt):
        main(["run", path, "--output", "parts"])
    monkeypatch.delenv("FLOWMC_TEST_STOP")
    assert digests(tmp_path / "parts") != digests(tmp_path / "whole")
    assert main(["run", path, "--output", "parts", "--resume"]) == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    if not ladder:
        capsys.readouterr()
        assert main(["report", "whole", "--json"]) == 0
        kernels = json.loads(capsys.readouterr().out)["kernels"]
        first, second = (kernels[name]["values"]["known"]["value"] for name in ("tally", "tally_2"))
        # HMC moves some chain of a block in nearly every update: what is of the old field goes.
        assert first < 0.5 and second == 1


def test_what_states_carry():
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    rng = torch.Generator().manual_seed(1)
    kernel = Cycle([HMC(action, steps=2), Tally(action)])
    state = begin(kernel, action.hot(3, rng))
    for _ in range(4):
        state, _ = kernel.step(state, rng)
    assert state.carried["tally.steps"].value.tolist() == [4, 4, 4]
    assert set(state.moved(state.field).carried) == {"tally.steps"}
    with pytest.raises(ValueError, match=r"one entry per chain, \(3, ...\), but x has the shape"):
        state.with_carried("x", torch.zeros(2))
    with pytest.raises(ValueError, match="cannot carry 'a/b'"):
        State(state.field).with_carried("a/b", torch.zeros(3))
