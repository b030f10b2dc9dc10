"""Results as files: pyerrors JSON (all fluctuations), CSV (numbers) and HDF5 (both).

The JSON file is read back by ``pyerrors.input.json.load_json_dict``; observables of the same
ensemble stay correlated with each other and with everything else measured on it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flowmc_adapters.atomic import atomic_path, atomic_write

from flowmc.estimators.history import Result

__all__ = ["result_dict", "write_csv", "write_hdf5", "write_pyerrors"]

_COLUMNS = ("value", "error", "tau_int", "tau_int_error", "samples", "is_bound")


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

    Results that have no observable, or no finite value, are left out.

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
    observables: dict[str, Any] = {}
    for result in results:
        if result.observable is None or not math.isfinite(result.value):
            continue
        if result.name in observables:
            raise ValueError(f"two results are called {result.name!r}")
        observables[result.name] = result.observable
    compressed = path.suffix == ".gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        # pyerrors appends the ending that it wants.
        written = temporary.with_name(temporary.name + (".json.gz" if compressed else ".json"))
        try:
            dump_dict_to_json(observables, str(written), description=description, gz=compressed)
            os.replace(written, temporary)
        finally:
            written.unlink(missing_ok=True)


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
    ``is_bound`` and ``warnings`` (JSON); the projected fluctuations of every replica are the
    dataset ``ENSEMBLE|REPLICA``, with its configuration numbers in the attribute ``numbers``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
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
