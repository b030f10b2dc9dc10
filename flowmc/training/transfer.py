"""Training that starts from another flow: other couplings, or a smaller lattice."""

from __future__ import annotations

import os

import torch

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import load_flow, load_local_flow
from flowmc.flows.local.models import LocalFlowModel
from flowmc.registry import ConfigError

__all__ = ["start_from"]


def start_from(flow: Flow | LocalFlowModel, action: Action, source: str | os.PathLike) -> None:
    """Give a new flow the weights of a trained one.

    A flow says itself what it can use (:meth:`~flowmc.flows.Flow.weights_from`).  Only the map is
    taken, not the prior; of a local flow both, for both are trained.

    Args:
        flow: gets the weights.
        action: the theory of ``flow``.
        source: a flow file, or "zoo:NAME".

    Raises:
        ConfigError: if the flows are of different kinds or sizes.
        FlowFileError: as from :func:`~flowmc.flows.cards.files.load_flow`.
    """
    old: Flow | LocalFlowModel
    if isinstance(flow, LocalFlowModel):
        old = load_local_flow(source).model
    else:
        old = load_flow(source).flow
    where = f"[training] start_from = {str(source)!r}"
    try:
        given = flow.weights_from(old, action)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    new = flow.state_dict()
    for name in new.keys() | given.keys():
        shapes = [tuple(d[name].shape) if name in d else None for d in (given, new)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{where}: its {name} is of shape {shapes[0]}, this flow's of {shapes[1]}: "
                "give [flow] the parameters of the trained flow"
            )
    with torch.no_grad():
        flow.load_state_dict(given)
