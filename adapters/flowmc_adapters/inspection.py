"""What a file holds and whether it is sound, for people and for scripts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from .configuration import Checksum, number_of
from .errors import CheckError
from .field_configuration import compact_plaquette
from .fields.files import read_field
from .fields.inspection import FieldFindings, examine_fields
from .formats import PathLike
from .openqcd.u1 import U1_CHECK
from .registry import detect, verify
from .seeds import describe, is_seeds, read_seeds
from .transfer import Progress

FINE, CHECK_FAILED, UNUSABLE = 0, 1, 2


@dataclass
class Inspection:
    """The result of looking at one file.

    Attributes:
        report: the dictionary described at `inspect`.
        metadata: source strings, see `Configuration.metadata`.
        status: 0 fine, 1 a check failed, 2 not usable.
        reason: the checks that failed, or "".
    """

    report: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    status: int = FINE
    reason: str = ""


def inspect(
    path: PathLike, *, dims: tuple[int, ...] | None = None, layout: str | None = None
) -> dict[str, Any]:
    """Describe a configuration file; never raises for a bad one.

    Args:
        path: the file.
        dims: extents (Lx, Ly, Lz, Lt), for the few files that do not state them.
        layout: order of the numbers, for the few files that leave it open.

    Returns:
        `path`, `format`, `writer` (the code that wrote it, if the file tells), `kind` ("gauge",
        "scalar", "u1", "array"), `configurations` (how many a file of fields holds), `mean` (of the
        numbers of scalar and U(1) fields; their `plaquette` is the mean of cos theta_P), `dims`
        [Lx, Ly, Lz, Lt], `nc`, `precision`, `number`, `boundary` ("open" for open boundaries in
        time, "schroedinger", "charge conjugation"; None for periodic ones, and where the file does
        not show it), `plaquette`, `plaquette_space`,
        `plaquette_time`, `link_trace` (normalised to 1), `unitarity_error`, `determinant_error`,
        `checksum` {kind, stored, computed, ok} or None, `warnings` (list of texts), `error` (text
        or None). What could not be found out is None. Everything in it can be written as JSON.
    """
    return examine(path, dims=dims, layout=layout).report


def examine(
    path: PathLike,
    *,
    dims: tuple[int, ...] | None = None,
    layout: str | None = None,
    ignore_checksum: bool = False,
    progress: Progress | None = None,
    comm: Any = None,
) -> Inspection:
    """As `inspect`, with metadata and the exit status of the command.

    With `ignore_checksum` disagreements of checksum, plaquette and link trace are reported, but do
    not count for the status. `progress` is told about the slabs done and of all slabs. With an
    mpi4py communicator `comm` the work is shared by its ranks, who all get the result.
    """
    report: dict[str, Any] = {
        "path": os.fspath(path),
        "format": None,
        "writer": None,
        "kind": None,
        "configurations": None,
        "dims": None,
        "nc": None,
        "precision": None,
        "number": None,
        "mean": None,
        "boundary": None,
        "plaquette": None,
        "plaquette_space": None,
        "plaquette_time": None,
        "link_trace": None,
        "unitarity_error": None,
        "determinant_error": None,
        "checksum": None,
        "warnings": [],
        "error": None,
    }
    try:
        if is_seeds(path):
            return _of_seeds(path, report)
        found = detect(path, layout)
        report["format"] = found.name
        # Layouts are of links only
        fields = examine_fields(path) if layout is None else None
        if fields is not None:
            return _of_fields(report, fields, ignore_checksum)
        if comm is None:
            verdict = verify(path, dims=dims, layout=layout, progress=progress)
        else:
            from . import parallel

            verdict = parallel.verify(comm, path, dims=dims, layout=layout)
    except CheckError as error:
        report["error"] = str(error)
        return Inspection(report, status=CHECK_FAILED)
    except (ValueError, OSError, MemoryError) as error:
        report["error"] = str(error) or type(error).__name__
        return Inspection(report, status=UNUSABLE)
    header, measurements = verdict.header, verdict.measurements
    report |= {
        "writer": header.writer or None,
        "kind": "gauge",
        "dims": list(header.dims),
        "nc": header.nc,
        "precision": header.precision,
        "number": number_of(header.metadata),
        "boundary": "open" if measurements.group.open_boundary else header.boundary or None,
        "plaquette": _number(measurements.plaquettes.mean),
        "plaquette_space": _number(measurements.plaquettes.space),
        "plaquette_time": _number(measurements.plaquettes.time),
        "link_trace": _number(measurements.link_trace),
        "unitarity_error": _number(measurements.group.unitarity),
        "determinant_error": _number(measurements.group.determinant),
        "checksum": _checksum(verdict.checksum),
        "warnings": [*verdict.failed_checks.values(), *verdict.warnings],
    }
    failed = verdict.failed_checks
    reasons = []
    if not ignore_checksum:
        reasons += [reason for name, reason in failed.items() if name != U1_CHECK]
    if U1_CHECK in failed:
        try:
            field = read_field(path, check_checksum=False)
        except CheckError as error:  # not finite, which is no question of a checksum
            report["warnings"].append(error.reason)
            reasons.append(error.reason)
        else:
            report["warnings"].append(f"U(1) plaquette {compact_plaquette(field.values):.12f}")
            if not ignore_checksum:
                reasons += field.failed_checks.values()
    if verdict.group_error is not None:
        reasons.append(verdict.group_error)
    status = CHECK_FAILED if reasons else FINE
    return Inspection(report, header.metadata, status, "; ".join(reasons))


def _of_seeds(path: PathLike, report: dict[str, Any]) -> Inspection:
    """The inspection of a file of seeds; its checksums are compared when it is read."""
    seeds = read_seeds(path)
    entries, metadata, warnings = describe(path, seeds)
    crc = {"kind": "CRC-32 of its members", "stored": "", "computed": "", "ok": True}
    report |= {"format": "seeds", **entries, "checksum": crc, "warnings": warnings}
    return Inspection(report, metadata)


def _of_fields(report: dict[str, Any], found: FieldFindings, ignore_checksum: bool) -> Inspection:
    """The inspection of a file of scalar or U(1) fields, or of a plain array."""
    report |= found.report
    report |= {"checksum": _checksum(found.checksum), "warnings": found.warnings}
    reasons = [] if ignore_checksum else found.failures
    status = CHECK_FAILED if reasons else FINE
    return Inspection(report, found.metadata, status, "; ".join(reasons))


def _checksum(checksum: Checksum | None) -> dict[str, Any] | None:
    if checksum is None:
        return None
    return {
        "kind": checksum.kind,
        "stored": checksum.stored,
        "computed": checksum.computed,
        "ok": checksum.ok,
    }


def _number(value: float | None) -> float | None:
    """JSON has no nan and no infinity."""
    return value if value is not None and math.isfinite(value) else None
