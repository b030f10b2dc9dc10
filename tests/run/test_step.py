"""``flowmc step``: one cycle on one file."""

import json
import math
import os
import tomllib
from itertools import pairwise

import flowmc_adapters
import numpy as np
import pytest
import torch

from flowmc import chains
from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.actions.theory import build_action
from flowmc.chains.assembly import assemble
from flowmc.chains.config import load_config
from flowmc.chains.storage.checkpoint import read_checkpoint
from flowmc.cli import main
from flowmc.commands import step_ladder
from flowmc.config.toml_text import toml_text
from flowmc.io import (
    field_to_file_order,
    file_order_to_field,
    read_field,
    with_signs,
    write_field,
)
from flowmc.kernels import (
    HMC,
    Cycle,
    EachReplica,
    Info,
    Kernel,
    NonFiniteStateError,
    Repeat,
    State,
)
from flowmc.observables import plaquette
from flowmc.random import stream
from flowmc.registry import ConfigError
from tests.run.small_runs import config, save_untrained_flow

ACTION = Wilson("SU(3)", [2, 2, 2, 4], beta=5.7)
TABLES = {
    "theory": {"action": "wilson", "group": "SU(3)", "lattice": [2, 2, 2, 4], "beta": 5.7},
    "chains": {"seed": 11},
    "update": [{"kernel": "hmc", "steps": 4, "trajectory": 0.5, "repeat": 2}],
    "measure": {"observables": ["plaquette"]},
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def start(tmp_path):
    field = ACTION.hot(1, stream(3, 0, "step"))
    metadata = {"SEQUENCE_NUMBER": "1000", "ENSEMBLE_ID": "mine", "ILDG": "x"}
    write_field(tmp_path / "lat.1000", field, ACTION, format="nersc", metadata=metadata)
    return field


def step(path, source, destination, *more, tables=TABLES):
    (path / "a.toml").write_text(toml_text(tables))
    config = ["--config", str(path / "a.toml")]
    return main(["step", str(path / source), str(path / destination), *config, *more])


def test_the_step_is_the_kernel_with_the_stream_of_its_number(tmp_path, start, capsys):
    assert step(tmp_path, "lat.1000", "lat.1001", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    kernel = HMC(ACTION, steps=4, trajectory=0.5)
    state, rng = kernel.init(start), stream(11, 0, "step 1001")
    for _ in range(2):
        state, _ = kernel.step(state, rng)
    assert torch.equal(read_field(tmp_path / "lat.1001", ACTION), state.field)
    written = flowmc_adapters.read(tmp_path / "lat.1001")
    assert report["number"] == written.number == 1001
    assert report["acceptance"].keys() == {"hmc"}
    plaquette = flowmc_adapters.inspect(tmp_path / "lat.1001")["plaquette"]
    assert report["observables"]["plaquette"] == pytest.approx(plaquette, abs=1e-12)
    assert written.format == "nersc" and written.precision == 64
    assert written.metadata["ENSEMBLE_ID"] == "mine"
    assert written.metadata["BETA"] == "5.7"
    assert written.metadata["FLOWMC_SOURCE"] == "lat.1000"


def test_the_step_of_objects_is_that_of_files(tmp_path, start):
    """The same bits, from a kernel, from several, and from a configuration."""
    assert step(tmp_path, "lat.1000", "lat.1001") == 0
    assert step(tmp_path, "lat.1001", "lat.1002") == 0
    written = read_field(tmp_path / "lat.1002", ACTION)
    hmc = HMC(ACTION, steps=4, trajectory=0.5)
    before = start.clone()
    for kernel in (
        Repeat(hmc, 2),
        [Repeat(hmc, 2)],
        Cycle([Repeat(hmc, 2)]),
        assemble(load_config(tmp_path / "a.toml", for_step=True)),
    ):
        first = chains.step(start, kernel, seed=11, number=1001)
        second = chains.step(first.field, kernel, seed=11, number=1002)
        assert torch.equal(second.field, written) and torch.equal(start, before)
        assert second.infos["hmc"].is_accepted.shape == (1, 2)
        assert second.acceptance["hmc"] in (0.0, 0.5, 1.0)
        assert torch.equal(second.state.action, ACTION.in_torch(written))
    other = chains.step(start, hmc, seed=11, number=1001, block=1)
    assert not torch.equal(other.field, chains.step(start, hmc, seed=11, number=1001).field)


class _Blind(Kernel):
    """Knows its target, and nothing else does; makes a field that is not finite."""

    name = "blind"

    def init(self, field):
        if float(field.abs().max()) > 1e3:
            raise ConfigError("blind: too large")
        return State(field)

    def step(self, state, rng):
        field = state.field.clone()
        field[1, 0, 0] = math.nan
        return state.moved(field), Info(torch.ones(2, 1, dtype=torch.bool))


def test_a_step_of_objects_refuses_what_it_cannot_do():
    action = FreeScalar([4, 4], m2=1.0)
    field, hmc = action.cold(2), HMC(action, steps=2)
    for wrong, kernel, seed, number, sentence in (
        (field, [], 1, 1, "no kernel is given"),
        (field, [hmc, "hmc"], 1, 1, "is no flowmc.kernels.Kernel"),
        (field, hmc, 1, -1, "number = -1"),
        (field, hmc, -1, 1, "seed = -1"),
        (field[:, :2], hmc, 1, 1, "lattice"),
        (field / 0, hmc, 1, 1, "^the start configuration of chain 0 is not finite"),
        (field / 0, _Blind(), 1, 1, "chain 0 is not finite"),
        (field + 1e4, _Blind(), 1, 1, "too large"),
        ([field, field], Cycle([EachReplica([hmc, hmc], [action] * 2)]), 1, 1, "one field"),
    ):
        with pytest.raises((ConfigError, ValueError), match=sentence):
            chains.step(wrong, kernel, seed=seed, number=number)
    with pytest.raises(NonFiniteStateError, match="chain 1 is not finite") as raised:
        chains.step(field, _Blind(), seed=1, number=1)
    assert raised.value.chain == 1


def test_a_stream_in_place_never_repeats_numbers(tmp_path, start):
    """Without numbers in names, the number in the file counts up and selects the stream."""
    (tmp_path / "lat.1000").rename(tmp_path / "conf")
    fields = []
    for expected in (1001, 1002):
        assert step(tmp_path, "conf", "conf") == 0
        assert flowmc_adapters.read(tmp_path / "conf").number == expected
        fields.append(read_field(tmp_path / "conf", ACTION))
    # Once more from the first file: the same bits. With another number: others.
    write_field(
        tmp_path / "b", fields[0], ACTION, format="ildg", metadata={"SEQUENCE_NUMBER": "1001"}
    )
    assert step(tmp_path, "b", "c") == 0
    assert torch.equal(read_field(tmp_path / "c", ACTION), fields[1])
    assert flowmc_adapters.read(tmp_path / "c").format == "ildg"
    assert step(tmp_path, "b", "d", "--number", "5") == 0
    assert not torch.equal(read_field(tmp_path / "d", ACTION), fields[1])
    assert flowmc_adapters.read(tmp_path / "d").number == 5


def test_format_and_precision_can_be_chosen(tmp_path, start):
    tables = TABLES | {"ensemble": {"format": "ildg", "precision": 32}}
    assert step(tmp_path, "lat.1000", "lat.1001", tables=tables) == 0
    written = flowmc_adapters.read(tmp_path / "lat.1001")
    assert (written.format, written.precision) == ("ildg", 32)


def test_unusable_input(tmp_path, start, capsys):
    write_field(tmp_path / "plain.npy", start, ACTION, format="npy")
    ladder = TABLES | {
        "ladder": {"beta": [5.7, 5.6]},
        "update": [*TABLES["update"], {"kernel": "exchange"}],
    }
    for arguments, tables, fragment in (
        (("plain.npy", "out"), TABLES, "--number"),
        (("lat.1000", "lat.1001", "--number", "-4"), TABLES, "--number -4"),
        (("none", "lat.1001"), TABLES, "No such file"),
        (("lat.1000", "lat.1001"), ladder, "one per replica"),
        (("lat.1000", "lat.1001"), TABLES | {"chains": {"seed": 1, "count": 2}}, "count = 2"),
        (("lat.1000", "lat.1001"), TABLES | {"ensemble": {"format": "x"}}, "[ensemble]"),
        (("lat.1000", "none/such/lat.1001"), TABLES, None),
    ):
        status = step(tmp_path, *arguments, tables=tables)
        said = capsys.readouterr().err
        if fragment is None:
            assert status == 0  # directories are made
            continue
        assert status == 2
        assert said.startswith("flowmc: error: ") and said.count("\n") == 1
        assert fragment in said
        assert not (tmp_path / "lat.1001").exists()


@pytest.mark.parametrize("form", ["openqcd", "hirep", "npy"])
@pytest.mark.parametrize("boundary", ["open", "functional"])
def test_other_boundaries_than_the_theorys_are_refused(tmp_path, start, form, boundary, capsys):
    """As periodic, nothing of such a field is ever accepted, or its boundary is changed."""
    field = start.clone()
    if boundary == "open":
        field[:, 3, ..., -1, :, :] = 0
    else:
        phases = torch.exp(1j * torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64))
        field[:, :3, ..., 0, :, :] = torch.diag(phases)
    write_field(tmp_path / "run1n4", field, ACTION, format=form)
    assert step(tmp_path, "run1n4", "run1n5") == 2
    said = capsys.readouterr().err
    assert said.startswith("flowmc: error: ") and said.count("\n") == 1
    assert ("open boundaries" if boundary == "open" else "Schroedinger functional") in said
    assert not (tmp_path / "run1n5").exists()
    tables = TABLES | {"chains": {"seed": 11, "file": "run1n4"}, "run": {"updates": 1}}
    (tmp_path / "a.toml").write_text(toml_text(tables))
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 2
    assert "periodic" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["openqcd", "hirep", "hdf5", "npy"])
