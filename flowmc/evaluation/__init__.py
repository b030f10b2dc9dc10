"""How good a flow is, from objects: samplers, exchange flows, local flows.

:func:`evaluate_sampler`, :func:`evaluate_exchange` and :func:`evaluate_local` take flows and
actions; ``files`` reads flow files and configurations for ``flowmc evaluate``.
"""

from flowmc.evaluation.exchange import evaluate_exchange
from flowmc.evaluation.local import evaluate_local
from flowmc.evaluation.samplers import evaluate_sampler

__all__ = ["evaluate_exchange", "evaluate_local", "evaluate_sampler"]
