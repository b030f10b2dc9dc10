"""What ``flowmc free-energy`` says: its document, and the keys of its JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowmc.actions.theory import describe_theory
from flowmc.config.toml_text import toml_text
from flowmc.estimators.free_energy import FreeEnergy
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.outcome import Outcome
from flowmc.registry import title_of
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.free_energy_payoff import payoff_of_outcome
from flowmc.reports.as_json import as_json, strict
from flowmc.reports.pieces import (
    ERROR_NOTE,
    closed_code,
    filled,
    note,
    payoff_section,
    seconds,
    table,
)
from flowmc.reports.words import theory_text

__all__ = ["free_energy_document", "free_energy_json"]

TITLES = {
    "q": "ln Z from a flow",
    "p": "ln Z from samples of the target",
    "both": "ln Z from a flow and the target",
    "chain": "ln Z along a line of ensembles",
    "annealing": "ln Z by annealing",
    "snf": "ln Z by a stochastic normalizing flow",
}
_BIAS = (
    "The bias is that of a logarithm of a mean, and is not subtracted. One-sided estimates from "
    "the start err low and from the target high as long as samples miss the tail of the weights; "
    "the bridge uses both."
)
_CROOKS = (
    "Crooks: the distribution of the work from the start crosses that of minus the work from the "
    "target where W = ΔF = −ln Z."
)
_ONE_WAY = "ΔF = −ln Z is where the work from the target, which was not measured, would cross."
_BOUNDS: dict[str, doc.Bound] = {"both": "unknown", "lower": "lower", "upper": "upper"}


def free_energy_document(config: FreeEnergyConfig, outcome: Outcome, name: str) -> doc.Document:
    """Return the document of a measurement of this name."""
    best, coverage = outcome.best.estimate, outcome.coverage
    facts: list[tuple[str, doc.Inline]] = [
        (_quantity(outcome), _value(best)),
        ("samples", doc.Value(best.samples)),
        ("wall time", seconds(outcome.seconds)),
    ]
    if outcome.exact is not None:
        facts.insert(1, ("exact", doc.Value(outcome.exact, form=".7g")))
    if coverage is not None:
        facts.append(("of the target covered", doc.Value(coverage.share, coverage.error)))
    pays = payoff_of_outcome(config, outcome)
    sections = [payoff_section(pays["answer"], pays["next"]), _estimates(outcome)]
    if outcome.bridge is not None or "forward" in outcome.works:
        sections += _works(config, outcome)
    if outcome.line:
        sections.append(_line(outcome))
    if outcome.process is not None:
        sections.append(_protocol(outcome))
    made = closed_code("Configuration", toml_text(config.resolved))
    sections.append(doc.Section("How it was made", (made,)))
    return doc.Document(
        f"{TITLES[config.table.method]}: {name}",
        theory_text(config.resolved["theory"], title_of(type(config.action))),
        tuple(facts),
        tuple(sections),
        warnings=tuple(outcome.warnings),
    )


def free_energy_json(config: FreeEnergyConfig, outcome: Outcome, name: str) -> dict[str, Any]:
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
        "estimates": {named.key: _entry(named.estimate) for named in outcome.estimates},
        "warnings": outcome.warnings,
        "pays": payoff_of_outcome(config, outcome),
        "seconds": outcome.seconds,
    }
    if outcome.coverage is not None:
        names = ("share", "error", "reverse_ess", "forward_ess")
        result["mode_coverage"] = {key: getattr(outcome.coverage, key) for key in names}
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
    result["page"] = as_json(free_energy_document(config, outcome, name))
    return dict(strict(result))


def _quantity(outcome: Outcome) -> str:
    return "ln(Z / Z_{start})" if outcome.is_ratio else "ln Z"


def _value(estimate: FreeEnergy) -> doc.Value:
    bound = _BOUNDS.get(estimate.bound, "none")
    return doc.Value(
        estimate.value, estimate.error, bound=bound, error_is_bound=estimate.error_is_bound
    )


def _estimates(outcome: Outcome) -> doc.Section:
    rows = [
        (
            named.title,
            _value(named.estimate),
            doc.Value(_pull(named.estimate, outcome.exact), form="+.1f"),
            doc.Value(named.estimate.bias or None, form="+.1e"),
            doc.Value(named.estimate.ess),
            doc.Value(named.estimate.pareto_k),
            doc.Value(named.estimate.tau_int),
            doc.Value(named.estimate.samples),
        )
        for named in outcome.estimates
    ]
    header = (
        "estimate",
        _quantity(outcome),
        doc.Column("pull", shown=doc.PAGE if outcome.exact is None else doc.EVERYWHERE),
        doc.Column("bias", shown=doc.PAGE),
        "ESS",
        "Pareto k",
        "tau_int",
        "samples",
    )
    parts: list[doc.Part] = [table(header, rows)]
    if any(named.estimate.bias for named in outcome.estimates):
        parts.append(note(_BIAS))
    if any(named.estimate.error_is_bound for named in outcome.estimates):
        parts.append(ERROR_NOTE)
    if outcome.exact is not None:
        text = filled("exact: {}", doc.Value(outcome.exact, form=".8f"))
        parts.append(doc.Paragraph(text, shown=doc.TEXT))
    coverage = outcome.coverage
    if coverage is not None:
        covered = filled(
            "share of the target that the flow covers: {}; reverse ESS {} (blind to missing "
            "modes), forward ESS {}",
            doc.Value(coverage.share, coverage.error),
            doc.Value(coverage.reverse_ess),
            doc.Value(coverage.forward_ess),
        )
        parts.append(note(covered, doc.EVERYWHERE))
    if len(outcome.estimates) > 1 or outcome.exact is not None:
        description = "The estimates with their errors"
        parts.append(doc.Figure(lambda: plots.free_energy.estimates_plot(outcome), description))
    return doc.Section("Estimates", tuple(parts))


def _works(config: FreeEnergyConfig, outcome: Outcome) -> list[doc.Section]:
    forward = outcome.works.get("forward", outcome.works.get("forward 0"))
    reverse = outcome.works.get("reverse", outcome.works.get("reverse 0"))
    if forward is None:
        return []
    text: doc.Inline = _CROOKS if reverse is not None else _ONE_WAY
    # Of the ratio, without the constant of the start.
    shift, exact = None, outcome.exact
    if outcome.bridge is not None:
        overlap = doc.Value(outcome.bridge.overlap)
        text = filled(f"{text} The two ends overlap by {{}}.", overlap)
        shift = -outcome.bridge.estimate.value
        if exact is not None:
            exact += outcome.bridge.estimate.value - outcome.best.estimate.value
    figure = doc.Figure(
        lambda: plots.free_energy.work_plot(
            np.ravel(forward), reverse, shift, None if exact is None else -exact
        ),
        "Distributions of the work",
    )
    heading = "Weights" if config.table.method in ("q", "p", "both") else "Work"
    return [doc.Section(heading, (figure, note(text)))]


def _line(outcome: Outcome) -> doc.Section:
    rows = [
        (
            *(doc.Value(value, form="g") for value in couplings.values()),
            _value(estimate),
            doc.Value(estimate.tau_int),
            doc.Value(overlap),
        )
        for couplings, estimate, overlap in outcome.line
    ]
    header = (
        *map(doc.Column, outcome.line[0][0]),
        doc.Column(_quantity(outcome)),
        doc.Column("tau_int"),
        doc.Column("overlap with the one before", short="overlap"),
    )
    parts: tuple[doc.Part, ...] = (table(header, rows),)
    if any(estimate.error_is_bound for _, estimate, _ in outcome.line):
        parts += (ERROR_NOTE,)
    figure = doc.Figure(
        lambda: plots.free_energy.line_plot(outcome), "ln Z along the line of couplings"
    )
    return doc.Section(
        "Along the line", (figure, doc.Details("All ensembles", parts, shown=doc.EVERYWHERE))
    )


def _protocol(outcome: Outcome) -> doc.Section:
    process = outcome.process
    assert process is not None
    steps = doc.Value(len(process.step_work))
    text = filled("dissipated work {} in {} steps", doc.Value(process.dissipated), steps)
    figure = doc.Figure(
        lambda: plots.free_energy.protocol_plot(process), "Work and acceptance by step"
    )
    return doc.Section("Along the protocol", (note(text, doc.EVERYWHERE), figure))


def _entry(estimate: FreeEnergy) -> dict[str, Any]:
    names = ("value", "error", "bias", "samples", "ess", "tau_int", "pareto_k", "max_weight_share")
    return {
        **{name: getattr(estimate, name) for name in names},
        "bound": estimate.bound,
        "error_is_bound": estimate.error_is_bound,
        "text": str(estimate),
        "warnings": list(estimate.warnings),
    }


def _pull(estimate: FreeEnergy, exact: float | None) -> float | None:
    """Return how many standard deviations the estimate is off; None if that has no meaning."""
    if exact is None or not estimate.error:
        return None
    return (estimate.value - exact) / estimate.error
