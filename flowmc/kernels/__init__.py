"""Markov kernels that leave a target invariant: HMC, flow proposals for the whole field or
for blocks of it, exchange, a symmetry, other programs, and compositions of these.
"""

from flowmc.kernels.base import (
    Carried,
    Info,
    Kernel,
    NonFiniteStateError,
    State,
    UpdateFailedError,
)
from flowmc.kernels.composition import Cycle, Mixture, Repeat
from flowmc.kernels.exchange import EachReplica, Exchange, LadderState, OnReplica
from flowmc.kernels.external import External
from flowmc.kernels.hmc import HMC
from flowmc.kernels.independence import Independence
from flowmc.kernels.local_flow import LocalFlow
from flowmc.kernels.numpy_links import NumpyFunction, NumpyKernel, Request
from flowmc.kernels.reporting import KernelReport, Reported
from flowmc.kernels.sign_flip import SignFlip
from flowmc.kernels.transformed import InVariables
from flowmc.splitting import INTEGRATORS, Integrator

__all__ = [
    "HMC",
    "INTEGRATORS",
    "Carried",
    "Cycle",
    "EachReplica",
    "Exchange",
    "External",
    "InVariables",
    "Independence",
    "Info",
    "Integrator",
    "Kernel",
    "KernelReport",
    "LadderState",
    "LocalFlow",
    "Mixture",
    "NonFiniteStateError",
    "NumpyFunction",
    "NumpyKernel",
    "OnReplica",
    "Repeat",
    "Reported",
    "Request",
    "SignFlip",
    "State",
    "UpdateFailedError",
]
