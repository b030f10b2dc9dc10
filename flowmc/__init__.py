"""Normalizing flows as exact Markov kernels for lattice field theory.

Importing :mod:`flowmc` is cheap: nothing here imports torch, so that the file tools of the
command line (``flowmc inspect``, ``flowmc convert``) start at once on a login node.  Import the
rooms you need::

    from flowmc.actions import Phi4, Wilson
    from flowmc.kernels import HMC, Independence, Exchange, Cycle

``flowmc.sample`` (:func:`flowmc.chains.sampling.sample`) runs chains in memory, ``flowmc.read_run``
(:func:`flowmc.chains.storage.recorded.read_run`) reads what a run has left behind; both are looked
for when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmc.chains.sampling import sample
    from flowmc.chains.storage.recorded import read_run

__all__ = ["__version__", "read_run", "sample"]

__version__ = "0.1.0"

# Rooms ask the package for its version, so it imports none of them before it is asked.
_DOORS = {
    "read_run": "flowmc.chains.storage.recorded",
    "sample": "flowmc.chains.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)
