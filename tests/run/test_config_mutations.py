"""Whatever a configuration file says: it is loaded, or refused in one sentence, in seconds."""

import contextlib
import signal
import tomllib
from pathlib import Path

import pytest
from flowmc_adapters import FormatError

from flowmc.actions.theory import build_action
from flowmc.chains.assembly import assemble
from flowmc.chains.config import read_config
from flowmc.cli import main
from flowmc.correlate.combine_config import read_combine_config
from flowmc.correlate.config import read_correlate_config
from flowmc.flows.cards.building import build_flow
from flowmc.free_energy.config import read_free_energy_config
from flowmc.registry import ConfigError
from flowmc.training.plan import make_plan
from tests.run.config_mutations import examples, kind_of, mutated, seeded
from tests.run.small_runs import config, write

SECONDS = 30


class Late(BaseException):
    """Neither loaded nor refused in time; no handler of errors may catch it."""


EXPECTED = (ConfigError, FormatError, OSError)


def load(command, tables, base):
    if command == "train":
        return make_plan(tables, base)
    if command == "free-energy":
        return read_free_energy_config(tables, base)
    if command == "correlate":
        is_list = isinstance(tables.get("ensemble"), list)
        return (read_combine_config if is_list else read_correlate_config)(tables, base)
    config = read_config(tables, base)
    if config.action.volume * config.chains.count <= 4096:
        assemble(config)
    return config


@contextlib.contextmanager
def time_limit(seconds):
    def late(*_):
        raise Late(f"more than {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def failures_of(path, numbers):
    """Return what was neither loaded nor refused."""
    original = tomllib.loads(path.read_text())
    command = kind_of(original)
    found = []
    for number in numbers:
        tables, said = mutated(original, seeded(path, number))
        try:
            with time_limit(SECONDS):
                load(command, tables, path.parent)
        except EXPECTED as error:
            text = str(error)
            if not text or len(text) > 2000 or "\n" in text.strip():
                found.append(f"{path.name} {number}: {said}: message {text[:300]!r}")
        except (Exception, SystemExit, Late) as error:
            found.append(f"{path.name} {number}: {said}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_mutated_configurations(path):
    assert not failures_of(path, range(4))


@pytest.mark.slow
@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_many_mutated_configurations(path, share):
    assert not failures_of(path, range(4, 500 // share))


UNUSABLE = {
    "no update": {"update": []},
    "a colon for an action": {"theory": {"action": ":"}},
    "a type of Python": {"theory": {"action": "builtins:int"}},
    "a type of Python as kernel": {"update": [{"kernel": "builtins:int"}]},
    "a type of Python as observable": {"measure": {"observables": ["builtins:int"]}},
    "extents of 10^9": {"theory": {"lattice": [10**9, 10**9]}},
    "one extent of 10^12": {"theory": {"lattice": [10**12]}},
    "forty directions": {"theory": {"lattice": [1] * 40}},
    "2^31 chains": {"chains": {"count": 2**31}},
    "2^31 blocks": {"chains": {"count": 2**31, "block": 1}},
    "a coupling that is no number": {"theory": {"m2": float("nan")}},
    "an infinite coupling": {"theory": {"lambda": float("inf")}},
    "a coupling that is text of an infinity": {"theory": {"lambda": "inf"}},
    "an integer of 300 digits and more": {"theory": {"m2": 10**400}},
    "an infinite step": {"update": [{"kernel": "hmc", "trajectory": float("inf")}]},
    "a time without end": {"run": {"time_limit": 10**400}},
    "a name with a zero in it": {"chains": {"file": "a\0b"}},
}


def test_as_many_chains_are_refused_everywhere():
    theory = config()["theory"]
    flow = {"name": "affine_coupling", "layers": 2, "hidden": [2]}
    training = {"steps": 1, "batch": 2, "objective": "forward_kl"}
    tables = {"theory": theory, "flow": flow, "prior": {"name": "gaussian"}}
    with time_limit(SECONDS):
        with pytest.raises(ConfigError, match=r"\[chains\]: 2147483648 chains: should be at most"):
            make_plan(tables | {"training": training, "chains": {"count": 2**31}})
        with pytest.raises(ConfigError, match="batch = 2147483648: must be at most"):
            make_plan(tables | {"training": {"steps": 1, "batch": 2**31}})
        with pytest.raises(ConfigError, match=r"\[chains\]: count = 2147483648: should be at most"):
            read_free_energy_config(
                {
                    "theory": theory,
                    "free_energy": {"method": "chain", "seed": 1},
                    "protocol": {"m2": [1.0, -1.0]},
                    "update": [{"kernel": "hmc"}],
                    "chains": {"count": 2**31, "measurements": 1},
                },
                Path(),
            )


@pytest.mark.parametrize(
    ("theory", "flow", "what"),
    [
        ({}, {"hidden": [60000, 60000], "layers": 60000}, "sizes of 60000 x 60000 x 60000"),
        # No machine of today holds 512 bytes for each, and 256 bytes are taken to fit.
        ({"lattice": [2**20, 2**20]}, {"hidden": [2], "layers": 2}, f"{2**40} sites"),
    ],
    ids=["weights", "sites"],
)
def test_flows_that_no_memory_holds_are_refused(theory, flow, what, monkeypatch):
    monkeypatch.setattr("flowmc.actions.theory.memory_here", lambda: 2**62)
    tables = {
        "theory": config()["theory"] | theory,
        "flow": {"name": "affine_coupling", **flow},
        "prior": {"name": "gaussian"},
        "training": {"steps": 1, "batch": 2},
    }
    with time_limit(SECONDS), pytest.raises(ConfigError, match=rf"\[flow\]: {what} need at least"):
        make_plan(tables)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"m2": [1.0, -1.0], "steps": 2**31}, "steps = 2147483648: should be at most"),
        ({"m2": [10**400, -1.0]}, "should be a finite number"),
        ({"m2": [float("nan"), -1.0]}, "should be a finite number"),
    ],
    ids=["steps", "integer", "nan"],
)
def test_unusable_protocols_are_refused(protocol, said):
    tables = {
        "theory": config()["theory"],
        "free_energy": {"method": "chain", "seed": 1},
        "protocol": protocol,
        "update": [{"kernel": "hmc"}],
        "chains": {"count": 2, "measurements": 1},
    }
    with time_limit(SECONDS), pytest.raises(ConfigError, match=said):
        read_free_energy_config(tables, Path())


def test_memory_that_cannot_be_had_is_one_sentence(monkeypatch):
    def greedy(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 21 TB.\nmore")

    monkeypatch.setattr("flowmc.flows.cards.building.build", greedy)
    with pytest.raises(ConfigError, match=r"\[flow\]: affine_coupling needs more memory.*21 TB\.$"):
        build_flow({"name": "affine_coupling"}, build_action(config()["theory"]))


@pytest.mark.parametrize("what", UNUSABLE)
def test_unusable_values_are_refused_in_one_sentence(what, tmp_path, capsys):
    written = write(tmp_path / "a.toml", config(**UNUSABLE[what]))
    with time_limit(SECONDS):
        assert main(["run", written, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1000
    assert not (tmp_path / "out").exists()


DEEP = {
    "lists": "a = " + "[" * 400 + "]" * 400,
    "tables": "a = " + "{b = " * 4000 + "1" + "}" * 4000,
    "digits": "a = " + "9" * 9999,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("command", ["run", "train", "free-energy", "correlate"])
def test_files_that_no_parser_likes(text, command, tmp_path, capsys):
    (tmp_path / "a.toml").write_text(text)
    words = [command, str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) < 1000
    assert not (tmp_path / "out").exists()
