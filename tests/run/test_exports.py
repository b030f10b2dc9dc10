"""Results written to files say the same when they are read back, by whatever reads them."""

import csv
import gzip
import json
import socket

import h5py
import numpy as np
import pytest
from pyerrors.input.json import load_json_dict
from scipy.signal import lfilter

from flowmc.estimators.history import History, result_of
from flowmc.reports.exports import write_csv, write_hdf5, write_pyerrors


def autoregressive(rng, length, chains, tau):
    coefficient = (2 * tau - 1) / (2 * tau + 1)
    noise = rng.normal(size=(length, chains))
    noise[1:] *= np.sqrt(1 - coefficient**2)
    return lfilter([1], [1, -coefficient], noise, axis=0)


def sound(rng):
    return autoregressive(rng, 1000, 4, 3.0)


def short(rng):
    """Shorter than seven tau_int: each chain's own mean takes most of the variance away."""
    return autoregressive(rng, 20, 32, 3.0)


def stuck(rng):
    return np.array([0.0, 1.0, 2.0, 5.0]) + 0.1 * rng.normal(size=(200, 4))


def frozen(rng):
    return np.zeros((200, 4)) + np.array([0.0, 1.0, 1.0, 3.0])


def alone(rng):
    return autoregressive(rng, 400, 1, 2.0)


def few_rows(rng):
    return rng.normal(size=(3, 20))


@pytest.mark.parametrize("chains", [sound, short, stuck, frozen, alone, few_rows])
def test_every_export_reads_back_with_the_errors_reported(chains, tmp_path):
    rng = np.random.default_rng(31)
    first, second = chains(rng), chains(rng)
    history = History.regular("e", *first.shape)
    series = [one.T.reshape(-1) for one in (first, second, first - 0.5 * second)]
    observables = [history.observable(one) for one in series]
    results = [result_of(f"x{i}", one) for i, one in enumerate(observables)]
    write_pyerrors(tmp_path / "r.json.gz", results)
    write_csv(tmp_path / "r.csv", results)
    write_hdf5(tmp_path / "r.h5", results)

    stored = load_json_dict(str(tmp_path / "r.json.gz"), verbose=False)
    with open(tmp_path / "r.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for result in results:
        read = stored[result.name]
        read.gamma_method(S=2.0)
        assert read.value == pytest.approx(result.value, abs=1e-12)
        # One per cent of the variance is neglected, below what an error bar knows of itself;
        # and what pyerrors sees of a chain alone may be a little more.
        assert 0.99 * result.error < read.dvalue < 1.1 * result.error
        row = rows[result.name]
        assert float(row["value"]) == result.value and float(row["error"]) == result.error
        assert int(row["samples"]) == first.size and row["is_bound"] == str(result.is_bound)
    # What differs together from chain to chain stays together.
    difference = stored["x0"] - 0.5 * stored["x1"]
    difference.gamma_method(S=2.0)
    assert difference.dvalue == pytest.approx(results[2].error, rel=0.15)

    with h5py.File(tmp_path / "r.h5") as file:
        for i, result in enumerate(results):
            group = file[f"results/{i:04d}"]
            assert group.attrs["error"] == result.error
            flat = np.concatenate([group[f"e|{name}"][()] for name in history.numbers])
            again = result_of("x", history.from_fluctuations(result.value, flat))
            assert again.error == pytest.approx(result.error, rel=1e-12)


def test_replicas_of_one_configuration_read_back(tmp_path):
    rng = np.random.default_rng(32)
    history = History("e", {"a": np.arange(10, 2010, 10), "b": [50], "c": [7]})
    result = result_of("x", history.observable(rng.normal(size=len(history))))
    write_pyerrors(tmp_path / "r.json", [result])
    read = load_json_dict(str(tmp_path / "r.json"), verbose=False, gz=False)["x"]
    read.gamma_method(S=2.0)
    assert read.dvalue == pytest.approx(result.error, rel=0.05)
    assert list(read.idl) == ["e|a"]


def test_nothing_personal_is_stored_and_the_same_results_give_the_same_bytes(tmp_path):
    history = History.regular("e", 50, 2)
    result = result_of("x", history.observable(np.random.default_rng(33).normal(size=100)))
    for name in ("a.json.gz", "b.json.gz"):
        write_pyerrors(tmp_path / name, [result], {"what": "a test"})
    data = (tmp_path / "a.json.gz").read_bytes()
    assert data == (tmp_path / "b.json.gz").read_bytes()
    text = gzip.decompress(data).decode()
    head = json.loads(text)
    assert set(head) == {"program", "version", "description", "obsdata"}
    assert socket.gethostname() not in text
