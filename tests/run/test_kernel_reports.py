"""What a user's kernel declares: its columns, and its lines in text, page and JSON."""

import json

import h5py
import numpy as np
import pytest

import flowmc
from flowmc import chains
from flowmc.actions import Phi4
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.io import write_field
from flowmc.kernels import Reported
from flowmc.random import stream
from flowmc.registry import ConfigError

KERNELS = """
import os
import torch
from flowmc.kernels import HMC, Cycle, Info, Kernel, Reported, SignFlip, State

class Noisy(Kernel):
    name = "noisy"
    title = "noisy <determinant>"
    reports = (
        Reported("residual", "largest residual", "MeV", reduce="max"),
        Reported("iterations", "solver iterations", reduce="sum"),
        Reported("trial", "trial determinant", "GeV", per_proposal=3),
    )
    def __init__(self, action, *, undeclared: bool = False, short: bool = False, late: int = 0):
        self.undeclared, self.short, self.late, self.steps = undeclared, short, late, 0
    def init(self, field):
        return State(field)
    def step(self, state, rng):
        one = torch.ones(state.chains, dtype=torch.float64)
        draw = torch.rand(state.chains, generator=rng, dtype=torch.float64)
        trial = draw[:, None] + torch.tensor([0.0, 10.0, 20.0])
        values = {"residual": draw, "iterations": 7 * one, "trial": trial}
        self.steps += 1
        is_late = 0 < self.late < self.steps and "FLOWMC_TEST_MENDED" not in os.environ
        if self.undeclared or is_late:
            values["solver_time"] = one
        if self.short:
            values["trial"] = trial[:, :2]
        return state, Info(torch.ones(state.chains, 1, dtype=torch.bool), values)

class OtherHMC(Kernel):
    name = "other"
    def __init__(self, action):
        self.inside = Noisy(action)
        self.inside.name = "noisy"
        self.inside.reports = (*Noisy.reports[:2], Reported("trial", "x", per_proposal=2))
        self.cycle = Cycle([self.inside])
    def reports_of_parts(self):
        return self.cycle.reports_of_parts()
    def init(self, field):
        return self.cycle.init(field)
    def step(self, state, rng):
        return self.cycle.step(state, rng)

class Nested(OtherHMC):
    name = "nested"
    def __init__(self, action):
        self.cycle = Cycle([SignFlip(action), Noisy(action)])
"""


def configuration(*updates):
    return {
        "theory": {"action": "phi4", "lattice": [4, 4], "m2": -1.0, "lambda": 1.0},
        "chains": {"count": 2, "block": 1, "start": "hot", "seed": 4},
        "update": [{"kernel": "hmc", "steps": 4}, *updates],
        "run": {"thermalization": 2, "updates": 12, "measure_every": 2, "report": False},
        "measure": {"observables": ["phi2"]},
    }


