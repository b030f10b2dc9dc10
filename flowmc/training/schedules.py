r"""Learning-rate schedules: pure functions of the step, so that a resumed training needs no state.

With :math:`s \in [0, 1]` the fraction of the training done after the warm-up and :math:`\epsilon`
the final fraction, the factors on the learning rate are

========= =======================================================================
constant  1
cosine    :math:`\epsilon + (1 - \epsilon)\,\tfrac12 (1 + \cos \pi s)`
exponential :math:`\epsilon^s`
========= =======================================================================

after a linear rise from 0 to 1 over the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "learning_rate_factor"]

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda fraction, final: 1.0,
    "cosine": lambda fraction, final: (
        final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction))
    ),
    "exponential": lambda fraction, final: final**fraction,
}


def learning_rate_factor(name: str, step: int, steps: int, warmup: int, final: float) -> float:
    """Return the factor on the learning rate at one step.

    Args:
        name: a key of :data:`SCHEDULES`.
        step: index of the step, 0 <= step < steps.
        steps: length of the training.
        warmup: number of steps of the linear rise, < steps; step 0 already moves by 1/(warmup + 1).
        final: factor reached at the end by the decaying schedules, 0 < final <= 1.
    """
    rise = min(1.0, (step + 1) / (warmup + 1))
    fraction = max(0, step - warmup) / max(1, steps - warmup)
    return rise * SCHEDULES[name](fraction, final)
