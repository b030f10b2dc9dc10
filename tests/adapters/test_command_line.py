"""`inspect` and `convert`: what they print for people and for scripts, and their exit status."""

import argparse
import contextlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import flowmc_adapters
import numpy as np
import pytest
from flowmc_adapters import (
    FieldConfiguration,
    FormatError,
    append_field,
    inspect,
    plaquettes,
    read,
    read_field,
    write,
)
from flowmc_adapters.cli import main

KEYS = {
    "path", "format", "writer", "kind", "configurations", "dims", "nc", "precision", "number",
    "mean", "boundary", "plaquette",
    "plaquette_space", "plaquette_time", "link_trace", "unitarity_error", "determinant_error",
    "checksum", "warnings", "error",
}  # fmt: skip


@pytest.fixture
def conf(tmp_path, make_configuration):
    path = tmp_path / "conf"
    write(path, make_configuration(metadata={"SEQUENCE_NUMBER": "12"}), "nersc")
    return path


def damaged(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_json_document(conf, tmp_path, capsys):
    assert main(["inspect", "--json", str(conf), str(tmp_path / "absent")]) == 2
    first, second = json.loads(capsys.readouterr().out)
    assert set(first) == set(second) == KEYS
    links = read(conf).links
    assert first["plaquette"] == plaquettes(links).mean
    assert first["plaquette_space"] == plaquettes(links).space
    assert (first["format"], first["dims"], first["nc"]) == ("nersc", [2, 3, 4, 5], 3)
    assert (first["writer"], first["number"]) == ("flowmc", 12)
    assert set(first["checksum"]) == {"kind", "stored", "computed", "ok"}
    assert (first["error"], first["warnings"]) == (None, [])
    assert "absent" in second["error"]
    assert second["plaquette"] is None


def test_table(conf, capsys):
    assert main(["inspect", str(conf)]) == 0
    text = capsys.readouterr().out
    assert "2 x 3 x 4 x 5" in text
    assert f"{plaquettes(read(conf).links).mean:.12f}" in text
    assert "SU(3)" in text
    assert " ok" in text
    assert re.search(r"number +12\n", text)


def test_status_of_a_wrong_checksum(conf, tmp_path, capsys):
    damaged(conf)
    assert main(["inspect", str(conf)]) == 1
    assert "WRONG" in capsys.readouterr().out
    assert main(["inspect", "--ignore-checksum", str(conf)]) == 0
    target = tmp_path / "copy"
    assert main(["convert", str(conf), str(target), "--format", "ildg"]) == 1
    assert not target.exists()
    assert "checksum does not match" in capsys.readouterr().err
    assert main(["convert", str(conf), str(target), "--format", "ildg", "--ignore-checksum"]) == 0
    assert "checksum does not match" in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.01, np.exp(0.01j), 1e200])
def test_status_of_links_outside_the_group(tmp_path, make_configuration, factor, capsys):
    configuration = make_configuration()
    configuration.links[0, 0, 0, 0, 0] *= factor
    write(tmp_path / "conf", configuration, "npy")
    assert main(["inspect", "--json", str(tmp_path / "conf")]) == 1
    (report,) = json.loads(capsys.readouterr().out)  # strict JSON, no NaN
    assert report["error"] is None
    assert any("not in SU(3)" in warning for warning in report["warnings"])


def test_status_of_nan(tmp_path, make_links):
    links = make_links()
    links[0, 0, 0, 0, 0, 0, 0] = np.nan
    np.save(tmp_path / "conf.npy", links)
    assert main(["inspect", str(tmp_path / "conf.npy")]) == 1


def test_status_of_garbage(tmp_path, capsys):
    (tmp_path / "garbage").write_bytes(b"garbage")
    assert main(["inspect", str(tmp_path / "garbage")]) == 2
    assert "not a known configuration file" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "garbage"), "x", "--format", "npy"]) == 2


