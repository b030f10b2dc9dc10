"""What native kernels run, and on how many threads: as many as torch, one setting for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from flowmc.kernels.integrators import Integrator

__all__ = ["merge_operations", "pieces_per_group", "use_torch_threads"]


def merge_operations(integrator: Integrator, steps: int) -> tuple[np.ndarray, list[float]]:
    """Return the operations of ``steps`` steps, adjacent ones of a kind merged.

    Returns:
        ``is_drift``, bool ``(operations,)`` (else a kick), and the coefficients of the step size.
    """
    is_drift: list[bool] = []
    coefficients: list[float] = []
    for operation in integrator.operations * steps:
        kind = operation[0] == "drift"
        if is_drift and is_drift[-1] == kind:
            coefficients[-1] += operation[1]
        else:
            is_drift.append(kind)
            coefficients.append(operation[1])
    return np.array(is_drift, dtype=np.bool_), coefficients


def use_torch_threads() -> int:
    """Let numba use as many threads as torch, at most as many as numba started with."""
    count = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(count)
    return count


def pieces_per_group(groups: int, threads: int) -> int:
    """Return into how many pieces to cut the sites of a group: 1 unless threads would idle."""
    return 1 if groups % threads == 0 or groups >= 4 * threads else threads
