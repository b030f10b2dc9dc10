"""The contract of an observable."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from flowmc.actions.base import Action
from flowmc.testing.base import (
    gauge_transformation,
    random_numbers,
    require,
    require_close,
    single,
)

__all__ = ["check_observable"]

_ROUNDING, _SINGLE = 1e-10, 1e-3


def check_observable(observable: Callable[..., Tensor], action: Action, **keys: Any) -> None:
    """Hold an observable to its contract: ``observable(field, action, **keys) -> (chains, ...)``.

    It is real or complex and finite, has the same components for any number of chains, of which
    none feels another, and leaves the field alone.  It is gauge invariant, and near the same for a
    field in single precision.

    Args:
        observable: the function.
        action: a theory that it is for, on a small lattice.
        keys: of the function.

    Raises:
        ContractError: naming what does not hold.
    """
    name = getattr(observable, "__name__", repr(observable))
    measure = functools.partial(observable, action=action, **keys)
    rng = random_numbers("check of an observable")
    field = action.hot(3, rng)
    before = field.clone()
    value = measure(field)
    require(bool((field == before).all()), name, "it changes the field that it is given")
    require(
        value.dim() > 0 and len(value) == 3 and bool(value.isfinite().all()),
        name,
        f"of 3 chains it is {tuple(value.shape)}, or not finite: should be (chains, ...)",
    )
    for n, one in enumerate(field.split(1)):
        require_close(measure(one), value[n : n + 1], _ROUNDING, name, "it depends on other chains")
    require_close(measure(single(field)), value, _SINGLE, name, "in single precision it is another")
    if action.is_gauge:
        links, _ = gauge_transformation(action, 3, rng)
        require_close(measure(links(field)), value, _ROUNDING, name, "it is not gauge invariant")
