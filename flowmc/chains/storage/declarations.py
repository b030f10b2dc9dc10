"""What the columns of a measurement file hold: attributes beside them, and back.

An observable has its title.  Every group ``kernels/NAME`` says of which kernel it is, every column
below it has title, unit and reduction.  Files of versions that did not write these are read by the
names that kernels and values had then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from flowmc.config.entries import ObservableEntry
from flowmc.jobs.raw_hdf5 import plain
from flowmc.kernels import KernelReport, Reported
from flowmc.registry import ConfigError, built_in_title

__all__ = [
    "check_declarations",
    "declarations_in",
    "declarations_of",
    "observable_title",
    "reports_in",
    "titles_in",
]

Columns = Mapping[str, tuple[tuple[int, ...], str]]  # shape and type of rows, by path


def declarations_of(
    reports: Mapping[str, KernelReport], observables: Sequence[ObservableEntry]
) -> dict[str, dict[str, Any]]:
    """Return the attributes of groups and columns by path below a phase."""
    found: dict[str, dict[str, Any]] = {
        f"observables/{entry.label}": {"title": entry.title} for entry in observables if entry.title
    }
    for name, report in reports.items():
        found[f"kernels/{name}"] = report.attributes()
        for value in report.values:
            found[f"kernels/{name}/{value.name}"] = value.attributes()
    return found


def declarations_in(phase: h5py.Group) -> dict[str, dict[str, Any]]:
    """Return the attributes of groups and columns of kernels, by path below the phase."""
    found: dict[str, dict[str, Any]] = {}

    def visit(name: str, item: Any) -> None:
        if name.startswith("kernels/") and len(item.attrs):
            found[name] = {key: plain(value) for key, value in item.attrs.items()}

    phase.visititems(visit)
    return found


def titles_in(phase: h5py.Group) -> dict[str, str]:
    """Return the titles of observables by label, of those that have one."""
    found: dict[str, str] = {}

    def visit(name: str, item: Any) -> None:
        if name.startswith("observables/") and "title" in item.attrs:
            found[name.removeprefix("observables/")] = str(plain(item.attrs["title"]))

    phase.visititems(visit)
    return found


def observable_title(label: str, titles: Mapping[str, str]) -> str:
    """Return how an observable is called in headings, such as ``"Wilson loop (extents=2x2)"``.

    Args:
        label: in files.
        titles: by label, of those that have one; built-in observables are known by name.
    """
    stem, bracket, keys = label.partition("(")
    title = titles.get(label) or built_in_title("observables", stem) or stem.replace("_", " ")
    return f"{title} {bracket}{keys}" if bracket else title


def reports_in(
    columns: Mapping[str, tuple[int, ...]], declarations: Mapping[str, Mapping[str, Any]]
) -> dict[str, KernelReport]:
    """Return what the kernels of a file report, by their names in it.

    Args:
        columns: shapes of rows by path below a phase.
        declarations: of :func:`declarations_in`; without any, names alone say what columns hold.

    Raises:
        ValueError: a declaration is incomplete.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in columns.items():
        if path.startswith("kernels/"):
            name, _, key = path.removeprefix("kernels/").rpartition("/")
            own = shapes.setdefault(name, {})
            if key not in ("accepted", "tried"):
                own[key] = shape[1:]
    try:
        if not declarations:
            return {name: _of_earlier_version(name, own) for name, own in shapes.items()}
        return {
            name: KernelReport.of_group(
                name,
                tuple(
                    Reported.of_column(key, tail, declarations.get(f"kernels/{name}/{key}", {}))
                    for key, tail in own.items()
                ),
                declarations.get(f"kernels/{name}", {}),
            )
            for name, own in shapes.items()
        }
    except ConfigError as error:
        # Of the file, which the caller names.
        raise ValueError(str(error)) from error


def check_declarations(
    path: Path,
    columns: Columns,
    declarations: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, KernelReport],
    wanted: Columns,
) -> None:
    """Compare the columns of a file with what the kernels that go on writing it report.

    Args:
        path: of the file.
        columns: of it.
        declarations: of it; none in files of earlier versions.
        reports: of the kernels.
        wanted: columns of a new file.

    Raises:
        ConfigError: they report other values, or the same values reduced otherwise.
    """
    places = sorted(one for one in {*columns, *wanted} if one.startswith("kernels/"))
    differ = [place for place in places if columns.get(place) != wanted.get(place)]
    if declarations and not differ:
        shapes = {place: shape for place, (shape, _) in columns.items()}
        differ = [
            f"kernels/{name}/{value.name}"
            for name, stored in reports_in(shapes, declarations).items()
            for value in stored.values
            if not value.is_reduced_like(reports[name].named(value.name))
        ]
    if differ:
        raise ConfigError(
            f"{path} was begun with kernels that reported something else in {', '.join(differ)}: "
            "resume with the versions of the kernels that began the run, or start a new one"
        )


# What names meant in files without declarations.
_TITLES = {
    "hmc": "HMC",
    "independence": "flow proposals",
    "local_flow": "local flow",
    "pair": "replica exchange",
    "exchange": "replica exchange",
    "sign_flip": "sign flip",
}
_REDUCTIONS = {
    "non_finite": "sum",
    "reversibility_violation": "max",
    "log_weights": "last",
    "log_weight": "last",
}
_LINES = {
    "exp_minus_energy_error": "⟨exp(−ΔH)⟩",
    "divergence": "divergence",
    "reversibility_violation": "reversibility violation",
}
_NAME = re.compile(r"(?P<stem>.+?)(?:\[(?P<index>\d+)\])?(?:_(?P<number>\d+))?", re.DOTALL)


def _of_earlier_version(name: str, shapes: Mapping[str, tuple[int, ...]]) -> KernelReport:
    """Return what is known by name: of a kernel, of its part ``hmc[1]_2``, or of ``pair[0]``."""
    match = _NAME.fullmatch(name)
    assert match is not None
    stem, index, number = match["stem"], match["index"], int(match["number"] or 1)
    is_pair = stem == "pair" and index is not None
    kernel = "exchange" if is_pair else stem
    title = _TITLES.get(stem, stem.replace("_", " "))
    return KernelReport(
        kernel,
        title,
        tuple(
            Reported(
                key,
                _LINES.get(key, key.replace("_", " ")),
                reduce=_REDUCTIONS.get(key, "mean"),
                per_proposal=shape[0] if shape else 0,
                in_report=key in _LINES,
            )
            for key, shape in shapes.items()
        ),
        replica=int(index) if index is not None and not is_pair else None,
        pair=int(index) if is_pair else None,
        update=kernel if number == 1 else f"{kernel}_{number}",
        update_title=title,
        number=number,
    )
