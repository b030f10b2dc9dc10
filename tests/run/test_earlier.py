"""A run that an earlier version began goes on to the numbers that it would have had.

``earlier/`` was written by the commands below when flows still stood in ``flowmc.flows``, before
their modules moved; ``rows.json`` holds what the same run gave without an interruption.

    flowmc run run.toml --output stopped      (ended by SIGTERM after update 35)
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np

from flowmc.cli import main

EARLIER = Path(__file__).with_name("earlier")


def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch):
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    assert main(["run", "run.toml", "--output", "stopped", "--resume"]) == 0
    expected = json.loads(Path("rows.json").read_text())
    with h5py.File("stopped/measurements.h5", locking=False) as file:
        for path, rows in expected.items():
            # Not to the last bit: another processor may sum in another order.
            np.testing.assert_allclose(file[path][()], rows, rtol=1e-9, err_msg=path)
