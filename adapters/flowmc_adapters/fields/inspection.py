"""What files of scalar and U(1) fields, and of plain arrays, hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..configuration import Checksum, PathLike
from ..errors import FormatError
from ..field_configuration import U1, FieldConfiguration, compact_plaquette
from ..numpy_files.npy import NumpyFormat, array_header, read_array
from ..numpy_files.siblings import is_one_direction
from ..unpacking import is_compressed, unpacked
from .files import field_format, field_numbers, read_field


@dataclass
class FieldFindings:
    """What was found.

    Attributes:
        report: entries for the report of `inspect`.
        checksum: the first wrong one, else the first one, or None.
        metadata: of the only configuration.
        failures: checks that failed.
        warnings: oddities, failures included.
    """

    report: dict[str, Any]
    checksum: Checksum | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def examine_fields(path: PathLike) -> FieldFindings | None:
    """Look at a file that is no gauge field; None for a gauge field, and for unknown files.

    Raises:
        FormatError: damaged; its child CheckError: numbers that are not finite.
        OSError: the file cannot be opened.
    """
    if is_compressed(path):
        with unpacked(path) as plain:
            return examine_fields(plain)
    found = field_format(path)
    if found == "npy":
        return _examine_array(path)
    if found is None:
        return None
    numbers: list[int | None] = []
    if found == "hdf5":
        numbers += field_numbers(path)
    findings: FieldFindings | None = None
    means: list[float] = []
    plaquettes: list[float] = []
    for number in numbers or [None]:
        one = read_field(path, number=number, check_checksum=False)
        if findings is None:
            findings = _first_findings(one, found, len(numbers) or 1)
        means.append(float(one.values.mean(dtype=np.float64)))
        if one.kind == U1:
            plaquettes.append(compact_plaquette(one.values))
        name = f"configuration {number}: " if len(numbers) > 1 else ""
        failed = [name + reason for reason in one.failed_checks.values()]
        if failed and not findings.failures:
            findings.checksum = one.checksum
        findings.failures += failed
        findings.warnings += [name + warning for warning in one.warnings]
        if (list(one.dims), one.kind) != (findings.report["dims"], findings.report["kind"]):
            findings.warnings.append(f"{name}another lattice or kind than the first one")
    assert findings is not None
    findings.report["mean"] = _mean(means)
    if plaquettes:
        findings.report["plaquette"] = _mean(plaquettes)
    return findings


def _first_findings(one: FieldConfiguration, found: str, count: int) -> FieldFindings:
    report = {
        "format": found,
        "writer": "flowmc",
        "kind": one.kind,
        "dims": list(one.dims),
        "precision": one.precision,
        "number": one.number if count == 1 else None,
        "configurations": count,
    }
    return FieldFindings(report, one.checksum, dict(one.metadata) if count == 1 else {})


def _examine_array(path: PathLike) -> FieldFindings | None:
    try:
        NumpyFormat().read_header(path)
        return None
    except FormatError:
        shape, fortran, dtype, _ = array_header(path)
        if dtype.kind == "c" and is_one_direction(path, shape, fortran, False):
            raise
    array = read_array(path)  # raises for a damaged file
    report: dict[str, Any] = {"kind": "array"}
    if array.dtype.kind in "biuf" and array.size:
        report["mean"] = _mean([float(array.mean(dtype=np.float64))])
    return FieldFindings(
        report,
        warnings=[
            f"a plain {array.dtype.name} array of shape {array.shape}, no gauge field: only that "
            "all numbers are finite was checked"
        ],
    )


def _mean(values: list[float]) -> float | None:
    """JSON has no infinity, which a mean of large numbers may be."""
    mean = math.fsum(value / len(values) for value in values)
    return mean if math.isfinite(mean) else None
