"""Protocols: the line of actions from a start to a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowmc.actions.base import Action, at_couplings

__all__ = ["line_of_actions"]


def line_of_actions(
    action: Action, couplings: Mapping[str, Sequence[float]], steps: int | None = None
) -> list[Action]:
    """Return the actions of a protocol, the start first.

    Args:
        action: the theory, whose other couplings stay as they are.
        couplings: by name, the values to pass through; all lists of one length, at least two.
        steps: number of equal steps along the straight segments between these values; None takes
            the values themselves.

    Raises:
        ValueError: for lists that do not fit together, or a coupling that the action lacks,
            and an action whose :meth:`~flowmc.actions.Action.at` is that of its base class.
    """
    lengths = {name: len(values) for name, values in couplings.items()}
    if not lengths or min(lengths.values()) < 2 or len(set(lengths.values())) > 1:
        raise ValueError(
            f"a protocol needs lists of one length, at least two values each, got {lengths}"
        )
    knots = next(iter(lengths.values()))
    if steps is not None and steps < 1:
        raise ValueError(f"a protocol needs at least one step, got {steps}")
    count = knots if steps is None else steps + 1
    where = np.linspace(0, knots - 1, count)
    values = {
        # The given values themselves where a step hits them: interpolation rounds.
        name: [
            float(given[round(t)]) if t == round(t) else float(np.interp(t, range(knots), given))
            for t in where
        ]
        for name, given in couplings.items()
    }
    return [
        at_couplings(action, {name: points[n] for name, points in values.items()})
        for n in range(count)
    ]
