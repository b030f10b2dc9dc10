"""What the measurement file of a run holds: rows of both phases, columns of all chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.storage.measurements import Layout

__all__ = ["attributes_of", "couplings_of", "layout_of", "rows_of", "schema_in"]


def rows_of(config: RunConfig) -> dict[str, int]:
    """Return the number of rows of every phase."""
    every = config.run.measure_every
    return {
        "thermalization": config.run.thermalization // every,
        "production": config.run.updates // every,
    }


def attributes_of(config: RunConfig, assembly: Assembly) -> dict[str, Any]:
    """Return the attributes of the file."""
    return {
        "layout": 1,
        "chains": config.chains.count,
        "replicas": len(assembly.actions),
        "measure_every": config.run.measure_every,
        "thermalization": config.run.thermalization,
        "updates": config.run.updates,
    }


def layout_of(
    config: RunConfig,
    assembly: Assembly,
    schema: dict[str, dict],
    shapes: dict[str, tuple[int, ...]],
) -> Layout:
    """Return the layout of a new file.

    Args:
        config: of the run.
        assembly: of it.
        schema: shape per chain of every diagnostic, by kernel and name.
        shapes: shape per chain and replica of every observable, by label.
    """
    chains, replicas = config.chains.count, len(assembly.actions)
    columns: dict[str, tuple[tuple[int, ...], str]] = {"updates": ((), "<i8")}
    for label, shape in shapes.items():
        columns[f"observables/{label}"] = (chains, replicas, *shape), "<f8"
    for name, values in schema.items():
        columns[f"kernels/{name}/accepted"] = (chains,), "<i8"
        columns[f"kernels/{name}/tried"] = (chains,), "<i8"
        for key, tail in values.items():
            columns[f"kernels/{name}/{key}"] = (chains, *tail), "<f8"
    if config.ladder is not None and config.ladder.tune:
        for name in config.ladder.couplings:
            columns[f"couplings/{name}"] = (replicas,), "<f8"
    if assembly.is_ladder:
        columns["walkers"] = (chains, replicas), "<i8"
    parameters = {f"observables/{entry.label}": entry.keys for entry in config.observables}
    return Layout(
        rows_of(config),
        columns,
        attributes_of(config, assembly),
        parameters,
        couplings_of(assembly),
    )


def couplings_of(assembly: Assembly) -> list[dict[str, float]]:
    """Return the couplings of all replicas of a ladder, nothing without one."""
    return [action.parameters for action in assembly.actions] if assembly.is_ladder else []


def schema_in(columns: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, dict]:
    """Return the schema that the columns of a file were made from."""
    schema: dict[str, dict] = {}
    for path, (shape, _) in columns.items():
        if path.startswith("kernels/"):
            name, _, key = path.removeprefix("kernels/").rpartition("/")
            values = schema.setdefault(name, {})
            if key not in ("accepted", "tried"):
                values[key] = shape[1:]
    return schema
