"""Training on configurations that are on disk.

The statistical check compares with the exact <phi^2> of a free field at 5 standard errors (6e-7).
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowmc.actions import FreeScalar
from flowmc.commands.train import train
from flowmc.flows.cards.files import load_flow
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.plan import make_plan
from flowmc.training.stored import StoredConfigurations

ACTION = FreeScalar([4, 4], m2=1.0)
SMALL = {"frequencies": 5, "site_channels": 3, "time_frequencies": 1, "time_channels": 2}
TABLES = {
    "theory": {"action": "free", "lattice": [4, 4], "m2": 1.0},
    "ensemble": {"files": "files"},
    "prior": {"name": "free_field", "m2": 3.0},
    "flow": {"name": "continuous", **SMALL, "steps": 5},
    "training": {
        "objective": "forward_kl",
        "steps": 75,
        "batch": 50,
        "learning_rate": 1e-2,
        "precision": 32,
        "evaluate_samples": 64,
    },
}


def write(folder, count=400):
    (folder / "files").mkdir()
    fields = ACTION.sample(count, stream(5, 0, "test")).numpy()
    for number, field in enumerate(fields):
        np.save(folder / "files" / f"phi.{number}.npy", field)
    return fields


def numbered(count, reads=None):
    """Configurations whose values are their places."""

    def read(places):
        if reads is not None:
            reads.append(list(places))
        return torch.tensor(places, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 4, 4)

    return StoredConfigurations(ACTION, count, read, "target", 1)


def drawn(ensemble, n):
    fields, rows = ensemble.draw_share(n)
    return fields[:, 0, 0].long().tolist(), rows.tolist()


def test_every_configuration_comes_once_before_any_comes_again():
    reads = []
    ensemble = numbered(10, reads)
    places = [place for _ in range(5) for place in drawn(ensemble, 4)[0]]
    assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
    assert places[:10] != places[10:] and places[:10] != list(range(10))
    assert sum(map(len, reads)) == 10, "nothing is read twice"
    whole = drawn(ensemble, 25)[0]
    assert max(whole.count(place) for place in range(10)) == 3


def test_what_does_not_fit_into_memory_is_read_again(monkeypatch):
    monkeypatch.setattr("flowmc.training.stored._KEPT_BYTES", 4 * 16 * 8)
    reads = []
    ensemble = numbered(10, reads)
    for _ in range(6):
        drawn(ensemble, 5)
    assert len(ensemble._kept) == 4
    assert sum(map(len, reads)) == 10 + 2 * 6


@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranks_share_a_batch(size):
    single = numbered(10)
    ranks = [numbered(10) for _ in range(size)]
    for rank, ensemble in enumerate(ranks):
        ensemble.distribute(SimpleNamespace(rank=rank, size=size))
    for n in (5, 4):
        expected = drawn(single, n)[0]
        found = {}
        for ensemble in ranks:
            places, rows = drawn(ensemble, n)
            found |= dict(zip(rows, places, strict=True))
        assert [found[row] for row in range(n)] == expected


def test_goes_on_where_it_was():
    ensemble, other = numbered(10), numbered(10)
    drawn(ensemble, 7)
    other.load_state_dict(ensemble.state_dict())
    assert drawn(other, 9) == drawn(ensemble, 9)


@pytest.mark.slow
def test_training_on_files(tmp_path):
    write(tmp_path)
    path = tmp_path / "flow.safetensors"
    assert train(make_plan(TABLES, tmp_path), path)
    model = load_flow(path).model.to(torch.float64)
    with torch.no_grad():
        x, log_q = model.sample(1500, stream(6, 0, "test"))
    log_weights = -ACTION(x) - log_q
    weights = torch.softmax(log_weights, 0)
    assert 1 / float(weights.square().sum()) > 0.8 * 1500
    phi2 = x.square().mean((1, 2)).double()
    mean = float((weights * phi2).sum())
    error = math.sqrt(float((weights * (phi2 - mean)).square().sum()))
    exact = float(ACTION.propagator()[0, 0])
    assert abs(mean - exact) < 5 * error


def test_a_resumed_training_is_the_same(tmp_path):
    write(tmp_path, 30)
    tables = {**TABLES, "training": {**TABLES["training"], "steps": 6}}
    train(make_plan(tables, tmp_path), tmp_path / "a.safetensors")
    count = iter(range(100))
    train(make_plan(tables, tmp_path), tmp_path / "b.safetensors", stop=lambda: next(count) == 2)
    train(make_plan(tables, tmp_path), tmp_path / "b.safetensors", resume=True)
    one, two = (load_flow(tmp_path / f"{name}.safetensors").flow.state_dict() for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ensemble": {"files": "nowhere"}}, "there is no configuration file|no configurations"),
        ({"ensemble": {}}, "needs either files or run"),
        ({"ensemble": {"files": "files", "first": 1000}}, "no configuration of"),
        ({"chains": {"count": 4}}, r"\[ensemble\] and \[chains\]"),
        ({"training": {**TABLES["training"], "objective": "reverse_kl"}}, r"\[ensemble\] would be"),
        ({"ensemble": {"files": "files", "evry": 2}}, "unknown key 'evry'"),
    ],
)
def test_configurations_that_cannot_be_had(change, message, tmp_path):
    write(tmp_path, 3)
    with pytest.raises(ConfigError, match=message):
        make_plan({**TABLES, **change}, tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, 3)
    (tmp_path / "files" / "phi.1.npy").write_bytes(b"\x93NUMPY nonsense")
    tables = {**TABLES, "training": {**TABLES["training"], "steps": 1, "batch": 3}}
    with pytest.raises((ConfigError, OSError, ValueError), match=r"phi\.1\.npy"):
        train(make_plan(tables, tmp_path), tmp_path / "a.safetensors")