def test_convert(conf, tmp_path, capsys):
    target = tmp_path / "copy"
    command = ["convert", str(conf), str(target), "--format", "scidac", "--precision", "32"]
    assert main([*command, "--set", "SEQUENCE_NUMBER=13"]) == 0
    output = capsys.readouterr()
    assert "(nersc, 64 bit)" in output.out
    assert "(scidac, 32 bit)" in output.out
    assert "rounded" in output.err
    assert read(target).number == 13
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["number"], document["precision"], document["error"]) == (12, 32, None)
    assert len(document["warnings"]) == 1


@pytest.mark.parametrize(
    "extra", [["--format", "nercs"], ["--format", "npy", "--set", "no equals sign"]]
)
def test_unusable_arguments(conf, tmp_path, extra, capsys):
    assert main(["convert", str(conf), str(tmp_path / "x"), *extra, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(SystemExit) as caught:
        main(["inspect"])
    assert caught.value.code == 2


def test_extents_from_the_command_line(tmp_path, make_links, capsys):
    data = make_links().astype(">c16").tobytes()
    head = bytes.fromhex("456789ab0001c000") + len(data).to_bytes(8, "big")
    (tmp_path / "bare").write_bytes(head + b"ildg-binary-data".ljust(128, b"\0") + data)
    assert main(["inspect", str(tmp_path / "bare")]) == 2
    assert "--dims" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "bare"), "--dims", "2", "3", "4", "5"]) == 0


def test_module_runs_without_torch(conf):
    source = Path(flowmc_adapters.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-m", "flowmc_adapters", "inspect", "--json", str(conf)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert json.loads(done.stdout) == [inspect(conf)]
    code = "import sys, flowmc_adapters.cli; sys.exit(bool({'torch', 'flowmc'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(FormatError("a/b", 12, "broken")))
    assert str(error) == "a/b: byte 12: broken"
    assert (error.path, error.offset, error.reason) == ("a/b", 12, "broken")


@pytest.fixture
def ensemble(tmp_path, make_configuration):
    """Configurations 10 to 100, one damaged, one empty, beside files that are none."""
    folder = tmp_path / "ensemble"
    folder.mkdir()
    for number in (10, 20, 40, 50, 100):
        configuration = make_configuration(metadata={"SEQUENCE_NUMBER": str(number)})
        write(folder / f"lat.{number}", configuration, "nersc")
    damaged(folder / "lat.20")
    (folder / "lat.50").write_bytes(b"")
    (folder / "notes.txt").write_text("thermalised")
    (folder / ".hidden").write_text("")
    return folder


def test_an_ensemble_at_a_glance(ensemble, capsys):
    assert main(["inspect", str(ensemble)]) == 2
    lines = capsys.readouterr().out.splitlines()
    verdicts = [(line.split()[0], Path(line.split()[1]).name) for line in lines[:5]]
    assert verdicts == [
        ("ok", "lat.10"), ("FAILED", "lat.20"), ("ok", "lat.40"), ("UNUSABLE", "lat.50"),
        ("ok", "lat.100"),
    ]  # fmt: skip
    assert "checksum does not match" in lines[1]
    assert "empty" in lines[3]
    assert lines[5].startswith("skipped") and "notes.txt" in lines[5]
    assert lines[6] == "5 files: 3 ok, 1 FAILED, 1 UNUSABLE"
    assert lines[7] == "numbers 10 to 100 in steps of 10"
    assert lines[8] == "missing numbers: 30, 60, 70, 80, 90"
    assert len(lines) == 9


def test_a_damaged_head_is_no_reason_to_leave_a_file_out(tmp_path, make_configuration, capsys):
    """Named like a configuration by number, suffix, or the names of the others in its directory."""
    folder = tmp_path / "ensemble"
    folder.mkdir()
    names = ["conf.lime", "lat.12", "cfg0100", "b6.0_0100_final", "run1_id2.cfg", "old.h5"]
    for name in ("cfg0090", "b6.0_0090_final", *names):
        write(folder / name, make_configuration((2, 2, 2, 2)), "nersc")
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes(16) + content[16:])
    # What stands beside configurations and is none
    for name in ("README.txt", "plaquette.dat", "run.cfg", "Makefile", "log", "start.sh"):
        (folder / name).write_text("beta = 6.0\n")
    (folder / "propagator.bin").write_bytes(bytes(100))
    assert main(["inspect", str(folder)]) == 2
    lines = capsys.readouterr().out.splitlines()
    unusable = {Path(line.split()[1]).name for line in lines if line.startswith("UNUSABLE")}
    assert unusable == set(names)
    assert "8 files: 2 ok, 0 FAILED, 6 UNUSABLE" in lines
    assert main(["convert", str(folder), str(tmp_path / "new"), "--format", "ildg"]) == 2
    captured = capsys.readouterr()
    assert all(str(folder / name) in captured.err for name in names)
    # And it says what it has left out
    for name in ("README.txt", "plaquette.dat", "run.cfg", "propagator.bin"):
        assert f"skipped {folder / name}: no configuration" in captured.err
    assert "8 files: 2 converted, 6 failed" in captured.out


