"""Numbers that are not finite, and how to say where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .configuration import DIRECTIONS


def first_non_finite(part: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """Index of the first element that is nan or infinite, or None."""
    finite = np.isfinite(part)
    if finite.all():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), part.shape))


def not_finite_text(where: str) -> str:
    """What to say about links that are not finite."""
    return (
        f"not a finite number in {where}: the file is damaged, was written by a run that had "
        "already failed, or has its numbers in another byte order than it says"
    )


def site_text(index: tuple[int, ...]) -> str:
    """`[x,y,z,t], mu = x` for an index into links, `(t, z, y, x, mu, ...)`."""
    dimensions = len(index) - 3
    site = ",".join(str(i) for i in reversed(index[:dimensions]))
    mu = index[dimensions]
    name = DIRECTIONS[mu] if dimensions == 4 else str(mu)
    return f"site [{site}], mu = {name}"
