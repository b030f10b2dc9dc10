r"""Processes out of equilibrium: annealing, and stochastic normalizing flows.

A process drives samples of a start distribution towards a target through a line of actions
:math:`S_1 \dots S_N`.  Step n changes the action on the configuration as it is (and, in a
stochastic normalizing flow, maps the configuration by a flow layer): that is *work*.  Then Markov
updates that leave :math:`e^{-S_n}` invariant move the configuration: that is *heat*.  The
exponential of the work is what free energies and reweighting need
(:mod:`flowmc.estimators.free_energy`).
"""

from flowmc.nonequilibrium.model import StochasticFlow
from flowmc.nonequilibrium.process import Evolution, Process
from flowmc.nonequilibrium.protocols import line_of_actions
from flowmc.nonequilibrium.starts import ExactStart, MarkovStart

__all__ = [
    "Evolution",
    "ExactStart",
    "MarkovStart",
    "Process",
    "StochasticFlow",
    "line_of_actions",
]
