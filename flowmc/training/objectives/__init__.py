r"""What a training minimises: one class per objective.

An objective draws a batch and returns a :class:`Batch`, whose ``surrogate`` is a scalar with the
right *gradient* and whose ``loss`` has the right *value*; the two differ because derivatives of
actions come from their analytic forces and because many estimates of a gradient are not the
derivative of an estimate of the loss.
"""

from flowmc.training.objectives.alpha import AlphaTwo
from flowmc.training.objectives.annealed import Annealed
from flowmc.training.objectives.base import Batch, Objective, SamplerObjective
from flowmc.training.objectives.exchange import ExchangeKL
from flowmc.training.objectives.family import OverCouplings, OverTheories, share_weights
from flowmc.training.objectives.forward import ForwardKL
from flowmc.training.objectives.local import LocalKL
from flowmc.training.objectives.reverse import ReverseKL
from flowmc.training.objectives.score import LogVariance, Reinforce

__all__ = [
    "AlphaTwo",
    "Annealed",
    "Batch",
    "ExchangeKL",
    "ForwardKL",
    "LocalKL",
    "LogVariance",
    "Objective",
    "OverCouplings",
    "OverTheories",
    "Reinforce",
    "ReverseKL",
    "SamplerObjective",
    "share_weights",
]
