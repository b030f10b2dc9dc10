"""How configurations of an ensemble are named, and what is written beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flowmc import __version__
from flowmc.actions.base import Action, name_of
from flowmc.groups import SUN

__all__ = ["CARRIED", "base_name", "field_metadata"]


# What a source file says about the ensemble, not about one configuration of it.
CARRIED = ("ENSEMBLE_ID", "ENSEMBLE_LABEL", "BOUNDARY_1", "BOUNDARY_2", "BOUNDARY_3", "BOUNDARY_4")


def field_metadata(action: Action, seed: int, earlier: Sequence[int] = ()) -> dict[str, str]:
    """Return what every file of an ensemble says about theory and seeds, as NERSC header keys.

    Args:
        action: the theory.
        seed: of the run.
        earlier: seeds of the runs that led to its start, the last one first.
    """
    couplings = {
        "".join(c if c.isalnum() else "_" for c in key).upper(): repr(value)
        for key, value in {**action.parameters, **action.settings}.items()
    }
    if not isinstance(action.group, SUN):
        # The key that files of fields have for it; a NERSC header line would be too short
        couplings["ACTION"] = json.dumps(
            {"name": name_of(action), "lattice": list(action.lattice)}
            | {**action.parameters, **action.settings},
            sort_keys=True,
            default=repr,
        )
    before = [str(one) for one in dict.fromkeys(earlier) if one != seed]
    if before:
        couplings["FLOWMC_EARLIER_SEEDS"] = " ".join(before)
    return {
        **couplings,
        "CREATOR": f"flowmc {__version__}",
        "FLOWMC_ACTION": name_of(action),
        "FLOWMC_SEED": str(seed),
    }


def base_name(path: str) -> str:
    """Return the ensemble name in a file name: "lat" of "lat.1000" or "runs/lat-1000.lime"."""
    name = Path(path).name
    stem, dot, suffix = name.rpartition(".")
    if dot and not suffix.isdigit():
        name = stem
    return name.rstrip("0123456789").rstrip("._-#") or "conf"
