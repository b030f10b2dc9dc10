"""What an observable says of itself beside its values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

    from flowmc.actions.base import Action

__all__ = ["observable"]

Function = TypeVar("Function", bound=Callable[..., Any])


def observable(*, title: str, has_vacuum_column: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that gives an observable its title.

    The observable sees the field with the links that its theory holds fixed.

    Reports have it in headings and tables; it is stored beside the values that a run measures.  An
    observable without this decorator is called by its name.

    Args:
        title: such as "Wilson loop", capitalised, without the values of keys.
        has_vacuum_column: whether the last component is the vacuum expectation value, to be
            subtracted from the others for a connected correlator.
    """

    def declare(function: Function) -> Function:
        @functools.wraps(function)
        def measured(field: Tensor, action: Action, *args: Any, **keys: Any) -> Any:
            return function(action.with_fixed_links(field), action, *args, **keys)

        measured.title = title  # type: ignore[attr-defined]
        measured.has_vacuum_column = has_vacuum_column  # type: ignore[attr-defined]
        return cast(Function, measured)

    return declare
