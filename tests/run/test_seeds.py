"""Ensembles without storage: ``[ensemble] format = "seeds"`` and ``flowmc regenerate``."""

from pathlib import Path

import pytest

from flowmc.cli import main
from tests.run.small_runs import config, save_untrained_flow, write

FLOW = "flow.safetensors"
RUN = {"updates": 24, "save_every": 2, "checkpoint_every": 7}
HMC = {"kernel": "hmc", "steps": 3, "target_acceptance": 0.8}
DRAWN = {"kernel": "independence", "flow": FLOW, "proposals": 2, "repeat": 2}
# (theory, updates, chains): of every kind of field, of chains and of draws.
CASES = {
    "scalar": (None, [HMC], {}),
    "with a flow": (None, [HMC, DRAWN], {"start": "flow"}),
    "drawn": (None, [{**DRAWN, "batch_size": 3}], {"start": "flow"}),
    "u1": ({"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 2.0}, [HMC], {}),
    "su3": (
        {"action": "wilson", "group": "SU(3)", "lattice": [2, 2, 2, 2], "beta": 5.0},
        [HMC],
        {"precision": 32},
    ),
}


def tables(case, ensemble):
    theory, updates, chains = CASES[case]
    changes = {"theory": theory} if theory else {}
    made = config(update=updates, chains=chains, run=RUN, ensemble=ensemble, **changes)
    if theory:
        made["theory"] = theory
    return made


def started(folder, case, name="a", ensemble=None, **changes):
    """Run a case in a folder; return the run directory."""
    ensemble = ensemble or {"format": "seeds"}
    if case != "drawn" and ensemble["format"] == "seeds":
        ensemble = {"keep_every": 4, **ensemble}
    made = tables(case, ensemble)
    for table, change in changes.items():
        made[table] = {**made[table], **change}
    if not (folder / FLOW).exists():
        save_untrained_flow(folder / FLOW)
    path = write(folder / f"{name}.toml", made)
    assert main(["run", path, "--output", str(folder / name)]) == 0
    return folder / name


def contents(folder: Path):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".seeds", ".h5")
    }


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_those_that_the_run_would_have_saved(case, tmp_path):
    seeds = started(tmp_path, case)
    saved = started(tmp_path, case, "b", {"format": "hdf5"})
    assert not contents(seeds / "ensemble")
    assert main(["regenerate", str(seeds), "--output", str(tmp_path / "all")]) == 0
    assert contents(tmp_path / "all") == contents(saved / "ensemble") != {}
    some = ["4", "20-24", "--chain", "2", "--output", str(tmp_path / "some")]
    assert main(["regenerate", str(seeds / "ensemble/conf.seeds"), *some]) == 0
    found = contents(tmp_path / "some")
    assert sorted(found) == [f"chain0002/conf.{n}" for n in (20, 22, 24, 4)]
    assert found.items() <= contents(saved / "ensemble").items()
