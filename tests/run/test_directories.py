"""Run directories that are not what they should be: nothing is lost, nothing wrong goes on."""

import dataclasses
import errno
import fcntl
import json
import os
import random
import shutil

import h5py
import pytest
import torch

from flowmc.chains import opening
from flowmc.chains.runner import Runner
from flowmc.chains.storage.checkpoint import read_checkpoint, write_checkpoint
from flowmc.cli import main
from flowmc.commands.report import write_report
from flowmc.parallel import Communicator
from tests.run.small_runs import config, digests, save_untrained_flow, write

TABLES = config(
    update=[
        {"kernel": "hmc", "steps": 3, "target_acceptance": 0.8},
        {"kernel": "independence", "flow": "f.safetensors", "proposals": 2},
    ],
    run={"save_every": 5, "measure_every": 3},
    ensemble={"format": "npy"},
)
LONGER = TABLES | {"run": TABLES["run"] | {"updates": 25}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 25 updates, thermalization included, and one of 30."""
    folder = tmp_path_factory.mktemp("finished")
    save_untrained_flow(folder / "f.safetensors")
    for name, tables in (("a", TABLES), ("longer", LONGER)):
        path = write(folder / f"{name}.toml", tables)
        assert main(["run", path, "--output", str(folder / name)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run of 25 updates."""
    shutil.copytree(finished / "a", tmp_path / "out")
    return tmp_path / "out"


def resume(finished, directory, name="longer"):
    return main(["run", str(finished / f"{name}.toml"), "--output", str(directory), "--resume"])


def refused(finished, directory, capsys, *fragments):
    """Check that a resume is refused with these words and changes nothing."""
    before = digests(directory)
    capsys.readouterr()
    assert resume(finished, directory) == 2
    said = capsys.readouterr().err
    assert said.startswith("flowmc: error: ") and said.count("\n") == 1, said
    for fragment in fragments:
        assert fragment in said
    assert digests(directory) == before


def test_a_run_without_its_checkpoint_is_not_started_over(finished, copy, capsys):
    (copy / "checkpoint.h5").unlink()
    holds = "log.jsonl and ensemble and measurements.h5"
    refused(finished, copy, capsys, "checkpoint.h5 is missing", holds)
    # Nor by another theory, whatever is left.
    other = LONGER | {"theory": LONGER["theory"] | {"m2": -0.5}}
    other = other | {"update": TABLES["update"][:1]}
    path = write(copy.parent / "other.toml", other)
    for lost in ((), ("log.jsonl", "measurements.h5", "ensemble")):
        for name in lost:
            shutil.rmtree(copy / name) if name == "ensemble" else (copy / name).unlink()
        before = digests(copy)
        assert main(["run", path, "--output", str(copy), "--resume"]) == 2
        assert "theory.m2" in capsys.readouterr().err
        assert digests(copy) == before


def test_what_a_kill_leaves_of_a_start_is_started_over(finished, tmp_path, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opening, "write_checkpoint", die)
        assert resume(finished, tmp_path / "out") == 130
    assert (tmp_path / "out" / "measurements.h5").exists()
    assert resume(finished, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == digests(finished / "longer")


def test_the_lock_comes_before_the_look(finished, tmp_path, monkeypatch, capsys):
    """A second start while the first one still builds its kernels."""
    path, output = str(finished / "a.toml"), str(tmp_path / "out")
    assemble, second = opening.assemble, []

    def assemble_slowly(*arguments):
        if not second:
            second.append(None)
            second.append(main(["run", path, "--output", output]))
        return assemble(*arguments)

    monkeypatch.setattr(opening, "assemble", assemble_slowly)
    assert main(["run", path, "--output", output]) == 0
    assert second == [None, 2]
    assert "another flowmc process is running" in capsys.readouterr().err
    assert digests(tmp_path / "out") == digests(finished / "a")


def test_every_flipped_bit_of_a_checkpoint_is_found(finished, copy, capsys):
    """In fields, actions, log-densities, random streams, counts, and the checksums themselves."""
    path = copy / "checkpoint.h5"
    content, draw = path.read_bytes(), random.Random(1)
    with h5py.File(path, "r", locking=False) as file:
        places = {}

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and item.size:
                places[name] = item.id.get_offset(), item.nbytes

        file.visititems(visit)
    assert {name.split("/")[-1] for name in places} >= {"field", "action", "random", "checksums"}
    assert any("/log_q/" in name for name in places)
    for name, (offset, size) in places.items():
        damaged = bytearray(content)
        damaged[offset + draw.randrange(size)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        if name == "checksums" or name.startswith("pending/"):
            refused(finished, copy, capsys, "is not a sound checkpoint")
        else:
            with pytest.raises(opening.ConfigError, match=f"numbers of {name} have changed"):
                read_checkpoint(path, torch.device("cpu"), {0: [0], 1: [0]}, 1)
    for bit in [draw.randrange(8 * 4096) for _ in range(10)]:
        damaged = bytearray(content)
        offset, size = places["blocks/0000/replicas/0/field"]
        damaged[offset + (bit // 8) % size] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(finished, copy, capsys, "field have changed since they were written")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chains": {"seed": 8}}, "is of a run with seed 8, not of this one with seed 7"),
        ({"run": {"measure_every": 2}}, "is of a run with another configuration"),
    ],
)
def test_the_checkpoint_of_another_run(finished, copy, tmp_path, capsys, change, says):
    tables = {key: value | change.get(key, {}) if key in change else value
              for key, value in TABLES.items()}  # fmt: skip
    save_untrained_flow(tmp_path / "f.safetensors")
    assert main(["run", write(tmp_path / "b.toml", tables), "--output", str(tmp_path / "b")]) == 0
    shutil.copy(tmp_path / "b" / "checkpoint.h5", copy)
    refused(finished, copy, capsys, "checkpoint.h5", says)


def rewritten(directory, change):
    """Write a checkpoint anew, checksums included, with something changed."""
    path = directory / "checkpoint.h5"
    stored = read_checkpoint(path, torch.device("cpu"), {0: [0], 1: [0]}, 1)
    write_checkpoint(path, change(stored), Communicator())


def test_the_stored_action_is_that_of_the_theory(finished, copy, capsys):
    """As it is not if a user's action has been edited in the meantime."""

    def other_action(stored):
        stored.states[1].action[0] += 1e-4
        return stored

    rewritten(copy, other_action)
    refused(finished, copy, capsys, "chains 2 to 2", "the action of the stored fields is not")


def test_a_checkpoint_beyond_the_end(finished, copy, capsys):
    rewritten(copy, lambda stored: dataclasses.replace(
        stored, head=dataclasses.replace(stored.head, update=31)))  # fmt: skip
    refused(finished, copy, capsys, "is at update 31 of a run that has 30")


def test_measurements_older_than_the_checkpoint(finished, copy, tmp_path, capsys):
    early = TABLES | {"run": TABLES["run"] | {"updates": 9}}
    write(finished / "early.toml", early)
    assert resume(finished, tmp_path / "early", "early") == 0
    with (
        h5py.File(tmp_path / "early" / "measurements.h5") as old,
        h5py.File(copy / "measurements.h5", "r+") as file,
    ):
        for name in ("updates", "observables/phi2"):
            file[f"production/{name}"][3:] = -1
            file[f"production/{name}"][:3] = old[f"production/{name}"][:3]
    says = "3 of 7 rows up to update 25 of the checkpoint are missing"
    refused(finished, copy, capsys, "measurements.h5", says)
    assert main(["status", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "3 rows of measurements" in said and "finished" not in said
    assert main(["status", str(copy), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found["missing_rows"] == 3 and not found["finished"]
    assert main(["report", str(copy), "--json"]) == 2
    assert says in capsys.readouterr().err


def test_measurements_that_have_changed(finished, copy, capsys):
    path = copy / "measurements.h5"
    with h5py.File(path, "r") as file:
        offset = file["production/observables/phi2"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    refused(finished, copy, capsys, "rows up to update 25", "measurements.h5", "have changed")
    assert main(["report", str(copy), "--json"]) == 2
    assert "have changed" in capsys.readouterr().err


def test_a_hole_among_the_rows_is_no_report(finished, copy, capsys):
    (copy / "checkpoint.h5").unlink()
    with h5py.File(copy / "measurements.h5", "r+") as file:
        file["production/updates"][2] = -1
    assert main(["report", str(copy), "--json"]) == 2
    assert "rows of production are missing" in capsys.readouterr().err


def remove_file(directory):
    (directory / "measurements.h5").unlink()


def replace_file(directory):
    shutil.copy(directory / "measurements.h5", directory / "new")
    os.replace(directory / "new", directory / "measurements.h5")


def replace_directory(directory):
    os.rename(directory, directory.with_name("away"))
    shutil.copytree(directory.with_name("away"), directory)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (remove_file, "measurements.h5: was removed or replaced"),
        (replace_file, "measurements.h5: was removed or replaced"),
        (shutil.rmtree, "out: was removed or replaced"),
        (replace_directory, "out: was removed or replaced"),
    ],
)  # fmt: skip
def test_what_is_removed_under_a_running_run(finished, tmp_path, monkeypatch, capsys, act, says):
    advance = Runner._advance

    def then_act(self):
        advance(self)
        if self.update == 10:
            act(self.directory.path)

    monkeypatch.setattr(Runner, "_advance", then_act)
    assert resume(finished, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flowmc: error: cannot write while at update 12: ") and says in error


def test_a_file_system_without_locks_is_told(finished, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert resume(finished, tmp_path / "out") == 0
    assert "has no locks, so nothing keeps a second flowmc out" in capsys.readouterr().err
    assert '"warning"' in (tmp_path / "out" / "log.jsonl").read_text()
    assert digests(tmp_path / "out") == digests(finished / "longer")


def test_hdf5_takes_no_locks_of_its_own(finished, copy, monkeypatch, capsys):
    """Where they are missing it would refuse to open anything."""
    opened, found = h5py.File.__init__, []

    def noted(self, *arguments, **keywords):
        # Of what h5py itself makes of an open file the name is no path.
        if isinstance(arguments[0], str | os.PathLike):
            found.append(keywords.get("locking"))
        opened(self, *arguments, **keywords)

    monkeypatch.setattr(h5py.File, "__init__", noted)
    assert resume(finished, copy) == 0
    assert main(["status", str(copy)]) == 0 and main(["report", str(copy), "--json"]) == 0
    assert len(found) > 10 and set(found) == {False}


def test_a_checkpoint_of_earlier_versions(finished, copy, capsys):
    with h5py.File(copy / "checkpoint.h5", "r+") as file:
        del file["checksums"]
        for key in ("checksum", "seed", "configuration", "rows"):
            del file.attrs[key]
        file.attrs["layout"] = 2
    assert main(["report", str(copy), "--json"]) == 0
    capsys.readouterr()
    assert resume(finished, copy) == 0
    assert "comes from an earlier version of flowmc" in capsys.readouterr().err
    assert digests(copy) == digests(finished / "longer")


def test_checksums_cannot_be_taken_off(finished, copy, capsys):
    with h5py.File(copy / "checkpoint.h5", "r+") as file:
        file.attrs["layout"] = 2
    refused(finished, copy, capsys, "is not a sound checkpoint")


def test_other_versions_are_told(finished, copy, capsys):
    provenance = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps(provenance | {"torch": "1.0"}))
    assert resume(finished, copy) == 0
    assert "torch was 1.0 and is" in capsys.readouterr().err


def test_checkpoints_have_their_numbers_in_themselves(finished, copy, capsys):
    """A field in another file, with checksums that are right."""
    path, name = copy / "checkpoint.h5", "blocks/0000/replicas/0/field"
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        values.tofile(copy / "elsewhere")
        del file[name]
        external = [(str(copy / "elsewhere"), 0, values.nbytes)]
        file.create_dataset(name, values.shape, values.dtype, external=external)
    refused(finished, copy, capsys, "field is not stored as plain numbers in the file itself")


def test_planted_links_are_not_followed(finished, copy, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.write_text("text")
    (copy / "report.html").symlink_to(precious)
    write_report(copy)
    assert precious.read_text() == "text" and not (copy / "report.html").is_symlink()
    for name in ("log.jsonl", "measurements.h5"):
        shutil.copy(copy / name, tmp_path / name)
        (copy / name).unlink()
        (copy / name).symlink_to(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        assert resume(finished, copy) == 2
        assert f"{name}: is a symbolic link" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
        # A link to a file of one's own is read.
        assert main(["report", str(copy), "--json"]) == 0
        (copy / name).unlink()
        shutil.copy(tmp_path / name, copy / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_of_somebody_else_shows_nothing(copy, tmp_path, capsys):
    secret = tmp_path / "secret"
    secret.write_text("[theory]\npassword = 1\n")
    (copy / "config.toml").unlink()
    (copy / "config.toml").symlink_to(secret)
    os.lchown(copy / "config.toml", 12345, 12345)
    assert main(["report", str(copy)]) == 2
    printed = capsys.readouterr()
    assert "symbolic link to a file of somebody else" in printed.err
    assert "password" not in printed.out


def test_a_report_that_cannot_be_written_is_no_success(copy, capsys):
    (copy / "report.html").mkdir()
    assert main(["report", str(copy)]) == 2
    assert "report.html was not written" in capsys.readouterr().err


def test_a_time_limit_that_is_too_short(tmp_path, capsys):
    tables = config(run={"time_limit": "0.001s"})
    path = write(tmp_path / "a.toml", tables)
    assert main(["run", path, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "time_limit = '0.001s' is too short: the start and 0 updates" in said
