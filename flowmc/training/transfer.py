"""Training that starts from another flow: other couplings, or a smaller lattice."""

from __future__ import annotations

import os

import torch
from torch import nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import load_flow, load_local_flow
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.scalar.conditional import ConditionalContinuousFlow
from flowmc.flows.scalar.continuous import ContinuousFlow
from flowmc.registry import ConfigError

__all__ = ["start_from"]


def start_from(flow: Flow | LocalFlowModel, action: Action, source: str | os.PathLike) -> None:
    """Give a new flow the weights of a trained one.

    Weights that do not depend on the lattice, and any on the same lattice, are taken as they are;
    the kernels of a :class:`~flowmc.flows.ContinuousFlow` of a smaller lattice are embedded
    (:meth:`~flowmc.flows.ContinuousFlow.embedded`), and those of one coupling are the beginning for
    all couplings of a conditional flow.  Only the map is taken, not the prior; of a local flow
    both, for both are trained.

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
    if isinstance(flow, ConditionalContinuousFlow) and type(old) is ContinuousFlow:
        _start_conditional(flow, old, action, where)
        return
    if type(old) is not type(flow):
        raise ConfigError(f"{where}: is a {type(old).__name__}, not a {type(flow).__name__}")
    if (
        isinstance(old, ContinuousFlow)
        and isinstance(flow, ContinuousFlow)
        and not flow.transfers_to_other_lattices
        and (old.lattice, old.reach) != (flow.lattice, flow.reach)
    ):
        try:
            old = old.embedded(action, flow.reach)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    _take(flow, old, where)


def _start_conditional(
    flow: ConditionalContinuousFlow, old: ContinuousFlow, action: Action, where: str
) -> None:
    """Begin with the weights of one coupling for all of them."""
    try:
        if (old.lattice, old.reach) != (flow.lattice, flow.reach):
            old = old.embedded(action, flow.reach)
        flow.start_from(old)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _take(flow: nn.Module, old: nn.Module, where: str) -> None:
    new, given = flow.state_dict(), old.state_dict()
    for name in new.keys() | given.keys():
        shapes = [tuple(d[name].shape) if name in d else None for d in (given, new)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{where}: its {name} is of shape {shapes[0]}, this flow's of {shapes[1]}: "
                "give [flow] the parameters of the trained flow"
            )
    with torch.no_grad():
        flow.load_state_dict(given)
