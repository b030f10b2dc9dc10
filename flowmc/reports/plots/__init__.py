"""Figures of pages, with matplotlib, which is loaded with the first of them.

The modules are imported at their first use, as ``plots.chain.history_plot``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmc.reports.plots import (
        chain,
        comparison,
        correlate,
        flow,
        free_energy,
        ladder,
        training,
    )

__all__ = ["chain", "comparison", "correlate", "flow", "free_energy", "ladder", "training"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