def run(folder, tables, *options):
    (folder / "run.toml").write_text(toml_text(tables))
    command = ["run", str(folder / "run.toml"), "--output", str(folder / "out"), *options]
    return main(command)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "own_reports.py").write_text(KERNELS)
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_declared_values_have_columns_and_lines(folder, capsys):
    tables = configuration({"kernel": "own_reports:Noisy", "repeat": 2})
    tables["run"]["updates"] = 80
    assert run(folder, tables) == 0
    out = folder / "out"
    with h5py.File(out / "measurements.h5") as file:
        group = file["production/kernels/noisy"]
        rows = {name: group[name][()] for name in ("residual", "iterations", "trial")}
        assert group.attrs["title"].decode() == "noisy <determinant>"
        assert group.attrs["update"] == b"noisy"
        assert dict(group["residual"].attrs) == {
            "title": b"largest residual",
            "unit": b"MeV",
            "reduction": b"max",
            "in_report": True,
        }
    # Two updates of two repetitions between rows.
    assert (rows["iterations"] == 28).all()
    assert rows["trial"].shape == (40, 2, 6)
    assert np.abs(np.diff(rows["trial"][..., :3]) - 10).max() < 1e-12
    assert (rows["residual"] > rows["trial"][..., 0]).all()
    capsys.readouterr()
    assert main(["report", str(out), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["kernels"]["noisy"]["values"]
    assert values["residual"]["value"] == rows["residual"].max()
    assert (values["residual"]["unit"], values["residual"]["error"]) == ("MeV", None)
    assert values["iterations"]["value"] == 28 * 80
    assert values["trial"]["value"] == pytest.approx(rows["trial"].mean(), rel=1e-12)
    assert values["trial"]["error"] > 0 and values["trial"]["title"] == "trial determinant"
    assert main(["report", str(out)]) == 0
    text, page = capsys.readouterr().out, (out / "report.html").read_text()
    for said in (text, page):
        assert f"largest residual = {rows['residual'].max():.2g} MeV" in said
        assert "solver iterations = 2,240" in said and "trial determinant = " in said
    assert "Noisy &lt;determinant&gt;" in page


def test_kernels_inside_a_kernel_report_by_their_names(folder, capsys):
    assert run(folder, configuration({"kernel": "own_reports:Nested"})) == 0
    with h5py.File(folder / "out" / "measurements.h5") as file:
        assert set(file["production/kernels"]) == {"hmc", "sign_flip", "noisy"}
        assert file["production/kernels/noisy"].attrs["update"] == b"nested"
    capsys.readouterr()
    assert main(["report", str(folder / "out"), "--json"]) == 0
    assert {"nested", "noisy", "sign_flip"} <= set(json.loads(capsys.readouterr().out)["kernels"])


@pytest.mark.parametrize(
    ("updates", "fragments"),
    [
        ([{"kernel": "own_reports:Noisy", "undeclared": True}], ["noisy", "'solver_time'", "Rep"]),
        ([{"kernel": "own_reports:Noisy", "short": True}], ["noisy", "'trial'", "(1, 3)"]),
        (
            [{"kernel": "own_reports:Noisy"}, {"kernel": "own_reports:OtherHMC"}],
            ["noisy and other", "'trial'", "3 proposals", "2 proposals"],
        ),
    ],
    ids=["undeclared", "shape", "one name for two"],
)
def test_what_is_not_as_declared_is_refused(folder, capsys, updates, fragments):
    assert run(folder, configuration(*updates)) == 2
    said = capsys.readouterr().err
    assert said.startswith("flowmc: error: ") and said.count("\n") == 1
    assert all(fragment in said for fragment in fragments), said
    assert not (folder / "out").exists()


def test_what_is_not_declared_is_found_wherever_it_happens(folder, monkeypatch, capsys):
    """With the last checkpoint as it was, in one sentence and with the status of the first step."""
    tables = configuration({"kernel": "own_reports:Noisy", "late": 14})
    # Of two blocks, after one step that only tries the kernel: in the seventh update.
    tables["run"]["checkpoint_every"] = 4
    assert run(folder, tables) == 2
    out = folder / "out"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("flowmc: error: update 7: noisy: the info of a step has a value ")
    assert f"the last good checkpoint, update 4, is in {out / 'checkpoint.h5'}" in said
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stop", "unusable")
    # A kernel that is mended goes on, to what it would have been from the start.
    monkeypatch.setenv("FLOWMC_TEST_MENDED", "1")
    assert run(folder, tables, "--resume") == 0
    whole = folder / "whole"
    assert main(["run", str(folder / "run.toml"), "--output", str(whole)]) == 0
    assert (out / "measurements.h5").read_bytes() == (whole / "measurements.h5").read_bytes()


def test_a_single_step_reports_what_it_declares(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(folder))
    from own_reports import Noisy

    action = Phi4([4, 4], m2=-1.0, lam=1.0)
    field = action.hot(2, stream(1, 0, "field"))
    keys = {"seed": 1, "number": 1}
    assert set(chains.step(field, Noisy(action), **keys).infos) == {"noisy"}
    for bad, said in (({"undeclared": True}, "'solver_time'"), ({"short": True}, r"\(2, 3\)")):
        with pytest.raises(ConfigError, match=said):
            chains.step(field, Noisy(action, **bad), **keys)
    with pytest.raises(ConfigError, match=r"update 3: noisy: .*'solver_time'"):
        flowmc.sample(Noisy(action, late=2), field, 5, observables=[])
    write_field(tmp_path / "phi.1.h5", field[:1], action, format="hdf5")
    tables = configuration({"kernel": "own_reports:Noisy", "undeclared": True})
    tables = {name: tables[name] for name in ("theory", "update")} | {"chains": {"seed": 1}}
    (folder / "step.toml").write_text(toml_text(tables))
    words = [str(tmp_path / "phi.1.h5"), str(tmp_path / "phi.2.h5")]
    assert main(["step", *words, "--config", str(folder / "step.toml")]) == 2
    said = capsys.readouterr().err
    assert "'solver_time'" in said and said.count("\n") == 1
    assert not (tmp_path / "phi.2.h5").exists()


def test_files_of_earlier_versions_are_read_and_continued(folder, capsys):
    tables = configuration({"kernel": "sign_flip"})
    assert run(folder, tables) == 0
    out = folder / "out"
    capsys.readouterr()
    assert main(["report", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    with h5py.File(out / "measurements.h5", "r+") as file:
        del file.attrs["attributes_crc32"]
        for phase in ("thermalization", "production"):
            for group in file[f"{phase}/kernels"].values():
                for item in (group, *group.values()):
                    for key in list(item.attrs):
                        del item.attrs[key]
    assert main(["report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    tables["run"]["updates"] = 14
    assert run(folder, tables, "--resume") == 0
    with h5py.File(out / "measurements.h5") as file:
        assert file["production/kernels/hmc"].attrs["title"] == b"HMC"
        assert len(file["production/updates"]) == 7


def test_a_value_that_is_reduced_otherwise_is_not_continued(folder, capsys):
    tables = configuration({"kernel": "sign_flip"})
    assert run(folder, tables) == 0
    with h5py.File(folder / "out" / "measurements.h5", "r+") as file:
        file["production/kernels/hmc/energy_error"].attrs["reduction"] = "max"
        del file.attrs["attributes_crc32"]
    before = (folder / "out" / "measurements.h5").read_bytes()
    tables["run"]["updates"] = 14
    capsys.readouterr()
    assert run(folder, tables, "--resume") == 2
    assert "kernels/hmc/energy_error" in capsys.readouterr().err
    assert (folder / "out" / "measurements.h5").read_bytes() == before


@pytest.mark.parametrize(
    "wrong", [{"name": "accepted"}, {"name": "a/b"}, {"reduce": "median"}, {"per_proposal": -1}]
)
def test_declarations_that_no_column_can_have(wrong):
    with pytest.raises(ConfigError):
        Reported(**{"name": "value", "title": "a value", **wrong})
