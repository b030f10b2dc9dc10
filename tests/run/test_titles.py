"""A part of one's own is called in reports by the title that it declares."""

import pytest
import torch

from flowmc import read_run
from flowmc.actions import Phi4
from flowmc.cli import main
from flowmc.io import write_field
from flowmc.observables import observable
from flowmc.random import stream
from tests.run.small_runs import config, write


class Quartic(Phi4):
    name = "quartic"
    title = "quartic theory"

    def at(self, **couplings):
        return Quartic(self.lattice, **{"m2": 1.0, "lam": 0.5})


@observable(title="Mean fourth power")
def fourth(field, action, *, scale: float = 1.0):
    return scale * field.pow(4).mean((1, 2))


def plain_mean(field, action):
    return field.mean((1, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("titles")
    tables = config(
        theory={"action": f"{__name__}:Quartic"},
        measure={
            "observables": [
                "phi2",
                {"name": f"{__name__}:fourth", "scale": 2.0},
                f"{__name__}:plain_mean",
            ]
        },
    )
    assert main(["run", write(path / "a.toml", tables), "--output", str(path / "out")]) == 0
    return path / "out"


def test_titles_stand_beside_the_values(run):
    recorded = read_run(run)
    assert recorded.theory_title == "quartic theory"
    assert recorded.title("phi2") == "⟨φ²⟩"
    assert recorded.title("fourth(scale=2.0)") == "Mean fourth power (scale=2.0)"
    assert recorded.title("plain_mean") == "plain mean"


def test_the_documents_of_correlate_have_them(tmp_path, monkeypatch):
    documents = []
    # Without the figures, which take longer than all else.
    monkeypatch.setattr(
        "flowmc.commands.correlate.write_html", lambda one, _: documents.append(one)
    )
    action = Phi4([4, 4], m2=1.0, lam=0.5)
    for number in range(1, 21):
        field = torch.randn(1, 4, 4, dtype=torch.float64, generator=stream(number, 0, "titles"))
        write_field(tmp_path / f"a.{number}.npy", field, action, format="npy")
    tables = {
        "theory": config()["theory"] | {"action": f"{__name__}:Quartic", "m2": 1.0},
        "ensemble": {"files": str(tmp_path / "a.*.npy")},
        "measure": {"observables": ["phi2"]},
    }
    path, out = write(tmp_path / "a.toml", tables), str(tmp_path / "out")
    assert main(["correlate", path, "--output", out]) == 0
    assert documents[0].theory.startswith("quartic theory on")


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_them(run, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Mean fourth power (scale=2.0)" in text and "quartic theory" in text
    assert f"{__name__}:Quartic" not in text.partition("<details")[0]
