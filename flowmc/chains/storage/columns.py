"""What the measurement file of a run holds: rows of both phases, columns of all chains."""

from __future__ import annotations

from typing import Any

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.storage.declarations import declarations_of
from flowmc.chains.storage.measurements import MeasurementLayout
from flowmc.registry import title_of

__all__ = ["attributes_of", "couplings_of", "layout_of", "rows_of"]


def rows_of(config: RunConfig) -> dict[str, int]:
    """Return the number of rows of every phase."""
    every = config.run.measure_every
    return {
        "thermalization": config.run.thermalization // every,
        "production": config.run.updates // every,
    }


def attributes_of(config: RunConfig, assembly: Assembly) -> dict[str, Any]:
    """Return the attributes of the file."""
    title = title_of(type(config.action))
    return {
        "layout": 1,
        "chains": config.chains.count,
        "replicas": len(assembly.actions),
        "measure_every": config.run.measure_every,
        "thermalization": config.run.thermalization,
        "updates": config.run.updates,
        **({"theory_title": title} if title else {}),
    }


def layout_of(
    config: RunConfig,
    assembly: Assembly,
    shapes: dict[str, tuple[int, ...]],
) -> MeasurementLayout:
    """Return the layout of a new file.

    Args:
        config: of the run.
        assembly: of it.
        shapes: shape per chain and replica of every observable, by label.
    """
    chains, replicas = config.chains.count, len(assembly.actions)
    columns: dict[str, tuple[tuple[int, ...], str]] = {"updates": ((), "<i8")}
    for label, shape in shapes.items():
        columns[f"observables/{label}"] = (chains, replicas, *shape), "<f8"
    reports = assembly.reports()
    for name, report in reports.items():
        columns[f"kernels/{name}/accepted"] = (chains,), "<i8"
        columns[f"kernels/{name}/tried"] = (chains,), "<i8"
        for value in report.values:
            columns[f"kernels/{name}/{value.name}"] = (chains, *value.shape), "<f8"
    if config.ladder is not None and config.ladder.tune:
        for name in config.ladder.couplings:
            columns[f"couplings/{name}"] = (replicas,), "<f8"
    if assembly.is_ladder:
        columns["walkers"] = (chains, replicas), "<i8"
    parameters = {f"observables/{entry.label}": entry.keys for entry in config.observables}
    return MeasurementLayout(
        rows_of(config),
        columns,
        attributes_of(config, assembly),
        parameters,
        couplings_of(assembly),
        declarations_of(reports, config.observables),
    )


def couplings_of(assembly: Assembly) -> list[dict[str, float]]:
    """Return the couplings of all replicas of a ladder, nothing without one."""
    return [action.parameters for action in assembly.actions] if assembly.is_ladder else []
