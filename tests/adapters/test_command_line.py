"""`inspect` and `convert`: what they print for people and for scripts, and their exit status."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import flowmc_adapters
import numpy as np
import pytest
from flowmc_adapters import FormatError, inspect, plaquettes, read, write
from flowmc_adapters.cli import main

KEYS = {
    "path", "format", "writer", "dims", "nc", "precision", "number", "plaquette",
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
    assert "number         12" in text


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
    assert "warning: checksum" in capsys.readouterr().err


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