def test_open_boundaries_in_time(tmp_path, start, form, capsys):
    """A field of openQCD with open boundaries is continued, and written with the zeros again."""
    theory = TABLES["theory"] | {"action": "iwasaki", "time_boundary": "open", "beta": 2.6}
    tables = TABLES | {"theory": theory, "measure": {"observables": ["plaquette"]}}
    field = start.clone()
    field[:, 3, ..., -1, :, :] = 0
    write_field(tmp_path / "run1n4", field, ACTION, format=form)
    assert step(tmp_path, "run1n4", "run1n5", "--number", "5", tables=tables) == 0
    capsys.readouterr()
    links = [flowmc_adapters.read(tmp_path / name).links for name in ("run1n4", "run1n5")]
    ends = [one[-1, ..., -1, :, :] for one in links]
    assert not ends[0].any() and not ends[1].any()
    assert np.abs(links[1] - links[0]).max() > 0.1
    assert step(tmp_path, "run1n5", "run1n6", "--number", "6", "--json", tables=tables) == 0
    action = build_action(theory)
    if form == "hirep":
        ours = float(plaquette(read_field(tmp_path / "run1n6", action), action))
        header = flowmc_adapters.read_header(tmp_path / "run1n6")
        assert header.plaquette == pytest.approx(ours, abs=1e-13)
    capsys.readouterr()
    # The file says itself what it is, and nothing else is taken for it.
    closed = TABLES | {"theory": theory | {"time_boundary": "periodic"}}
    assert step(tmp_path, "run1n6", "run1n7", "--number", "7", tables=closed) == 2
    assert "open boundaries" in capsys.readouterr().err
    assert step(tmp_path, "lat.1000", "lat.1001", tables=tables) == 2
    assert "periodic in time" in capsys.readouterr().err
    ildg = tables | {"ensemble": {"format": "ildg"}}
    assert step(tmp_path, "run1n6", "a", "--number", "7", tables=ildg) == 2
    assert "use openqcd, hirep" in capsys.readouterr().err
    # And it round-trips bit for bit.
    again = read_field(tmp_path / "run1n6", action)
    write_field(tmp_path / "copy", again, action, format=form)
    assert np.array_equal(
        flowmc_adapters.read(tmp_path / "copy").links,
        flowmc_adapters.read(tmp_path / "run1n6").links,
    )