def test_old_formats_in_a_directory_are_named(tmp_path, make_configuration, capsys):
    write(tmp_path / "a.nersc", make_configuration((2, 2, 2, 2)), "nersc")
    (tmp_path / "quenched").write_bytes(struct.pack(">5i", 19920410, 4, 4, 4, 4) + bytes(2000))
    assert main(["inspect", str(tmp_path)]) == 2
    assert "CP-PACS" in capsys.readouterr().out


def test_what_a_killed_write_has_left_is_named(tmp_path, make_configuration, capsys):
    write(tmp_path / "lat.10", make_configuration((2, 2, 2, 2)), "nersc")
    (tmp_path / ".lat.20.0123456789abcdef.partial").write_bytes(bytes(100))
    assert main(["inspect", str(tmp_path)]) == 0
    assert ".lat.20.0123456789abcdef.partial: unfinished" in capsys.readouterr().out
    source, folder, target = tmp_path / "lat.10", tmp_path / "converted", tmp_path / "lat.20"
    folder.mkdir()
    left = folder / ".lat.20.npy.0123456789abcdef.partial"
    left.touch()
    assert main(["convert", str(source), str(folder), "--format", "npy"]) == 0
    assert f"note: {left}: unfinished" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--format", "npy"]) == 0
    assert ".lat.20.0123456789abcdef.partial: unfinished" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "lat.2"), "--format", "npy"]) == 0
    assert "unfinished" not in capsys.readouterr().err


def test_patterns_work_where_the_shell_leaves_them_alone(ensemble, capsys):
    assert main(["inspect", str(ensemble / "lat.?0")]) == 2
    assert "4 files: 2 ok" in capsys.readouterr().out
    assert main(["inspect", str(ensemble / "nothing.*")]) == 2
    assert "UNUSABLE" in capsys.readouterr().out


def test_patterns_of_directories(ensemble, capsys):
    assert main(["inspect", str(ensemble.parent / "ens*")]) == 2
    assert "5 files: 3 ok" in capsys.readouterr().out


