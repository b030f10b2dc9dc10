"""What is measured on a field.

An observable is a function ``observable(field, action, **parameters) -> (chains, ...)``; the action
tells it the theory (group, lattice), keyword-only parameters are its configuration keys.
"""

from flowmc.observables.declared import observable
from flowmc.observables.flowed import energy_density, gradient_flow, wilson_flow
from flowmc.observables.gauge import (
    plaquette,
    polyakov_loop,
    topological_charge,
    wilson_loop,
)
from flowmc.observables.glueball import plaquette_correlator
from flowmc.observables.scalar import (
    abs_magnetization,
    action_density,
    correlator,
    magnetization,
    phi2,
    susceptibility,
)

__all__ = [
    "abs_magnetization",
    "action_density",
    "correlator",
    "energy_density",
    "gradient_flow",
    "magnetization",
    "observable",
    "phi2",
    "plaquette",
    "plaquette_correlator",
    "polyakov_loop",
    "susceptibility",
    "topological_charge",
    "wilson_flow",
    "wilson_loop",
]