def run_whole_and_in_halves(tables, folder, capsys):
    """Four updates at once in `folder/whole`, and two and two in `folder/halves`."""
    for name, updates in (("whole", 4), ("halves", 2), ("halves", 4)):
        tables["run"] = {"updates": updates, "save_every": 2, "report": False}
        (folder / "a.toml").write_text(toml_text(tables))
        more = ["--resume"] if updates == 4 and name == "halves" else []
        arguments = ["run", str(folder / "a.toml"), "--output", str(folder / name), *more]
        assert main(arguments) == 0, capsys.readouterr().err


def test_a_run_with_open_boundaries(tmp_path, capsys):
    """From nothing to a directory of openQCD's files, killed and resumed: the same bytes."""
    theory = TABLES["theory"] | {"action": "symanzik", "time_boundary": "open", "c_g": 1.2}
    tables = TABLES | {
        "theory": theory,
        "chains": {"seed": 3, "start": "hot"},
        "ensemble": {"format": "openqcd"},
    }
    run_whole_and_in_halves(tables, tmp_path, capsys)
    files = [
        [one for one in sorted((tmp_path / name / "ensemble").rglob("*")) if one.is_file()][-1:]
        for name in ("whole", "halves")
    ]
    assert files[0] and files[0][0].name == files[1][0].name
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    assert not flowmc_adapters.read(files[0][0]).links[-1, ..., -1, :, :].any()


@pytest.mark.parametrize("form", ["hdf5", "npy"])
def test_a_run_with_fixed_boundaries(tmp_path, start, form, capsys):
    """A Schroedinger functional from a configuration file: its files have its boundaries."""
    phases = {"phases": [-1.0, 0.0, 1.0], "end_phases": [-3.0, 1.0, 2.0]}
    theory = TABLES["theory"] | {"action": "schroedinger_functional", "beta": 6.0, "eta": 0.1}
    tables = TABLES | {
        "theory": theory | phases,
        "chains": {"seed": 3, "start": "hot"},
        "ensemble": {"format": form},
        "measure": {"observables": ["plaquette", "action"]},
    }
    run_whole_and_in_halves(tables, tmp_path, capsys)
    whole, halves = (
        [one for one in sorted((tmp_path / name / "ensemble").rglob("*")) if one.is_file()][-1]
        for name in ("whole", "halves")
    )
    assert whole.read_bytes() == halves.read_bytes()
    action = build_action(tables["theory"])
    links = flowmc_adapters.read(whole).links
    fixed = field_to_file_order(action.fixed_links.values.numpy(), action)
    for end in (0, -1):
        assert np.array_equal(links[end, ..., :3, :, :], fixed[end, ..., :3, :, :])
    assert not links[-1, ..., 3, :, :].any()
    (tmp_path / "fixed").write_bytes(whole.read_bytes())
    assert step(tmp_path, "fixed", "next", "--number", "9", tables=tables) == 0
    capsys.readouterr()
    # Another boundary, a periodic field, and the wrong theory for this one.
    other = tables | {"theory": tables["theory"] | {"eta": 0.2}}
    opened = tables | {"theory": TABLES["theory"] | {"action": "symanzik", "time_boundary": "open"}}
    for file, wrong, said in (
        ("fixed", other, "correct eta, phases and end_phases"),
        ("lat.1000", tables, "periodic in time"),
        ("fixed", TABLES, "theory is periodic"),
        ("fixed", opened, "give the action schroedinger_functional"),
        ("fixed", tables | {"ensemble": {"format": "openqcd"}}, "use hdf5 or npy"),
    ):
        assert step(tmp_path, file, "none", "--number", "10", tables=wrong) == 2
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
    charge = tables | {"measure": {"observables": ["topological_charge"]}}
    (tmp_path / "a.toml").write_text(toml_text(charge))
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 2
    assert "open" in capsys.readouterr().err