def test_directories_and_companions_in_an_ensemble(tmp_path, make_configuration, capsys):
    """What a shell makes of `inspect runs/* lat.*` is as good as naming the directories."""
    for stream in ("a", "b"):
        (tmp_path / "runs" / stream).mkdir(parents=True)
        for number in (10, 20):
            path = tmp_path / "runs" / stream / f"lat.{number}"
            write(path, make_configuration((2, 2, 2, 4), precision=32), "milc")
            assert Path(f"{path}.info").exists()
    files = sorted(str(path) for path in (tmp_path / "runs" / "a").iterdir())
    assert len(files) == 4
    for arguments in (
        files,
        [str(tmp_path / "runs" / "a" / "lat.*")],
        [str(tmp_path / "runs" / "a")],
        [str(tmp_path / "runs" / "a*")],
    ):
        assert main(["inspect", "--brief", *arguments]) == 0
        assert "2 files: 2 ok" in capsys.readouterr().out
    for arguments in (
        [str(tmp_path / "runs" / "*")],
        [str(tmp_path / "runs" / stream) for stream in ("a", "b")],
    ):
        assert main(["inspect", *arguments]) == 0
        assert "4 files: 4 ok" in capsys.readouterr().out
    # Directories inside are named, and a configuration that cannot be read is no mere directory
    gpt = tmp_path / "runs" / "gpt"
    gpt.mkdir()
    (gpt / "index.crc32").write_text("0")
    assert main(["inspect", str(tmp_path / "runs")]) == 2
    out = capsys.readouterr().out
    assert f"skipped   {tmp_path / 'runs' / 'a'}: a directory, not looked into" in out
    assert re.search(f"UNUSABLE +{gpt} .*GPT", out)
    # By itself a companion gets a helpful answer
    assert main(["inspect", files[1]]) == 2
    assert "give the configuration itself" in capsys.readouterr().out


def test_brief_lines_of_single_files(conf, capsys):
    assert main(["inspect", "--brief", str(conf)]) == 0
    line, summary = capsys.readouterr().out.splitlines()
    assert line.startswith("ok ") and "number 12" in line and "checksum ok" in line
    assert summary == "1 files: 1 ok, 0 FAILED, 0 UNUSABLE"


def test_converting_an_ensemble_keeps_numbers_and_goes_on_after_errors(ensemble, tmp_path, capsys):
    target = tmp_path / "converted"
    assert main(["convert", str(ensemble), str(target), "--format", "ildg"]) == 2
    captured = capsys.readouterr()
    assert "5 files: 3 converted, 2 failed" in captured.out
    assert "lat.20" in captured.err and "lat.50" in captured.err
    assert {path.name: read(path).number for path in target.iterdir()} == {
        "lat.10.lime": 10, "lat.40.lime": 40, "lat.100.lime": 100,
    }  # fmt: skip


