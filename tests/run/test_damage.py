"""Damaged run directories: one sentence that names the file, or results that are still right."""

import contextlib
import io
import json
import shutil
import time
from pathlib import Path

import h5py
import pytest

from flowmc.cli import main
from flowmc.jobs import raw_hdf5
from tests.run.damage import damage
from tests.run.small_runs import config, digests, write

TABLES = config(
    chains={"count": 3, "block": 2},
    run={"updates": 8, "save_every": 4, "checkpoint_every": 5},
    ensemble={"format": "npy"},
)
LONGER = TABLES | {"run": TABLES["run"] | {"updates": 10}}
LADDER = TABLES | {
    "ladder": {"m2": [-1.0, -0.5]},
    "update": [{"kernel": "hmc", "steps": 2}, {"kernel": "exchange"}],
}
LONGER_LADDER = LADDER | {"run": LONGER["run"]}


def said_by(*words):
    """Return the exit status of a command, and what it says on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


class Sound:
    """A run that is sound, what is said of it, and what becomes of it."""

    def __init__(self, folder: Path, tables, longer) -> None:
        self.path, self.longer = folder / "sound", write(folder / "longer.toml", longer)
        assert said_by("run", write(folder / "a.toml", tables), "--output", self.path)[0] == 0
        self.report = json.loads(said_by("report", self.path, "--json")[1])
        shutil.copytree(self.path, folder / "resumed")
        assert said_by("run", self.longer, "--output", folder / "resumed", "--resume")[0] == 0
        self.resumed = digests(folder / "resumed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Sound(tmp_path_factory.mktemp("plain"), TABLES, LONGER)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return Sound(tmp_path_factory.mktemp("ladder"), LADDER, LONGER_LADDER)


def check_refusal(said, directory, what):
    """One sentence that names a file of the directory."""
    lines = said.splitlines()
    assert len(lines) == 1, f"{what}: {said}"
    assert lines[0].startswith("flowmc") and str(directory) in lines[0], f"{what}: {said}"
    assert len(lines[0]) < 2000, what


def check_damaged(sound, folder, seeds):
    """Damage a copy in many ways; every command refuses it or is right.  Returns refusals."""
    refused = {"status": 0, "report": 0, "run": 0}
    for seed in seeds:
        directory = folder / f"damaged{seed}"
        shutil.copytree(sound.path, directory)
        name, what = damage(directory, seed)
        what = f"seed {seed}: {what}"
        began = time.monotonic()
        status, out, err = said_by("status", directory)
        refused["status"] += status == 2
        assert status in (0, 1, 2), what
        if status == 2:
            check_refusal(err, directory, what)
        status, out, err = said_by("report", directory, "--json")
        refused["report"] += status == 2
        assert status in (0, 2), what
        if status == 2:
            check_refusal(err, directory, what)
        elif name in ("checkpoint.h5", "measurements.h5") and (directory / name).exists():
            found = json.loads(out)
            found["path"] = sound.report["path"]
            found["page"]["title"] = sound.report["page"]["title"]  # the name of the directory
            assert found == sound.report, what
        status, _, err = said_by("run", sound.longer, "--output", directory, "--resume")
        refused["run"] += status == 2
        assert status in (0, 2), f"{what}: {err}"
        if status == 2:
            check_refusal(err.splitlines()[-1], directory, f"{what}: {err}")
            assert "Traceback" not in err, what
        else:
            assert digests(directory) == sound.resumed, what
        # Nothing waits for a FIFO or reads a device to its end.
        assert time.monotonic() - began < 60, what
        shutil.rmtree(directory)
    return refused


def test_damaged_directories(plain, tmp_path):
    # The last two: a number of updates that is none, a text in the place of a unit.
    refused = check_damaged(plain, tmp_path, [*range(50), 10434, 10740])
    assert refused["run"] > 20 and refused["report"] > 17 and refused["status"] > 13


@pytest.mark.parametrize("name, count", [("measurements.h5", 11), ("checkpoint.h5", 2)])
def test_no_text_is_in_a_heap(ladder, name, count):
    """On a damaged heap of texts HDF5 crashes, or never ends."""
    with h5py.File(ladder.path / name) as file:
        items = [file]
        file.visititems(lambda name, item: items.append(item))
        kinds = [item.attrs.get_id(key).get_type() for item in items for key in item.attrs]
    texts = [kind for kind in kinds if kind.get_class() == h5py.h5t.STRING]
    assert len(texts) >= count and not any(kind.is_variable_str() for kind in texts)


def test_attributes_as_they_were_set(tmp_path):
    """Also what is too long for a place of its own."""
    attributes = {"empty": "", "greek": "λ", "long": "x" * 100_000, "count": 3}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw_hdf5.set_attributes(file, attributes)
    with h5py.File(tmp_path / "a.h5") as file:
        assert {key: raw_hdf5.plain(value) for key, value in file.attrs.items()} == attributes


def test_damaged_directories_of_a_ladder(ladder, tmp_path):
    assert check_damaged(ladder, tmp_path, range(1000, 1016))["run"] > 6


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_damaged_directories(plain, ladder, tmp_path, part, share):
    first = 10_000 * (part + 1)
    check_damaged(plain, tmp_path, range(first, first + 1500 // share))
    check_damaged(ladder, tmp_path, range(first + 5000, first + 5000 + 500 // share))