def test_charge_conjugated_boundaries_are_refused(tmp_path, start, capsys):
    metadata = {"SEQUENCE_NUMBER": "4", "BOUNDARY_1": "GPARITY", "BOUNDARY_4": "ANTIPERIODIC"}
    write_field(tmp_path / "lat.4", start, ACTION, format="nersc", metadata=metadata)
    assert step(tmp_path, "lat.4", "lat.5") == 2
    assert "GPARITY" in capsys.readouterr().err
    # Of the fermions, that is, and no matter for the gauge field
    del metadata["BOUNDARY_1"]
    write_field(tmp_path / "lat.4", start, ACTION, format="nersc", metadata=metadata)
    assert step(tmp_path, "lat.4", "lat.5") == 0


def test_one_of_several_configurations_in_a_file(tmp_path, start, capsys):
    """FILE#N is a start for steps and runs, of links and of other fields."""
    (tmp_path / "all.lime").write_bytes(b"")
    for seed in (5, 6):
        other = ACTION.hot(1, stream(seed, 0, "step"))
        write_field(tmp_path / "one", other, ACTION, format="ildg")
        with open(tmp_path / "all.lime", "ab") as file:
            file.write((tmp_path / "one").read_bytes())
    still = TABLES | {"update": [{"kernel": "hmc", "steps": 1, "trajectory": 1e-9}]}
    assert step(tmp_path, "all.lime#2", "lat.1", tables=still) == 0
    assert (read_field(tmp_path / "lat.1", ACTION) - other).abs().max() < 1e-7
    run = still | {
        "chains": {"seed": 11, "file": "all.lime#2"},
        "run": {"updates": 1, "save_every": 1, "report": False},
        "ensemble": {"format": "nersc"},
    }
    (tmp_path / "b.toml").write_text(toml_text(run))
    assert main(["run", str(tmp_path / "b.toml"), "--output", str(tmp_path / "out")]) == 0
    assert (read_field(tmp_path / "out/ensemble/all.1", ACTION) - other).abs().max() < 1e-7

    scalar = Phi4([4, 4], m2=1.0, lam=0.1)
    for number in (10, 20):
        phi = scalar.hot(1, stream(number, 0, "step"))
        field = flowmc_adapters.FieldConfiguration(
            field_to_file_order(phi[0].numpy(), scalar), "scalar"
        )
        flowmc_adapters.append_field(tmp_path / "phi.h5", field, number)
    run |= {
        "theory": {"action": "phi4", "lattice": [4, 4], "m2": 1.0, "lambda": 0.1},
        "chains": {"seed": 11, "file": "phi.h5#20"},
        "measure": {"observables": ["magnetization"]},
        "ensemble": {"format": "npy"},
    }
    (tmp_path / "c.toml").write_text(toml_text(run))
    assert main(["run", str(tmp_path / "c.toml"), "--output", str(tmp_path / "out2")]) == 0
    (saved,) = (tmp_path / "out2/ensemble").glob("phi.*")
    assert (read_field(saved, scalar) - phi).abs().max() < 1e-7


def test_a_configuration_of_run_serves_step(tmp_path, start):
    tables = TABLES | {
        "chains": {"seed": 11, "file": "lat.1000"},
        "run": {"updates": 3, "thermalization": 2, "save_every": 1, "report": False},
        "ensemble": {"format": "nersc"},
    }
    assert step(tmp_path, "lat.1000", "lat.1001", tables=tables) == 0
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "ensemble").iterdir())
    assert names == ["lat.1001", "lat.1002", "lat.1003"]
    last = read_field(tmp_path / "out" / "ensemble" / "lat.1003", ACTION)
    assert np.isfinite(last.numpy()).all()
    assert tomllib.loads((tmp_path / "out" / "config.toml").read_text())["run"]["updates"] == 3


SCALAR = {
    "theory": {"action": "free", "lattice": [4, 4], "m2": 1.0},
    "chains": {"seed": 3},
    "update": [{"kernel": "hmc", "steps": 6, "trajectory": 1.2}],
    "measure": {"observables": ["phi2"]},
}