def test_existing_files_of_an_ensemble_are_not_touched_unasked(ensemble, tmp_path, capsys):
    target = tmp_path / "converted"
    convert = ["convert", str(ensemble / "lat.10"), str(ensemble / "lat.40"), str(target)]
    assert main([*convert, "--format", "npy"]) == 0
    (target / "lat.40.npy").write_text("precious")
    assert main([*convert, "--format", "npy"]) == 2
    assert "--existing" in capsys.readouterr().err
    (target / "lat.10.npy").unlink()
    assert main([*convert, "--format", "npy", "--existing", "skip"]) == 0
    assert (target / "lat.40.npy").read_text() == "precious"
    # A job that is queued once more has no fault to report
    capsys.readouterr()
    assert main([*convert, "--format", "npy", "--existing", "skip"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*convert, "--format", "npy", "--existing", "skip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main([*convert, "--format", "npy", "--existing", "replace"]) == 0
    assert (target / "lat.40.npy").read_bytes()[:6] == b"\x93NUMPY"


def test_the_number_is_taken_from_the_name_if_the_file_has_none(
    tmp_path, make_configuration, capsys
):
    source = tmp_path / "run1n42.npy"
    write(source, make_configuration(), "npy")
    assert main(["convert", str(source), str(tmp_path / "lat"), "--format", "nersc"]) == 0
    assert read(tmp_path / "lat").number == 42
    assert "taken from the file's name" in capsys.readouterr().err


def test_two_sources_never_become_one_file(tmp_path, make_configuration, capsys):
    for name in ("a.npy", "a.nersc"):
        write(tmp_path / name, make_configuration(), name[2:])
    sources = [str(tmp_path / name) for name in ("a.npy", "a.nersc")]
    assert main(["convert", *sources, str(tmp_path / "new"), "--format", "ildg"]) == 2
    assert "several sources" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_signs_are_stripped_on_request_only(tmp_path, make_configuration, capsys):
    configuration = make_configuration()
    clean = configuration.links.copy()
    configuration.links[-1, ..., 3, :, :] *= -1
    write(tmp_path / "signed", configuration, "npy")
    convert = ["convert", str(tmp_path / "signed"), str(tmp_path / "conf"), "--format", "ildg"]
    assert main(convert) == 1
    assert "--strip-signs" in capsys.readouterr().err
    assert not (tmp_path / "conf").exists()
    assert main([*convert, "--ignore-group"]) == 0
    assert np.array_equal(read(tmp_path / "conf").links, configuration.links)
    assert "--strip-signs" in capsys.readouterr().err
    assert main([*convert, "--strip-signs"]) == 0
    assert np.array_equal(read(tmp_path / "conf").links, clean)
    assert main([*convert, "--reunitarize"]) == 1
    assert "cannot be projected" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "conf"), str(tmp_path / "c2"), "--format", "ildg",
                 "--strip-signs"]) == 0  # fmt: skip
    assert "nothing was stripped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "existing"),
    [
        *[("longer", True), ("zero", False), ("determinant", True)],
        *[pytest.param(d, False, marks=pytest.mark.slow) for d in ("longer", "determinant")],
        pytest.param("zero", True, marks=pytest.mark.slow),
    ],
)
def test_links_that_inspect_fails_get_no_new_checksum(
    tmp_path, make_configuration, writable, capsys, damage, existing
):
    """One link in a file without checksum; the default and every precision of the target."""
    configuration = make_configuration((2, 4, 2, 4))
    link = configuration.links[1, 0, 2, 1, 2]
    link *= {"longer": 0.9, "zero": 0.0, "determinant": 1j}[damage]
    source, target = tmp_path / "source.npy", tmp_path / "target"
    write(source, configuration, "npy")
    assert main(["inspect", str(source)]) == 1
    if existing:
        target.write_bytes(b"old")
    before = sorted(path.name for path in tmp_path.iterdir())
    convert = ["convert", str(source), str(target), "--format", writable, "--precision"]
    capsys.readouterr()
    assert 1 in (codes := [main([*convert, bits]) for bits in ("32", "64")])
    assert 0 not in codes
    message = capsys.readouterr().err
    assert "--ignore-group" in message
    assert ("zero matrices" if damage == "zero" else "not in SU(3)") in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not existing or target.read_bytes() == b"old"
    asked = [main([*convert, bits, "--ignore-group"]) for bits in ("32", "64")]
    assert 0 in asked
    assert "warning" in capsys.readouterr().err
    assert main(["inspect", str(target)]) == 1


def test_links_that_are_projected_or_rounded_pass(tmp_path, make_configuration):
    """What counts are the links that are written."""
    configuration = make_configuration()
    configuration.links[0, 0, 0, 0, 0] *= 1.001
    write(tmp_path / "off", configuration, "npy")
    convert = ["convert", str(tmp_path / "off"), str(tmp_path / "conf"), "--format", "nersc"]
    assert main(convert) == 1
    assert main([*convert, "--reunitarize"]) == 0
    assert main(["inspect", str(tmp_path / "conf")]) == 0


STEERING = "\x1b[2J\x1b]0;title\x07\u202e\x9b31m"


