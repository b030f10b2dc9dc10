"""Results as files: pyerrors JSON (all fluctuations), CSV (numbers) and HDF5 (both).

The JSON file is read back by ``pyerrors.input.json.load_json_dict``; observables of the same
ensemble stay correlated with each other and with everything else measured on it.  The reader takes
the fluctuations of every replica about its *own* mean: what short or stuck replicas differ by is in
the error of a result, but would be lost.  It is stored beside them as a covariance of results
(:func:`between_replicas`), so that errors read back are those reported.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from flowmc_adapters.atomic import atomic_path, atomic_write

from flowmc.estimators.autocorrelation import WINDOW_PARAMETER
from flowmc.estimators.history import Result

if TYPE_CHECKING:
    from pyerrors import Obs

__all__ = ["between_replicas", "result_dict", "write_csv", "write_hdf5", "write_pyerrors"]

_COLUMNS = ("value", "error", "tau_int", "tau_int_error", "samples", "is_bound")
_NEGLIGIBLE = 0.01  # of the variance of a result, which its own error bar does not know as well
_SHORTEST = 4  # configurations of the longest replica, below which pyerrors finds no error


def result_dict(result: Result) -> dict[str, Any]:
    """Return a result as plain values for JSON; None for what is not finite."""
    plain = {
        "value": result.value,
        "error": result.error,
        "tau_int": result.tau_int,
        "tau_int_error": result.tau_int_error,
        "samples": result.estimate.samples,
        "is_bound": result.is_bound,
        "warnings": list(result.warnings),
        "text": str(result),
    }
    return {key: None if _is_missing(value) else value for key, value in plain.items()}


def write_pyerrors(
    path: str | os.PathLike[str],
    results: Iterable[Result],
    description: Mapping[str, Any] | str = "",
) -> None:
    """Write the observables of results as pyerrors JSON, compressed if the name ends in ``.gz``.

    Results that have no observable, or no finite value, are left out.  The errors that pyerrors
    finds with S = 2 are those of the results.  Same results give the same bytes: nothing is stored
    about who wrote the file where and when.

    Args:
        path: the file, ``*.json`` or ``*.json.gz``.
        results: with different names.
        description: stored with them.

    Raises:
        ValueError: for another name of the file, or two results of one name.
        OSError: as from writing.
    """
    from pyerrors.input.json import dump_dict_to_json

    path = Path(path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"{path}: pyerrors files are called *.json or *.json.gz")
    kept: dict[str, Result] = {}
    for result in results:
        if result.observable is None or not math.isfinite(result.value):
            continue
        if result.name in kept:
            raise ValueError(f"two results are called {result.name!r}")
        kept[result.name] = result
    observables = dict(zip(kept, between_replicas(list(kept.values())), strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        # pyerrors appends the ending that it wants.
        written = temporary.with_name(temporary.name + ".json")
        try:
            dump_dict_to_json(observables, str(written), description=description, gz=False)
            data = _PERSONAL.sub(b"", written.read_bytes(), count=3)
        finally:
            written.unlink(missing_ok=True)
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


# User, time and machine at the head of pyerrors' files.
_PERSONAL = re.compile(rb'^ "(?:who|date|host)": "(?:[^"\\]|\\.)*",\n', re.MULTILINE)


def between_replicas(results: Sequence[Result]) -> list[Obs]:
    r"""Return the observables of results such that pyerrors' own analysis gives their errors.

    With C replicas of :math:`N_c` configurations whose means differ from that of all by
    :math:`m_c`, pyerrors sees the fluctuations within the replicas only.  What is missing in the
    variance of a result is added along the vector :math:`(N_c m_c / N)_c`, so that results which
    differ together from replica to replica stay correlated: a covariance of unit matrix in the
    space that these vectors span, under a name of its own.  Replicas of a single configuration,
    which pyerrors cannot read, are left to it.
    """
    from pyerrors.covobs import Covobs

    observables: list[Obs] = [result.observable for result in results]
    names = sorted({name for one in observables for name in one.deltas})
    offsets = np.array([_offsets(one, names) for one in observables])
    missing = np.array([_missing(result) for result in results])
    lengths = np.linalg.norm(offsets, axis=1)
    scales = np.sqrt(missing) / np.where(lengths > 0, lengths, np.inf)
    left, sizes, _ = np.linalg.svd(scales[:, None] * offsets, full_matrices=False)
    rank = int(np.count_nonzero(sizes > 1e-12 * sizes.max(initial=0.0)))
    # The matrix of other results is another one.
    digest = hashlib.sha256(np.ascontiguousarray(offsets).tobytes()).hexdigest()[:12]
    found = []
    for result, gradient in zip(results, (left * sizes)[:, :rank], strict=True):
        one = _readable(result.observable, result.value)
        if np.any(gradient):
            name = f"between replicas {digest}"
            one._covobs[name] = Covobs(None, np.eye(rank), name, grad=gradient)
            one.names.append(name)
        found.append(one)
    return found


def _offsets(observable: Obs, names: Sequence[str]) -> list[float]:
    """Return N_c m_c / N of every replica, 0 of those that an observable does not have."""
    samples: Counter[str] = Counter()
    for name, deltas in observable.deltas.items():
        samples[name.partition("|")[0]] += len(deltas)
    return [
        float(np.sum(observable.deltas[name])) / samples[name.partition("|")[0]]
        if name in observable.deltas
        else 0.0
        for name in names
    ]


def _missing(result: Result) -> float:
    """Return the variance of a result that pyerrors does not see within the replicas."""
    observable = result.observable
    assert observable is not None
    ensembles = {name.partition("|")[0] for name in observable.deltas}
    if len(observable.deltas) == len(ensembles) or not math.isfinite(result.error):
        return 0.0
    own = _readable(observable, 0.0)
    for name, deltas in own.deltas.items():
        own.deltas[name] = deltas - np.mean(deltas)
    own.gamma_method(S=WINDOW_PARAMETER, tau_exp=0)
    missing = result.error**2 - float(own.dvalue) ** 2
    return missing if missing > _NEGLIGIBLE * result.error**2 else 0.0


def _readable(observable: Obs, value: float) -> Obs:
    """Return the observable with the replicas that pyerrors can read."""
    import pyerrors

    longest: dict[str, int] = {}
    for name, deltas in observable.deltas.items():
        ensemble = name.partition("|")[0]
        longest[ensemble] = max(longest.get(ensemble, 0), len(deltas))
    names = [
        name
        for name, deltas in observable.deltas.items()
        if len(deltas) > 1 and longest[name.partition("|")[0]] >= _SHORTEST
    ]
    one = pyerrors.Obs(
        [observable.deltas[name] for name in names],
        names,
        idl=[observable.idl[name] for name in names],
        means=[value] * len(names),
    )
    one._value = value
    return one


def write_csv(path: str | os.PathLike[str], results: Iterable[Result]) -> None:
    """Write name, value, error, tau_int and warnings of results as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", *_COLUMNS, "text", "warnings"])
    for result in results:
        plain = result_dict(result)
        cells = ["" if plain[key] is None else plain[key] for key in _COLUMNS]
        rows.writerow([result.name, *cells, str(result), "; ".join(result.warnings)])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_hdf5(path: str | os.PathLike[str], results: Iterable[Result]) -> None:
    """Write results as HDF5: a group for each, ``results/0000`` and so on.

    Attributes are ``name``, ``value``, ``error``, ``tau_int``, ``tau_int_error``, ``samples``,
    ``is_bound`` and ``warnings`` (JSON); the projected fluctuations of every replica, about the
    mean of *all* replicas, are the dataset ``ENSEMBLE|REPLICA``, with its configuration numbers in
    the attribute ``numbers``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
        for index, result in enumerate(results):
            group = file.create_group(f"results/{index:04d}")
            group.attrs["name"] = result.name
            for key in _COLUMNS:
                value = getattr(result, key, None) if key != "samples" else result.estimate.samples
                group.attrs[key] = value
            group.attrs["warnings"] = json.dumps(list(result.warnings))
            if result.observable is None:
                continue
            for name in result.observable.names:
                if name in result.observable.deltas:
                    data = group.create_dataset(
                        name.replace("/", "_"), data=result.observable.deltas[name]
                    )
                    data.attrs["numbers"] = np.array(list(result.observable.idl[name]), np.int64)


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