@pytest.mark.parametrize(
    ("files", "form"),
    [
        (["lat_b5.7", "lat_b5.7"], "nersc"),
        (["current.0", "current.0"], "ildg"),
        (["a.0", "a.1", "a.0"], "nersc"),
        (["a.0.npy", "a.1.npy", "a.0.npy"], "npy"),
        (["a.0", "a.1", "a.0"], "openqcd"),
    ],
)
def test_a_number_that_does_not_grow_is_refused(tmp_path, start, capsys, files, form):
    """With it random numbers are those of an earlier step, and the chain that of fixed noise."""
    tables = TABLES | {"ensemble": {"format": form}}
    first = ["--number", "0"] if files[0].startswith("a.") else []
    assert step(tmp_path, "lat.1000", files[0], *first, tables=tables) == (0 if first else 2)
    if not first:
        # The number at the end of the name is no configuration number.
        assert "which is not above 1000" in capsys.readouterr().err
        given = ["--number", "1001"]
        assert step(tmp_path, "lat.1000", files[0], *given, tables=tables) == 0
    sources = files if first else [files[0]] * 2
    for source, destination in pairwise(sources):
        before = (tmp_path / source).read_bytes()
        status = step(tmp_path, source, destination, tables=tables)
        said = capsys.readouterr()
        if destination == sources[-1]:
            assert status == 2 and (tmp_path / source).read_bytes() == before
            assert "is not above" in said.err and "random numbers" in said.err
        else:
            assert status == 0, said.err


def test_a_file_that_does_not_say_its_number_needs_one(tmp_path, start, capsys):
    write_field(tmp_path / "plain.npy", start, ACTION, format="npy")
    assert step(tmp_path, "plain.npy", "lat_b5.7.npy") == 2
    assert "say so with --number 7" in capsys.readouterr().err
    assert step(tmp_path, "plain.npy", "lat_b5.7.npy", "--number", "7") == 0


def test_an_earlier_number_of_the_same_seed_is_refused(tmp_path, start, capsys):
    assert step(tmp_path, "lat.1000", "lat.1001") == 0
    assert step(tmp_path, "lat.1001", "other", "--number", "1001") == 2
    assert "number 1001 of the same seed 11" in capsys.readouterr().err
    other = TABLES | {"chains": {"seed": 12}}
    assert step(tmp_path, "lat.1001", "other", "--number", "1001", tables=other) == 0
    assert flowmc_adapters.read(tmp_path / "other").metadata["FLOWMC_EARLIER_SEEDS"] == "11"


@pytest.mark.slow
def test_a_stream_in_place_has_the_exact_mean(tmp_path, capsys):
    """<phi^2> of a free field; fixed noise gives a chain that stands still."""
    action = FreeScalar([4, 4], m2=1.0)
    write_field(
        tmp_path / "conf",
        action.sample(1, stream(3, 0, "x")),
        action,
        format="hdf5",
        metadata={"SEQUENCE_NUMBER": "0"},
    )
    values = []
    for _ in range(200):
        assert step(tmp_path, "conf", "conf", "--json", tables=SCALAR) == 0
        values.append(json.loads(capsys.readouterr().out)["observables"]["phi2"])
    # Blocks of ten are independent: the trajectories are long.  20 blocks, 7 standard errors of
    # Student's t: a false alarm has a probability of 1e-6.
    blocks = np.array(values).reshape(20, 10).mean(1)
    error = blocks.std(ddof=1) / 20**0.5
    assert abs(blocks.mean() - float(action.propagator()[0, 0])) < 7 * error < 0.1


def test_a_step_says_what_it_did(tmp_path, start, capsys):
    tables = TABLES | {"measure": {"observables": ["plaquette", "action"]}}
    assert step(tmp_path, "lat.1000", "lat.1001", "--json", tables=tables) == 0
    report = json.loads(capsys.readouterr().out)
    field = read_field(tmp_path / "lat.1001", ACTION)
    assert report["action"] == pytest.approx(float(ACTION(field)), abs=1e-9)
    assert report["observables"]["action_density"] == pytest.approx(report["action"] / 32)
    kernel = report["kernels"]["hmc"]
    assert len(kernel["energy_error"]) == 2 and kernel["seconds"] > 0
    assert report["acceptance"]["hmc"] == kernel["acceptance"]
    kernel = HMC(ACTION, steps=4, trajectory=0.5)
    state, rng = kernel.init(start), stream(11, 0, "step 1001")
    _, info = kernel.step(state, rng)
    expected = float(info.values["energy_error"][0])
    assert report["kernels"]["hmc"]["energy_error"][0] == pytest.approx(expected)
    assert step(tmp_path, "lat.1001", "lat.1002", tables=tables) == 0
    said = capsys.readouterr().out
    assert "dH = " in said and " s, " in said and "S = " in said and "action_density = " in said