def hostile_files(folder, conf):
    """Files whose heads, keys, values and names would steer a terminal or fake lines of output."""
    text = STEERING.encode("utf-8")
    content = conf.read_bytes()
    key = content.replace(b"ENSEMBLE_ID = ", b"E" + text + b" = 1\nE" + text + b" = ", 1)
    lime = b"\x45\x67\x89\xab\x00\x01\xc0\x00" + bytes(8) + text.ljust(128, b"\0")
    contents = {
        "key": key,
        "value": content.replace(b"CREATOR = flowmc", b"CREATOR = " + text, 1),
        "datatype": content.replace(b"_GAUGE", text, 1),
        "kind": lime,
        "kinds": lime + text,
        "npy": b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n",
        "unknown": text * 10,
    }
    for name, data in contents.items():
        (folder / f"lat.{name}.1").write_bytes(data)
    for name in (
        f"lat{STEERING}.2",
        "lat\nok fake.3",
        os.fsdecode(b"lat\xff\xfe.4"),
        "lat1\xb23.5",
    ):
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("command", ["inspect", "inspect one by one", "convert"])
def test_no_text_of_a_foreign_file_steers_the_terminal(tmp_path, conf, command, encoding):
    folder = tmp_path / "hostile"
    folder.mkdir()
    hostile_files(folder, conf)
    files = [str(path) for path in folder.iterdir()]
    arguments = {
        "inspect": ["inspect", str(folder)],
        "inspect one by one": ["inspect", *files],
        "convert": ["convert", str(folder), str(tmp_path / "new"), "--format", "ildg"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-m", "flowmc_adapters", *arguments],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(flowmc_adapters.__file__).parents[1]),
            "PYTHONIOENCODING": encoding,
        },
        capture_output=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2), output
    assert b"Traceback" not in output
    text = output.decode(encoding)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert not re.search("(?m)^ok fake", text)
    assert r"lat\xff\xfe.4" in text


def test_messages_of_errors_are_printable(tmp_path, conf):
    hostile_files(tmp_path, conf)
    for path in tmp_path.iterdir():
        with contextlib.suppress(OSError):
            try:
                texts = read(path).warnings
            except FormatError as error:
                texts = [str(error)]
            assert all(text.isprintable() for text in texts)


def test_ten_thousand_names_take_no_time(tmp_path, monkeypatch):
    """What is done with the names of an ensemble does not grow with their square."""
    from flowmc_adapters.commands import convert as command
    from flowmc_adapters.commands import inspect as other
    from flowmc_adapters.commands.files import FileList
    from flowmc_adapters.inspection import Inspection

    names = [f"/absent/lat.{number}" for number in range(20_000)]
    monkeypatch.setattr(command, "expand", lambda _: FileList(names, [], many=True))
    arguments = argparse.Namespace(
        source=["x"], destination=str(tmp_path), format="nersc", existing=None, json=True
    )
    empty = dict.fromkeys(inspect(tmp_path / "absent"))
    begin = time.process_time()
    pairs, _ = command._pairs(arguments)
    text = other._summary([Inspection(empty | {"path": name}) for name in names])
    assert time.process_time() - begin < 5  # minutes, with a search of the list for each name
    assert len(pairs) == 20_000
    assert "numbers 0 to 19999" in text


def test_options_are_checked_before_anything_is_read(conf, tmp_path, capsys):
    convert = ["convert", str(conf), str(tmp_path / "x"), "--format", "npy"]
    assert main([*convert, "--option", "colour=red"]) == 2
    assert "no option 'colour'" in capsys.readouterr().err


def test_converting_scalar_fields(tmp_path, capsys):
    field = FieldConfiguration(
        np.random.default_rng(1).normal(size=(4, 6)), "scalar", {"ACTION": "x"}
    )
    source = tmp_path / "phi.h5"
    for number in (10, 20):
        append_field(source, field, number)
    convert = ["convert", str(source), str(tmp_path / "phi.lime"), "--format", "ildg"]
    assert main(convert) == 2
    assert "10" in capsys.readouterr().err
    assert main([*convert, "--number", "20"]) == 0
    copy = read_field(tmp_path / "phi.lime")
    assert np.array_equal(copy.values, field.values)
    assert (copy.number, copy.metadata["ACTION"]) == (20, "x")
    assert (
        main(["convert", str(tmp_path / "phi.lime"), str(tmp_path / "p.npy"), "--format", "npy"])
        == 0
    )
    assert np.array_equal(np.load(tmp_path / "p.npy"), field.values)
    nersc = ["convert", str(tmp_path / "phi.lime"), str(tmp_path / "p"), "--format", "nersc"]
    assert main(nersc) == 2
    assert "scalar and U(1) fields are written as" in capsys.readouterr().err
