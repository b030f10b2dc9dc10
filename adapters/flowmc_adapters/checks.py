"""Is a field what its file says it is, and a gauge field at all?"""

from __future__ import annotations

from dataclasses import dataclass

from .configuration import DIRECTIONS, Configuration
from .lime_text import parse_real, xlf_values
from .observables import GroupErrors, Plaquettes, group_errors, link_trace, plaquettes

# As QDP++ and Grid ask for. Headers are printed with 6 to 15 digits, often from sums in single
# precision; a wrong order of sites or directions shows in the first digits.
HEADER_TOLERANCE = 1e-5
# Links stored in double by codes that compute in single precision are off by 1e-7 and no worse than
# 32-bit files; damage is far larger.
GROUP_TOLERANCE = 1e-5
_DOUBLE_GROUP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Measurements:
    """What was computed from the links: plaquettes and link trace normalised to 1, group errors."""

    plaquettes: Plaquettes
    link_trace: float
    group: GroupErrors

    @property
    def is_in_group(self) -> bool:
        """Whether all links are in SU(N) to the tolerance."""
        return self.group.unitarity <= GROUP_TOLERANCE and self.group.determinant <= GROUP_TOLERANCE


def measure(configuration: Configuration) -> Measurements:
    """Compute everything a file's soundness is judged by."""
    links = configuration.links
    return Measurements(plaquettes(links), link_trace(links), group_errors(links))


def check(configuration: Configuration, measurements: Measurements) -> None:
    """Add to the configuration what does not fit.

    `failed_checks` gets disagreements with what the file states (checksum, plaquette, link trace),
    `warnings` gets the rest: links outside SU(N), boundary signs, a stale xlf-info plaquette.
    """
    failed = configuration.failed_checks
    checksum = configuration.checksum
    if checksum is not None and checksum.ok is False:
        failed["checksum"] = (
            f"checksum does not match: stored {checksum.stored}, computed {checksum.computed}; the "
            "links are damaged or the checksum is stale (read on with check_checksum=False or "
            "--ignore-checksum if you know which)"
        )
    for name, label, stored, computed in (
        (
            "plaquette",
            "plaquette",
            configuration.stored_plaquette,
            measurements.plaquettes.mean,
        ),
        (
            "link_trace",
            "link trace",
            configuration.stored_link_trace,
            measurements.link_trace,
        ),
    ):
        # Written so that a nan on either side fails
        if stored is not None and not abs(stored - computed) <= HEADER_TOLERANCE:
            failed[name] = (
                f"the header's {label} is {stored:.12g}, that of the links {computed:.12g}"
            )
    configuration.warnings += _group_warnings(configuration, measurements)
    xlf = parse_real(xlf_values(configuration.metadata.get("xlf-info", "")).get("plaquette"))
    # Some writers keep a sum or an old value there, so it cannot be insisted on.
    if xlf is not None and not abs(xlf - measurements.plaquettes.mean) <= HEADER_TOLERANCE:
        configuration.warnings.append(
            f"xlf-info says plaquette {xlf:.12g}, the links give "
            f"{measurements.plaquettes.mean:.12g}"
        )


def _group_warnings(configuration: Configuration, measurements: Measurements) -> list[str]:
    group, nc = measurements.group, configuration.nc
    if group.antiperiodic:
        names = ", ".join(
            DIRECTIONS[mu] if len(configuration.dims) == 4 else str(mu) for mu in group.antiperiodic
        )
        return [
            f"the links on the last slice in direction {names} have determinant -1: the fermions' "
            "antiperiodic sign was left in the field; multiply them by -1 before use"
        ]
    if not measurements.is_in_group:
        return [
            f"links are not in SU({nc}): |U U^dagger - 1| up to {group.unitarity:.1e}, "
            f"|det U - 1| up to {group.determinant:.1e}"
        ]
    error = max(group.unitarity, group.determinant)
    if configuration.precision == 64 and error > _DOUBLE_GROUP_TOLERANCE:
        return [f"64-bit file whose links are in SU({nc}) to {error:.1e} only"]
    return []
