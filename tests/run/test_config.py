"""Every mistake in a configuration is one sentence that names the key."""

import tomllib
from pathlib import Path

import pytest

from flowmc.actions.theory import build_action
from flowmc.chains.config import read_config
from flowmc.config.entries import changed_keys
from flowmc.config.tables import seconds_of
from flowmc.config.toml_text import toml_text
from flowmc.io import check_format
from flowmc.registry import ConfigError
from tests.run.small_runs import config

WILSON = {"action": "wilson", "group": "SU(3)", "lattice": [4, 4, 4, 4], "beta": 6.0}
U1 = {"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 2.0}
HMC = {"kernel": "hmc"}
EXCHANGE = {"kernel": "exchange"}
LADDER = {"m2": [-1.0, -0.5, 0.0]}
NPY = {"format": "npy"}


def without(name, key=None):
    tables = config()
    if key is None:
        del tables[name]
    else:
        del tables[name][key]
    return tables


BAD = {
    "unknown table": (config(chain={"count": 2}), ["[chain]", "'chains'"]),
    "missing theory": (without("theory"), ["missing table [theory]"]),
    "missing update": (without("update"), ["missing table [[update]]"]),
    "update as table": (config() | {"update": HMC}, ["[[update]]"]),
    "missing coupling": (without("theory", "lambda"), ["[theory]", "lambda"]),
    "missing lattice": (without("theory", "lattice"), ["[theory]", "lattice"]),
    "unknown theory key": (config(theory={"kapa": 0.2}), ["[theory]", "'kapa'", "'kappa'"]),
    "missing seed": (without("chains", "seed"), ["[chains]", "seed"]),
    "negative seed": (config(chains={"seed": -1}), ["[chains]", "seed = -1"]),
    "unknown chains key": (config(chains={"cuont": 2}), ["[chains]", "'cuont'", "'count'"]),
    "no chains": (config(chains={"count": 0}), ["[chains]", "count = 0"]),
    "count as text": (config(chains={"count": "many"}), ["[chains]", "count = 'many'"]),
    "precision": (config(chains={"precision": 16}), ["[chains]", "precision = 16", "64"]),
    "start": (config(chains={"start": "warm"}), ["[chains]", "'warm'", "'cold'"]),
    "file missing": (config(chains={"start": "file"}), ["'file'", "lat.1000"]),
    "file unused": (config(chains={"start": "hot", "file": "a"}), ["ignored"]),
    "file count": (config(chains={"file": ["a", "b"]}), ["2 configurations", "count = 3"]),
    "device": (config(chains={"device": "gpu"}), ["[chains]", "device = 'gpu'"]),
    "no kernel": (config(update=[{"steps": 3}]), ["[[update]] 1", "'kernel'"]),
    "unknown kernel": (config(update=[HMC, {"kernel": "hcm"}]), ["[[update]] 2", "'hmc'"]),
    "kernel key": (
        config(update=[{"kernel": "hmc", "trajektory": 1}]),
        ["[[update]] 1 (hmc)", "'trajektory'", "'trajectory'"],
    ),
    "kernel value": (
        config(update=[{"kernel": "hmc", "steps": "few"}]),
        ["[[update]] 1 (hmc)", "steps = 'few'"],
    ),
    "repeat": (config(update=[{"kernel": "hmc", "repeat": 0}]), ["repeat = 0"]),
    "weight in cycle": (config(update=[{"kernel": "hmc", "weight": 2}]), ["mixture"]),
    "flow for hmc": (config(update=[{"kernel": "hmc", "flow": "f"}]), ["takes no flow"]),
    "independence without flow": (config(update=[{"kernel": "independence"}]), ["'flow'"]),
    "start flow without flow": (config(chains={"start": "flow"}), ["there is none"]),
    "exchange without ladder": (config(update=[HMC, EXCHANGE]), ["[[update]] 2", "[ladder]"]),
    "ladder without exchange": (config(ladder=LADDER), ["[ladder]", 'kernel = "exchange"']),
    "exchange alone": (config(update=[EXCHANGE], ladder=LADDER), ["hmc"]),
    "ladder coupling": (
        config(update=[HMC, EXCHANGE], ladder={"kappa": [1, 2]}),
        ["[ladder]", "'kappa'"],
    ),
    "ladder first value": (
        config(update=[HMC, EXCHANGE], ladder={"m2": [-2.0, 0.0]}),
        ["m2", "-2.0", "-1.0"],
    ),
    "ladder lengths": (
        config(update=[HMC, EXCHANGE], ladder={"m2": [-1.0, 0.0], "lambda": [0.5, 0.5, 0.6]}),
        ["2 of m2", "3 of lambda"],
    ),
    "ladder of one": (config(update=[HMC, EXCHANGE], ladder={"m2": [-1.0]}), ["per replica"]),
    "ladder flows": (
        config(update=[HMC, EXCHANGE], ladder=LADDER | {"flows": ["identity"]}),
        ["2 neighbouring pairs", "flows lists 1"],
    ),
    "updates missing": (without("run", "updates"), ["[run]", "'updates'"]),
    "unknown run key": (config(run={"mesure_every": 2}), ["[run]", "'measure_every'"]),
    "measure_every": (config(run={"measure_every": 0}), ["[run]", "measure_every = 0"]),
    "time_limit": (config(run={"time_limit": "23 parsecs"}), ["time_limit", "23h30m"]),
    "time_limit zero": (config(run={"time_limit": 0}), ["time_limit"]),
    "checkpoint_every": (config(run={"checkpoint_every": "soon"}), ["checkpoint_every"]),
    "schedule": (config(run={"schedule": "random"}), ["'cycle'", "'mixture'"]),
    "unknown observable": (
        config(measure={"observables": ["magnetisation"]}),
        ["[measure]", "'magnetization'"],
    ),
    "observable key": (
        config(measure={"observables": [{"name": "correlator", "axes": 0}]}),
        ["correlator", "'axes'", "'axis'"],
    ),
    "observable twice": (config(measure={"observables": ["phi2", "phi2"]}), ["twice"]),
    "measure key": (config(measure={"observable": ["phi2"]}), ["'observables'"]),
    "save without ensemble": (config(run={"save_every": 2}), ["save_every", "[ensemble]"]),
    "ensemble without save": (config(ensemble=NPY), ["[ensemble]", "save_every"]),
    "unknown format": (
        config(run={"save_every": 2}, ensemble={"format": "nerc"}),
        ["[ensemble]", "nersc"],
    ),
    "format for scalars": (
        config(run={"save_every": 2}, ensemble={"format": "nersc"}),
        ["nersc", "SU(N)", "npy"],
    ),
    "format for U(1)": (
        config(theory=U1, run={"save_every": 2}, ensemble={"format": "milc"}) | {"theory": U1},
        ["milc", "U(1)", "hdf5", "ildg", "npy"],
    ),
    "format in 3 dimensions": (
        config(run={"save_every": 2}, ensemble={"format": "nersc"})
        | {"theory": WILSON | {"lattice": [4, 4, 4]}},
        ["four-dimensional", "npy"],
    ),
    "ensemble name": (
        config(run={"save_every": 2}, ensemble=NPY | {"name": "../x"}),
        ["[ensemble]", "plain file name"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configurations(name):
    tables, fragments = BAD[name]
    with pytest.raises(ConfigError) as caught:
        read_config(tables, Path())
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults():
    resolved = read_config(config(chains={"count": 100, "block": None}), Path())
    assert resolved.chains.start == "hot"
    assert resolved.chains.blocks == [(0, 32), (32, 64), (64, 96), (96, 100)]
    assert read_config(config(chains={"file": "lat.1"}), Path()).chains.start == "file"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("23h30m", 84600), ("90s", 90), ("1d", 86400), ("1.5 h", 5400), (12, 12), (0.5, 0.5)],
)
def test_durations(written, seconds):
    assert seconds_of(written, "here") == seconds


def test_resolved_configuration_reads_back():
    observables = ["phi2", {"name": "correlator", "axis": 0}]
    tables = config(update=[HMC, EXCHANGE], ladder=LADDER, measure={"observables": observables})
    first = read_config(tables, Path())
    again = read_config(tomllib.loads(toml_text(first.resolved)), Path())
    assert not changed_keys(first.resolved, again.resolved)
    assert [entry.label for entry in again.observables] == ["phi2", "correlator(axis=0)"]


def test_changed_keys_are_dotted():
    old = read_config(config(), Path()).resolved
    new = read_config(config(update=[HMC | {"steps": 4}], run={"updates": 21}), Path()).resolved
    assert changed_keys(old, new) == {
        "update[1].steps": (3, 4),
        "update[1].target_acceptance": (0.8, None),
        "run.updates": (20, 21),
    }


def test_toml_text():
    table = {
        "a": 'quote " backslash \\ tab \t é \x7f',
        "b": {"x": 1.0, "y": [1, [True, "z"]], "none": None, "big": 1e300, "odd key": -0.1},
        "c": [{"p": 1}, {"q": {"r": [{"s": 2}]}}],
    }
    back = tomllib.loads(toml_text(table))
    del table["b"]["none"]
    assert back == table


@pytest.mark.parametrize(
    ("format", "precision", "lattice", "reason"),
    [
        ("milc", None, [4, 4, 4, 4], "precision=32"),
        ("milc", 64, [4, 4, 4, 4], "32-bit numbers only"),
        ("openqcd", None, [4, 4, 4, 3], "3"),
        ("openqcd", None, [4, 4], "four-dimensional"),
        ("bmw", None, [4, 4, 4, 4], "only read"),
        ("milc", 32, [4, 4, 4, 4], None),
        ("openqcd", None, [4, 4, 4, 4], None),
        ("hdf5", None, [4, 4], None),
    ],
)
def test_a_format_that_cannot_hold_the_field_is_refused_at_once(format, precision, lattice, reason):
    action = build_action({"action": "wilson", "group": "SU(3)", "lattice": lattice, "beta": 6.0})
    if reason is None:
        check_format(format, action, "[ensemble]", precision=precision)
        return
    with pytest.raises(ConfigError, match=reason):
        check_format(format, action, "[ensemble]", precision=precision)
