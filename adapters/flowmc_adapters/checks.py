"""Is a field what its file says it is, and a gauge field at all?"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .configuration import DIRECTIONS, Checksum, Header, PathLike
from .errors import CheckError
from .observables import GroupErrors, Measurements
from .printing import printable
from .text import parse_real, xlf_values

# As QDP++ and Grid ask for. Headers are printed with 6 to 15 digits, often from sums in single
# precision; a wrong order of sites or directions shows in the first digits.
HEADER_TOLERANCE = 1e-5
# Links stored in double by codes that compute in single precision are off by 1e-7 and no worse than
# 32-bit files; damage is far larger.
GROUP_TOLERANCE = 1e-5
_DOUBLE_GROUP_TOLERANCE = 1e-9
# The exponents of numbers read in the wrong one are anything
_OF_ANOTHER_BYTE_ORDER = 1e9
# All that can be damaged without a trace are links that are replaced by others of the group
_OTHER_BOUNDARIES = (
    "; nothing else is wrong with the links, so the run may have had G-parity, C* or open-SF "
    "boundaries, which change this number (it is compared with that of periodic ones): if it had, "
    "read on with check_checksum=False or --ignore-checksum"
)


@dataclass(frozen=True)
class Verdict:
    """A file's header beside what its links say.

    Attributes:
        header: what the file says.
        measurements: what was computed.
        checksum: stored and computed, or None if the file has none.
        failed_checks: disagreements with what the file states, by name ("checksum", "plaquette",
            "link_trace").
        warnings: oddities of the header, and of the links: outside SU(N), boundary signs, a stale
            xlf-info plaquette.
        group_error: why the links are not all in SU(N), one of the warnings, or None.
    """

    header: Header
    measurements: Measurements
    checksum: Checksum | None
    failed_checks: dict[str, str]
    warnings: list[str]
    group_error: str | None


def judge(header: Header, computed: str | None, measurements: Measurements) -> Verdict:
    """Compare a header with the measurements and the computed checksum, if there is one."""
    failed = dict(header.failed_checks)
    checksum = header.checksum
    if checksum is not None:
        checksum = replace(checksum, computed=computed or checksum.computed)
        if checksum.ok is False and checksum.binding:
            failed["checksum"] = (
                f"checksum does not match: stored {checksum.stored}, computed {checksum.computed}; "
                "the links are damaged or the checksum is stale (read on with "
                "check_checksum=False or --ignore-checksum if you know which)"
            )
    plaquette = measurements.plaquettes.mean
    if header.open_weights:
        plaquette = measurements.weighted_plaquette
    remarks = []
    for name, stored, present in (
        ("plaquette", header.plaquette, plaquette),
        ("link_trace", header.link_trace, measurements.link_trace),
    ):
        # Relative for links far outside the group; written so that a nan on either side fails
        tolerance = HEADER_TOLERANCE * max(1.0, abs(present))
        if name == "link_trace" and stored is not None and header.nc != 3:
            by_three = stored * 3 / header.nc
            if abs(by_three - present) <= tolerance < abs(stored - present):
                remarks.append(
                    "the header's link trace is divided by 3 instead of N, as in files of Grid "
                    "before November 2021"
                )
                continue
        if stored is not None and not abs(stored - present) <= tolerance:
            failed[name] = (
                f"the header's {name.replace('_', ' ')} is {stored:.12g}, that of the links "
                f"{present:.12g}"
            )
    group_error = _group_error(len(header.dims), header.nc, measurements.group)
    if list(failed) == ["plaquette"] and group_error is None:
        failed["plaquette"] += _OTHER_BOUNDARIES
    warnings = [*header.warnings, *remarks, *_group_remarks(header, measurements.group)]
    if group_error is not None:
        warnings.append(group_error)
    if checksum is not None and checksum.ok is False and not checksum.binding:
        warnings.append(
            f"checksum does not match: stored {checksum.stored}, computed {checksum.computed}; "
            "not an error in this format, whose writers disagree about it"
        )
    xlf = parse_real(xlf_values(header.metadata.get("xlf-info", "")).get("plaquette"))
    # Some writers keep a sum or an old value there, so it cannot be insisted on.
    if xlf is not None and not abs(xlf - measurements.plaquettes.mean) <= HEADER_TOLERANCE:
        warnings.append(
            f"xlf-info says plaquette {xlf:.12g}, the links give "
            f"{measurements.plaquettes.mean:.12g}"
        )
    # Headers are quoted in some of these
    failed = {name: printable(reason) for name, reason in failed.items()}
    warnings = list(map(printable, warnings))
    return Verdict(header, measurements, checksum, failed, warnings, group_error)


def _group_remarks(header: Header, group: GroupErrors) -> list[str]:
    """What is worth saying of links that are a gauge field."""
    remarks = []
    if group.open_boundary:
        remarks.append(
            "the time links of the last time slice are zero: open boundary conditions in time"
        )
    error = max(group.unitarity, group.determinant)
    if header.precision == 64 and _DOUBLE_GROUP_TOLERANCE < error <= GROUP_TOLERANCE:
        remarks.append(f"64-bit file whose links are in SU({header.nc}) to {error:.1e} only")
    return remarks


def require_group(path: PathLike, dims: tuple[int, ...], nc: int, group: GroupErrors) -> None:
    """Refuse to write links that `inspect` would fail: with a new checksum, damage looks sound.

    Args:
        path: the file they come from.
        dims: extents (Lx, ..., Lt).
        nc: number of colours N.
        group: of the links as they would be written.

    Raises:
        CheckError: they are not in SU(N).
    """
    error = _group_error(len(dims), nc, group)
    if error is not None:
        raise CheckError(
            path,
            None,
            f"{error}; nothing was written (check_group=False or --ignore-group writes them as "
            "they are)",
        )


def _group_error(dimensions: int, nc: int, group: GroupErrors) -> str | None:
    """Why not all links are in SU(N), or None."""
    if group.antiperiodic:
        names = ", ".join(
            DIRECTIONS[mu] if dimensions == 4 else str(mu) for mu in group.antiperiodic
        )
        return (
            f"the links on the last slice in direction {names} have determinant -1: the fermions' "
            "antiperiodic sign was left in the field; strip it with strip_signs=True or "
            "--strip-signs"
        )
    if not max(group.unitarity, group.determinant) <= GROUP_TOLERANCE:
        slices = [t for t, value in enumerate(group.slice_errors) if not value <= GROUP_TOLERANCE]
        where = ""
        if len(slices) < len(group.slice_errors):
            where = f", on time slice {', '.join(map(str, slices[:8]))} only"
            if slices == [0]:
                where += " (a Schroedinger functional?)"
        elif not group.unitarity <= _OF_ANOTHER_BYTE_ORDER:
            where = "; numbers that large are a sign of another byte order than the file says"
        return (
            f"links are not in SU({nc}): |U U^dagger - 1| up to {group.unitarity:.1e}, "
            f"|det U - 1| up to {group.determinant:.1e}{where}"
        )
    if group.zeros and not group.open_boundary:
        return f"{group.zeros} links are zero matrices"
    return None
