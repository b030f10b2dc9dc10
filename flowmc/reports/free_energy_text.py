"""Results of ``flowmc free-energy`` as text, JSON and files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from flowmc_adapters import atomic_write

from flowmc.actions.theory import describe_theory
from flowmc.estimators.free_energy import FreeEnergy
from flowmc.estimators.history import History, Result, result_of
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.outcome import Named, Outcome
from flowmc.reports.analysis.free_energy_payoff import payoff_of_outcome
from flowmc.reports.as_text import table
from flowmc.reports.exports import write_csv, write_pyerrors
from flowmc.reports.free_energy import write_page

__all__ = ["document", "results_text", "write_results"]


def document(config: FreeEnergyConfig, outcome: Outcome) -> dict[str, Any]:
    """Return what ``--json`` prints; see docs/free_energies.md."""
    best = outcome.best.estimate
    result: dict[str, Any] = {
        "method": config.table.method,
        "theory": describe_theory(config.action),
        "quantity": "log_z_ratio" if outcome.is_ratio else "log_z",
        "log_z": best.value,
        "log_z_error": best.error,
        "bound": best.bound,
        "error_is_bound": best.error_is_bound,
        "text": str(best),
        "exact": outcome.exact,
        "pull": _pull(best, outcome.exact),
        "estimates": {named.key: _estimate(named.estimate) for named in outcome.estimates},
        "warnings": outcome.warnings,
        "pays": payoff_of_outcome(config, outcome),
        "seconds": outcome.seconds,
    }
    if outcome.coverage is not None:
        coverage = outcome.coverage
        result["mode_coverage"] = {
            "share": coverage.share,
            "error": coverage.error,
            "reverse_ess": coverage.reverse_ess,
            "forward_ess": coverage.forward_ess,
        }
    if outcome.bridge is not None:
        result["overlap"] = outcome.bridge.overlap
    if outcome.tunnelling is not None and outcome.tunnelling.count is not None:
        result["tunnellings"] = outcome.tunnelling.count
    if outcome.process is not None:
        process = outcome.process
        result["process"] = {
            "steps": len(process.step_work),
            "mean_work": process.mean_work,
            "work_spread": process.work_spread,
            "dissipated_work": process.dissipated,
            "dissipated_work_reverse": process.dissipated_reverse,
            "acceptance": float(np.mean(process.acceptance)),
        }
    if outcome.line:
        result["line"] = [
            {
                **couplings,
                "log_z": one.value,
                "log_z_error": one.error,
                "bound": one.bound,
                "error_is_bound": one.error_is_bound,
                "tau_int": one.tau_int,
                "overlap": overlap,
            }
            for couplings, one, overlap in outcome.line
        ]
    return _plain(result)


def results_text(config: FreeEnergyConfig, outcome: Outcome) -> str:
    """Return what is printed."""
    name = "ln(Z / Z_start)" if outcome.is_ratio else "ln Z"
    header = ["estimate", name, "ESS", "Pareto k", "tau_int", "samples"]
    if outcome.exact is not None:
        header.insert(2, "pull")
    rows = []
    for named in outcome.estimates:
        one = named.estimate
        row = [named.title, marked(one), _digits(one.ess), _digits(one.pareto_k)]
        row += [_digits(one.tau_int), str(one.samples)]
        if outcome.exact is not None:
            pull = _pull(one, outcome.exact)
            row.insert(2, "-" if pull is None else f"{pull:+.1f}")
        rows.append(row)
    lines = table(header, rows)
    if outcome.exact is not None:
        lines.append(f"exact: {outcome.exact:.8f}")
    if outcome.coverage is not None:
        coverage = outcome.coverage
        lines.append(
            f"share of the target that the flow covers: {coverage}; reverse ESS "
            f"{coverage.reverse_ess:.3g} (blind to missing modes), forward ESS "
            f"{coverage.forward_ess:.3g}"
        )
    if outcome.process is not None:
        lines.append(
            f"dissipated work {outcome.process.dissipated:.3g} in {len(outcome.process.step_work)} "
            "steps"
        )
    if outcome.line:
        names = list(outcome.line[0][0])
        lines += [
            "",
            *table([*names, name, "tau_int", "overlap"], [_row(*e) for e in outcome.line]),
        ]
    lines += [f"warning: {text}" for text in outcome.warnings]
    pays = payoff_of_outcome(config, outcome)
    lines += ["", "Does it pay?", *pays["answer"], *(f"next: {text}" for text in pays["next"])]
    return "\n".join(lines)


def marked(estimate: FreeEnergy) -> str:
    """Return ``>= 5.48(1)`` for a bound, an exclamation mark if the error is one."""
    return f"{estimate}!" if estimate.error_is_bound else str(estimate)


def write_results(directory: Path, config: FreeEnergyConfig, outcome: Outcome) -> None:
    """Write ``results.json.gz``, ``results.csv``, ``works.npz``, the report and ``summary.json``.

    The summary comes last: where it is, everything is.

    Raises:
        OSError: as from writing.
    """
    run = _run_name(outcome)
    results = [result_from(named, run) for named in outcome.estimates]
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
    write_page(directory, config, outcome)
    with atomic_write(directory / "summary.json") as file:
        file.write((json.dumps(document(config, outcome), indent=2) + "\n").encode())


def _run_name(outcome: Outcome) -> str:
    """Return a name that no other run has unless its works are the same numbers."""
    digest = hashlib.sha256()
    for name, works in sorted(outcome.works.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(works).tobytes())
    return digest.hexdigest()[:12]


def result_from(named: Named, run: str) -> Result:
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


def _estimate(estimate: FreeEnergy) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "error": estimate.error,
        "bias": estimate.bias,
        "samples": estimate.samples,
        "ess": estimate.ess,
        "tau_int": estimate.tau_int,
        "pareto_k": estimate.pareto_k,
        "max_weight_share": estimate.max_weight_share,
        "bound": estimate.bound,
        "error_is_bound": estimate.error_is_bound,
        "text": str(estimate),
        "warnings": list(estimate.warnings),
    }


def _row(couplings: dict[str, float], estimate: FreeEnergy, overlap: float) -> list[str]:
    numbers = [f"{value:g}" for value in couplings.values()]
    return [*numbers, marked(estimate), _digits(estimate.tau_int), _digits(overlap)]


def _pull(estimate: FreeEnergy, exact: float | None) -> float | None:
    """Return how many standard deviations the estimate is off; None if that has no meaning."""
    if exact is None or not estimate.error:
        return None
    return (estimate.value - exact) / estimate.error


def _digits(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