def test_a_step_says_the_weights_of_flow_proposals(tmp_path, capsys):
    save_untrained_flow(tmp_path / "f.safetensors")
    np.save(tmp_path / "lat.4.npy", np.zeros((4, 4)))
    tables = config(
        chains={"count": 1, "block": 1},
        update=[{"kernel": "independence", "flow": "f.safetensors", "proposals": 5}],
    )
    assert step(tmp_path, "lat.4.npy", "lat.5.npy", "--json", tables=tables) == 0
    kernel = json.loads(capsys.readouterr().out)["kernels"]["independence"]
    assert len(kernel["log_weights"]) == 5 and len(kernel["log_weight"]) == 1
    assert step(tmp_path, "lat.5.npy", "lat.6.npy", tables=tables) == 0
    assert "ln w = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("made", "own"),
    [
        ({}, {"action": "wilson_defect", "defect": 1.0}),
        ({}, {"action": "wilson_anisotropic", "anisotropy": 1.0}),
        ({"action": "wilson_defect", "defect": 1.0}, {}),
        (
            {"action": "wilson_defect", "defect": 1.0},
            {"action": "wilson_anisotropic", "anisotropy": 1.0},
        ),
    ],
)
def test_a_theory_of_two_names_is_one(tmp_path, start, capsys, made, own):
    """Without a defect it is the Wilson action, whose files start it; with one it is not."""

    def theory(keys):
        return TABLES | {"theory": TABLES["theory"] | keys}

    assert step(tmp_path, "lat.1000", "lat.1001", tables=theory(made)) == 0
    assert step(tmp_path, "lat.1001", "lat.1002", tables=theory(own)) == 0
    for keys in (made, own):
        if not keys:
            continue
        (coupling,) = set(keys) - {"action"}
        other = {"action": keys["action"], coupling: 0.5}
        assert step(tmp_path, "lat.1000", "a", tables=theory(other if keys is made else made)) == 0
        capsys.readouterr()
        assert step(tmp_path, "a", "b", tables=theory(own if keys is made else other)) == 2
        assert "[theory] has" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["nersc", "ildg", "hdf5"])
def test_a_file_of_another_theory_is_refused(tmp_path, start, capsys, form):
    made = TABLES | {"theory": TABLES["theory"] | {"beta": 6.0}, "ensemble": {"format": form}}
    assert step(tmp_path, "lat.1000", "lat.1001", tables=made) == 0
    capsys.readouterr()
    assert step(tmp_path, "lat.1001", "lat.1002") == 2
    said = capsys.readouterr().err
    assert "beta = 6.0, [theory] has 5.7" in said and "--force" in said
    assert not (tmp_path / "lat.1002").exists()
    assert step(tmp_path, "lat.1001", "lat.1002", "--force") == 0
    assert "made with another theory" in capsys.readouterr().err
    # A file that says nothing passes, and one that rounds.
    metadata = {"BETA": "5.70000", "SEQUENCE_NUMBER": "3"}
    write_field(tmp_path / "round", start, ACTION, format="nersc", metadata=metadata)
    assert step(tmp_path, "round", "lat.4") == 0


def test_another_action_is_refused(tmp_path, start, capsys):
    anisotropic = {"action": "wilson_anisotropic", "anisotropy": 1.5}
    made = TABLES | {"theory": TABLES["theory"] | anisotropic}
    assert step(tmp_path, "lat.1000", "lat.1001", tables=made) == 0
    assert step(tmp_path, "lat.1001", "lat.1002") == 2
    assert "action wilson_anisotropic, [theory] has wilson" in capsys.readouterr().err


def test_coefficients_are_in_the_file_and_compared(tmp_path, start, capsys):
    improved = {"action": "improved", "c1": -0.331}
    made = TABLES | {"theory": TABLES["theory"] | improved}
    for form in ("nersc", "scidac"):
        tables = made | {"ensemble": {"format": form}}
        assert step(tmp_path, "lat.1000", f"{form}.1001", tables=tables) == 0
        assert step(tmp_path, f"{form}.1001", f"{form}.1002", tables=tables) == 0
        iwasaki = TABLES | {"theory": TABLES["theory"] | {"action": "iwasaki"}}
        assert step(tmp_path, f"{form}.1002", "lat.1", tables=iwasaki) == 2
        assert "action improved, [theory] has iwasaki" in capsys.readouterr().err
        other = made | {"theory": made["theory"] | {"c1": -1.4088}}
        assert step(tmp_path, f"{form}.1002", "lat.1", tables=other) == 2
        assert "c1 = -0.331, [theory] has -1.4088" in capsys.readouterr().err


def test_levels_of_time_steps_from_a_configuration(tmp_path, start, capsys):
    theory = TABLES["theory"] | {"action": "iwasaki", "beta": 2.6}
    level = {"terms": ["plaquettes"], "steps": 2, "integrator": "leapfrog"}
    update = {"kernel": "hmc", "steps": 3, "trajectory": 0.5, "check_reversibility": 1.0}
    tables = TABLES | {"theory": theory, "update": [update | {"inner": [level]}]}
    assert step(tmp_path, "lat.1000", "lat.1001", tables=tables) == 0
    for wrong, message in (
        ({"terms": ["plaquette"]}, "no part 'plaquette'"),
        ({"terms": ["plaquettes"], "step": 2}, "not permitted"),
        ({"steps": 2}, "required"),
    ):
        bad = tables | {"update": [update | {"inner": [wrong]}]}
        assert step(tmp_path, "lat.1001", "lat.1002", tables=bad) == 2
        said = capsys.readouterr().err
        assert message in said and "inner" in said and said.count("\n") == 1
    tables |= {"chains": {"seed": 1}, "run": {"updates": 2, "report": False}}
    (tmp_path / "a.toml").write_text(toml_text(tables))
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 0
    written = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert written["update"][0]["inner"] == [level]
    more = ["--resume", "--set", "run.updates=3"]
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out"), *more]) == 0


