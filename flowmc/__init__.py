"""Normalizing flows as exact Markov kernels for lattice field theory.

A chain of hybrid Monte Carlo (HMC) and of moves that trained flows propose; exact whatever the
quality of the flow.  From configuration files and from the files of other codes that is the command
``flowmc`` (``flowmc --help``); in Python::

    import flowmc

    action = flowmc.actions.Phi4([8, 8], m2=-4.0, lam=8.0)
    start = action.hot(16, flowmc.random.stream(seed=1, block=0, purpose="start"))
    chains = flowmc.sample(flowmc.kernels.HMC(action), start, 100, seed=1, observables=["phi2"])
    chains.estimate("phi2").mean

What is done with such objects, functions of this package:

====================  ==================================================================
:func:`sample`        chains in memory
:func:`step`          one update of one field, for programs that hold it themselves
:func:`load_flow`     a trained flow: of a file, or ``"zoo:NAME"``
:func:`read_field`    a configuration file of any format
:func:`write_field`   the same, to be read by other codes
:func:`read_run`      what ``flowmc run`` has left in a directory
====================  ==================================================================

and the rooms that it is made of:

===================  ===================================================================
:mod:`.actions`      targets: S(field), its force, its couplings
:mod:`.kernels`      Markov updates: HMC, independence Metropolis, exchange, ...
:mod:`.flows`        invertible maps with log-densities, priors, flow files
:mod:`.observables`  what is measured on a field
:mod:`.training`     objectives and the loop
:mod:`.evaluation`   how good a flow is
:mod:`.chains`       chains from objects and from configurations
:mod:`.correlate`    ensembles of theories nearby
:mod:`.free_energy`  ln Z by every estimator
:mod:`.estimators`   autocorrelation, reweighting, errors
:mod:`.testing`      the contracts as checks, for parts of your own
===================  ===================================================================

Importing :mod:`flowmc` is cheap: rooms and functions are looked for when they are asked for, so
that ``flowmc inspect`` and ``flowmc convert`` start at once on a login node without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmc import (
        actions,
        chains,
        correlate,
        estimators,
        evaluation,
        flows,
        free_energy,
        kernels,
        observables,
        random,
        testing,
        training,
    )
    from flowmc.chains import sample, step
    from flowmc.chains.storage.recorded import read_run
    from flowmc.flows import load_flow
    from flowmc.io import read_field, write_field

__version__ = "0.1.0"

_ROOMS = (
    "actions",
    "chains",
    "correlate",
    "estimators",
    "evaluation",
    "flows",
    "free_energy",
    "kernels",
    "observables",
    "random",
    "testing",
    "training",
)
# Rooms ask the package for its version, so it imports none of them before it is asked.
_DOORS = {
    "load_flow": "flowmc.flows",
    "read_field": "flowmc.io",
    "read_run": "flowmc.chains.storage.recorded",
    "sample": "flowmc.chains",
    "step": "flowmc.chains",
    "write_field": "flowmc.io",
}

__all__ = [
    "__version__",
    "actions",
    "chains",
    "correlate",
    "estimators",
    "evaluation",
    "flows",
    "free_energy",
    "kernels",
    "load_flow",
    "observables",
    "random",
    "read_field",
    "read_run",
    "sample",
    "step",
    "testing",
    "training",
    "write_field",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"flowmc.{name}")
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
