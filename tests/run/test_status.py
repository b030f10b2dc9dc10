"""``flowmc status``: how far runs are."""

import json

from flowmc.cli import main
from tests.run.small_runs import config, write


def run(path, updates):
    tables = config(run={"updates": updates})
    return main(["run", write(path / "a.toml", tables), "--output", str(path / "out"), "--resume"])


def test_a_finished_and_an_extended_run(tmp_path, capsys):
    directory = str(tmp_path / "out")
    assert run(tmp_path, 4) == 0
    capsys.readouterr()
    assert main(["status", directory]) == 0
    assert capsys.readouterr().out == f"{directory}: 9 of 9 updates (100%), finished\n"
    text = (tmp_path / "out" / "config.toml").read_text()
    (tmp_path / "out" / "config.toml").write_text(text.replace("updates = 4", "updates = 40"))
    assert main(["status", directory, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {
        "path": directory,
        "update": 9,
        "total": 45,
        "finished": False,
        "reason": "finished",
        "missing_rows": 0,
    }


def test_what_is_no_run(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err


def test_one_process_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    assert main(["status", str(tmp_path)]) == 2
    assert "works in one process" in capsys.readouterr().err
