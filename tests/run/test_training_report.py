"""`flowmc report FLOW.safetensors`: what a training says, finished or not."""

import json

import pytest

from flowmc.cli import main
from flowmc.reports.analysis.training import TrainingRecord
from flowmc.reports.as_html import as_html
from flowmc.reports.training import training_document
from tests.run.small_runs import save_untrained_flow

CONFIG = {"training": {"steps": 1000}, "theory": {"action": "phi4", "lattice": [4, 4]}}


def write_log(path, last=1000, slope=1.0):
    with open(path, "w") as log:
        for step in range(10, last + 1, 10):
            entry = {
                "step": step,
                "loss": -20 - slope * step / 100 + 0.01 * (step % 3),
                "ess": 0.5,
                "gradient_norm": None if step == 500 else 1.0,
                "learning_rate": 1e-3,
                "seconds": 0.1 * step,
                "skipped": int(step >= 500),
                "density_error": 0.0,
                "max_weight_share": 0.02,
            }
            log.write(json.dumps(entry) + "\n")
        log.write('{"step": 10')


def write_flow(path):
    save_untrained_flow(
        path,
        training={"config": CONFIG, "steps": 1000, "skipped": 1, "seconds": 123.0},
        measured={"ess": 0.6, "ess_error": 0.01, "acceptance": 0.5, "acceptance_error": 0.01},
    )


def test_a_finished_training(tmp_path, capsys):
    flow = tmp_path / "flow.safetensors"
    write_flow(flow)
    write_log(tmp_path / "flow.log.jsonl", slope=0.0)
    assert main(["report", str(flow)]) == 0
    printed = capsys.readouterr().out
    assert "1000 of 1000 steps in 2.05 min" in printed and "1 step skipped" in printed
    # Of an independence chain, 2 tau_int = 2 / acceptance - 1.
    assert "an independent sample needs 3 of its proposals" in printed
    assert "flowmc report HMC_RUN FLOW_RUN" in printed
    assert "does not fall visibly" in printed
    page = (tmp_path / "flow.report.html").read_text()
    assert page.count("<figure") == 2 and "Does it pay?" in page
    assert "largest weight of a batch" in page
    assert main(["report", str(flow), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"] == 1000 and document["measured"]["ess"] == 0.6
    assert document["log"]["gradient_norm"][49] is None
    assert document["pays"]["verdict"] == "undecided"


@pytest.mark.parametrize("name", ["flow.safetensors", "flow.log.jsonl"])
def test_a_training_that_goes_on(tmp_path, capsys, name):
    write_log(tmp_path / "flow.log.jsonl", last=700)
    assert main(["report", str(tmp_path / name), "--page", str(tmp_path / "a.html")]) == 0
    printed = capsys.readouterr().out
    assert "700 steps" in printed and "not complete" in printed
    assert "still falling" in printed and "not measured yet" in printed
    assert (tmp_path / "a.html").is_file()
    assert not list(tmp_path.glob("*report*"))


def test_what_is_no_training(tmp_path, capsys):
    assert main(["report", str(tmp_path / "flow.safetensors")]) == 2
    assert "is not there" in capsys.readouterr().err
    (tmp_path / "flow.safetensors").write_bytes(b"nothing that is a flow")
    assert main(["report", str(tmp_path / "flow.safetensors")]) == 2
    write_log(tmp_path / "a.log.jsonl")
    words = ["report", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert main(words) == 2
    assert "stands alone" in capsys.readouterr().err


def test_lines_of_a_log_from_before(tmp_path):
    """Logs without the largest weight are drawn without it."""
    path = tmp_path / "flow.log.jsonl"
    path.write_text('{"step": 10, "loss": 1.0, "ess": 0.1, "seconds": 1.0, "skipped": 0}\n')
    record = TrainingRecord.open(path)
    assert set(record.columns) == {"loss", "ess"}
    assert as_html(training_document(record)).count("<figure") == 1