def test_fields_of_another_theory_are_refused(tmp_path, capsys):
    action = FreeScalar([4, 4], m2=1.0)
    table = {"name": "free", "lattice": [4, 4], "m2": 2.0}
    for name, metadata in (
        ("other", {"ACTION": json.dumps(table)}),
        ("phi4", {"ACTION": json.dumps(table | {"name": "phi4", "m2": 1.0})}),
        ("same", {"ACTION": json.dumps(table | {"m2": 1.0})}),
        ("text", {"ACTION": "free field, in the conventions of nobody"}),
    ):
        metadata["SEQUENCE_NUMBER"] = "1"
        field = action.cold(1)
        write_field(tmp_path / name, field, action, format="hdf5", metadata=metadata)
        status = step(tmp_path, name, f"{name}.2", tables=SCALAR)
        assert status == (2 if name in ("other", "phi4") else 0), capsys.readouterr().err


@pytest.mark.parametrize("directions", [(3,), (0, 3)])
def test_the_sign_of_the_fermions_is_taken_off_and_put_back(tmp_path, start, capsys, directions):
    signed = with_signs(start, directions)
    # Links at the upper end of every direction, times -1: once more they are what they were.
    assert not torch.equal(signed, start) and torch.equal(with_signs(signed, directions), start)
    for mu in directions:
        last = signed[:, mu].select(1 + mu, -1)
        assert torch.equal(last, -start[:, mu].select(1 + mu, -1))
    metadata = {"SEQUENCE_NUMBER": "1000", "BOUNDARY_4": "ANTIPERIODIC"}
    write_field(tmp_path / "s.1000", signed, ACTION, format="nersc", metadata=metadata)
    assert step(tmp_path, "s.1000", "s.1001") == 0
    said = capsys.readouterr().err
    assert "was taken off" in said and "is back" in said and "--strip-signs" not in said
    assert step(tmp_path, "lat.1000", "lat.1001") == 0
    assert "sign" not in capsys.readouterr().err
    plain = read_field(tmp_path / "lat.1001", ACTION)
    raw = flowmc_adapters.read(tmp_path / "s.1001").links
    restored = torch.from_numpy(file_order_to_field(raw, ACTION))[None]
    assert torch.equal(restored, with_signs(plain, directions))
    assert torch.equal(read_field(tmp_path / "s.1001", ACTION), plain)
    assert flowmc_adapters.group_errors(raw).antiperiodic == directions
    assert flowmc_adapters.read(tmp_path / "s.1001").metadata["BOUNDARY_4"] == "ANTIPERIODIC"


LADDER = {
    "theory": {"action": "wilson_defect", "group": "U(1)", "lattice": [4, 4], "beta": 2.0}
    | {"defect": 1.0},
    "chains": {"seed": 5, "start": "file", "file": "r0/lat.0.npy"},
    "update": [{"kernel": "hmc", "steps": 3}, {"kernel": "exchange"}],
    "ladder": {"defect": [1.0, 0.5, 0.0]},
    "measure": {"observables": ["plaquette"]},
}


def ladder_files(path):
    action = Wilson("U(1)", [4, 4], beta=2.0)
    start = action.hot(1, stream(8, 0, "ladder"))
    for r in range(3):
        write_field(path / f"r{r}/lat.0.npy", start, action, format="npy")
    return action


def replicas_of(path, number, action):
    return [read_field(path / f"r{r}/lat.{number}.npy", action) for r in range(3)]


def last_of_run(path, tables, updates):
    """Return fields, walkers and sweeps of the checkpoint of a run."""
    run = {"updates": updates, "report": False}
    (path / "run.toml").write_text(toml_text(tables | {"run": run}))
    assert main(["run", str(path / "run.toml"), "--output", str(path / "run")]) == 0
    own = {0: (0, 1, 2)}
    state = read_checkpoint(path / "run/checkpoint.h5", torch.device("cpu"), own, 3).states[0]
    return [one.field for one in state.replicas], state.walkers[0].tolist(), state.sweep


def test_steps_of_a_ladder_are_the_updates_of_a_run(tmp_path, capsys):
    action = ladder_files(tmp_path)
    fields, walkers, sweep = last_of_run(tmp_path, LADDER, 5)
    for n in range(5):
        names = [f"r{{replica}}/lat.{number}.npy" for number in (n, n + 1)]
        capsys.readouterr()
        assert step(tmp_path, *names, "--json", tables=LADDER) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["walkers"], report["sweep"]) == (walkers, sweep)
    assert np.shape(report["observables"]["plaquette"]) == (3,)
    for own, of_run in zip(replicas_of(tmp_path, 5, action), fields, strict=True):
        assert torch.equal(own, of_run)
    assert walkers != [0, 1, 2]


