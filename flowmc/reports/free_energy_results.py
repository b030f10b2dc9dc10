"""Results of ``flowmc free-energy`` as files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from flowmc_adapters import atomic_write

from flowmc.estimators.history import History, Result, result_of
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.outcome import Named, Outcome
from flowmc.reports.as_html import write_html
from flowmc.reports.exports import write_csv, write_pyerrors
from flowmc.reports.free_energy import free_energy_document, free_energy_json

__all__ = ["write_results"]


def write_results(directory: Path, config: FreeEnergyConfig, outcome: Outcome) -> None:
    """Write ``results.json.gz``, ``results.csv``, ``works.npz``, the report and ``summary.json``.

    The summary comes last: where it is, everything is.

    Raises:
        OSError: as from writing.
    """
    run = _run_name(outcome)
    results = [_result_from(named, run) for named in outcome.estimates]
    write_pyerrors(directory / "results.json.gz", results, {"what": "flowmc free-energy"})
    write_csv(directory / "results.csv", results)
    data = io.BytesIO()
    arrays: dict[str, Any] = {name.replace(" ", "_"): w for name, w in outcome.works.items()}
    np.savez_compressed(data, **arrays)
    with atomic_write(directory / "works.npz") as file:
        file.write(data.getvalue())
    if outcome.trained is not None:
        import safetensors.torch

        weights = {k: v.contiguous().clone() for k, v in outcome.trained.state_dict().items()}
        with atomic_write(directory / "layers.safetensors") as file:
            file.write(safetensors.torch.save(weights))
    name = directory.resolve().name
    write_html(free_energy_document(config, outcome, name), directory / "report.html")
    with atomic_write(directory / "summary.json") as file:
        file.write((json.dumps(free_energy_json(config, outcome, name), indent=2) + "\n").encode())


def _run_name(outcome: Outcome) -> str:
    """Return a name that no other run has unless its works are the same numbers."""
    digest = hashlib.sha256()
    for name, works in sorted(outcome.works.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(works).tobytes())
    return digest.hexdigest()[:12]


def _result_from(named: Named, run: str) -> Result:
    """Return an estimate as a result with a ``pyerrors`` observable, for the exports.

    Value, error and warnings are the estimate's own; the observable carries the fluctuations.

    Args:
        named: the estimate.
        run: part of the names of its ensembles: pyerrors takes equal names for the same
            configurations, and the "forward" processes of two runs are not.
    """
    estimate = named.estimate
    observable: Any = 0.0
    for ensemble, fluctuations in named.parts.items():
        series = fluctuations if fluctuations.ndim == 2 else fluctuations[:, None]
        history = History.regular(f"{ensemble} {run}", *series.shape)
        flat = np.ascontiguousarray(series.T).reshape(-1)
        observable = observable + history.from_fluctuations(0.0, flat - flat.mean())
    observable = observable + estimate.value
    result = result_of(named.key, observable)
    own = dataclasses.replace(
        result.estimate,
        mean=estimate.value,
        error=estimate.error,
        warnings=estimate.warnings,
        is_bound=estimate.bound != "none" or estimate.error_is_bound,
    )
    return dataclasses.replace(result, estimate=own)
