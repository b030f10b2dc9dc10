"""What an observable says of itself beside its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["observable"]

Function = TypeVar("Function", bound=Callable[..., Any])


def observable(*, title: str, has_vacuum_column: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that gives an observable its title.

    Reports have it in headings and tables; it is stored beside the values that a run measures.  An
    observable without this decorator is called by its name.

    Args:
        title: such as "Wilson loop", capitalised, without the values of keys.
        has_vacuum_column: whether the last component is the vacuum expectation value, to be
            subtracted from the others for a connected correlator.
    """

    def declare(function: Function) -> Function:
        function.title = title  # type: ignore[attr-defined]
        function.has_vacuum_column = has_vacuum_column  # type: ignore[attr-defined]
        return function

    return declare