def test_a_shell_updates_and_flowmc_exchanges(tmp_path):
    """The program alone, then flowmc's exchange alone: what a run of both gives, bit for bit."""
    action = ladder_files(tmp_path)
    script = """import sys
import numpy as np
source, destination, number, replica = sys.argv[1:]
drawn = np.random.default_rng([int(number), int(replica)]).uniform(-0.5, 0.5, (4, 4, 2))
with open(destination, "wb") as file:
    np.save(file, np.remainder(np.load(source) + drawn + np.pi, 2 * np.pi) - np.pi)
"""
    (tmp_path / "move.py").write_text(script)
    command = ["python3", "move.py", "{input}", "{output}", "{number}", "{replica}"]
    external = {"kernel": "external", "command": command, "format": "npy", "parallel": 3}
    theory = {key: LADDER["theory"][key] for key in ("group", "lattice")}
    keys = {"difference": "wilson_defect", "beta": 2.0, "defect": [1.0, 0.9, 0.8]}
    tables = LADDER | {
        "theory": {"action": "external", **theory},
        "update": [external, {"kernel": "exchange"}],
        "ladder": keys,
    }
    fields, walkers, _ = last_of_run(tmp_path, tables, 3)
    alone = tables | {"update": [{"kernel": "exchange"}]}
    for n in range(3):
        for r in range(3):
            source, moved = (tmp_path / f"r{r}/{name}.npy" for name in (f"lat.{n}", f"hmc.{n + 1}"))
            drawn = np.random.default_rng([n + 1, r]).uniform(-0.5, 0.5, (4, 4, 2))
            np.save(moved, np.remainder(np.load(source) + drawn + np.pi, 2 * np.pi) - np.pi)
        names = [f"r{{replica}}/{name}.npy" for name in (f"hmc.{n + 1}", f"lat.{n + 1}")]
        more = ["--number", str(n + 1)]
        if n:
            more += ["--ladder", str(tmp_path / f"r0/lat.{n}.npy.ladder")]
        assert step(tmp_path, *names, *more, tables=alone) == 0
    for own, of_run in zip(replicas_of(tmp_path, 3, action), fields, strict=True):
        assert torch.equal(own, of_run)
    side = json.loads((tmp_path / "r0/lat.3.npy.ladder").read_text())
    assert side["walkers"] == walkers != [0, 1, 2]


def test_all_files_of_a_ladder_are_replaced_or_none(tmp_path, monkeypatch):
    """Killed before and after the files are all there, and between two of them."""
    action = ladder_files(tmp_path)
    names = ["r{replica}/lat.0.npy", "r{replica}/lat.1.npy"]
    assert step(tmp_path, *names, tables=LADDER) == 0
    expected = replicas_of(tmp_path, 1, action)
    side = tmp_path / "r0/lat.1.npy.ladder"
    told = side.read_bytes()

    def killed(*arguments):
        raise KeyboardInterrupt

    for r in range(3):
        (tmp_path / f"r{r}/lat.1.npy").unlink()
    side.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(step_ladder, "_journal", killed)
        assert step(tmp_path, *names, tables=LADDER) == 130
    left = sorted(p.name for p in tmp_path.glob("r*/*"))
    assert left == ["lat.0.npy"] * 3
    with monkeypatch.context() as patched:
        patched.setattr(step_ladder, "finish_commits", lambda paths: None)
        step(tmp_path, *names, tables=LADDER)
    assert not (tmp_path / "r0/lat.1.npy").exists()
    # Its list of files, damaged or planted, moves nothing else.
    journal = tmp_path / "r0/.lat.1.npy.ladder.moves"
    sound = journal.read_text()
    names = ["r{replica}/lat.1.npy", "r{replica}/lat.2.npy"]
    for text in ("{", json.dumps({"files": ["../r0/lat.0.npy", "../elsewhere"]})):
        journal.write_text(text)
        assert step(tmp_path, *names, tables=LADDER) == 2
        assert not (tmp_path / "r0/lat.1.npy").exists()
    journal.write_text(sound)
    # One of them is moved before the kill.
    os.replace(tmp_path / "r1/.lat.1.npy.new", tmp_path / "r1/lat.1.npy")
    assert step(tmp_path, *names, tables=LADDER) == 0
    assert side.read_bytes() == told
    for own, other in zip(replicas_of(tmp_path, 1, action), expected, strict=True):
        assert torch.equal(own, other)
    assert not list(tmp_path.glob("r*/.*"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 6}, "a stream with seed 6"),
        ({"number": 2}, "would be used again"),
        ({"walkers": [0, 1]}, "is damaged"),
        ({"walkers": [0, 0, 1]}, "is damaged"),
        ({"layout": 7}, "another version"),
    ],
)
def test_a_side_file_of_another_stream_is_refused(tmp_path, capsys, change, sentence):
    ladder_files(tmp_path)
    assert step(tmp_path, "r{replica}/lat.0.npy", "r{replica}/lat.1.npy", tables=LADDER) == 0
    side = tmp_path / "r0/lat.1.npy.ladder"
    side.write_text(json.dumps(json.loads(side.read_text()) | change))
    capsys.readouterr()
    names = ["r{replica}/lat.1.npy", "r{replica}/lat.2.npy"]
    assert step(tmp_path, *names, tables=LADDER) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "r0/lat.2.npy").exists()
