"""Which flows of the zoo, or which flow file, serve a theory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from flowmc import zoo
from flowmc.actions.base import Action
from flowmc.flows.cards.files import load_flow
from flowmc.flows.cards.matching import check_flow_fits, joins
from flowmc.flows.cards.tables import FlowFileError

__all__ = ["Proposals", "proposals_of", "proposals_of_zoo"]


@dataclass(frozen=True)
class Proposals:
    """Flows that move a chain of one theory.

    Attributes:
        sampler: path of a flow file, or "zoo:NAME", for independence Metropolis; "" for exchange.
        ladder: values of the couplings that change from replica to replica, the first those of the
            theory.
        exchange: a flow for each pair of neighbours, as ``sampler``.
    """

    sampler: str = ""
    ladder: Mapping[str, list[float]] = field(default_factory=dict)
    exchange: tuple[str, ...] = ()


def proposals_of(path: str, written: str, action: Action) -> Proposals:
    """Return what a flow file, sampler or exchange flow, can do for a theory.

    Args:
        path: of the file, or "zoo:NAME".
        written: how a configuration names it.
        action: the theory.

    Raises:
        FlowFileError, ConfigError: it is no usable flow file, or of another theory.
    """
    try:
        loaded = load_flow(path, lattice=action.lattice)
        if loaded.model is not None:
            check_flow_fits(loaded.card, loaded.flow, action, same_couplings=False)
            return Proposals(sampler=written)
    except FlowFileError as error:
        raise FlowFileError(f"{path}: {error}") from error
    other = joins(loaded.card, action)
    if other is None:
        first, second = loaded.ends
        raise FlowFileError(
            f"{path} carries {first!r} to {second!r}, neither of which is the theory, {action!r}"
        )
    return _through(action, {written: other})


def proposals_of_zoo(action: Action) -> Proposals | None:
    """Return flows of the zoo for a theory: a sampler, else a ladder of exchange flows; None."""
    cards = {f"{zoo.PREFIX}{name}": card for name, card in zoo.zoo_list().items()}
    samplers = {name: card for name, card in cards.items() if card["kind"] == "sampler"}
    for name, card in samplers.items():
        with suppress(FlowFileError):
            check_flow_fits(card, None, action)
            return Proposals(sampler=name)
    for name, card in samplers.items():
        # Of a conditional flow only the flow itself knows its range.
        if card["theory"]["lattice"] == list(action.lattice):
            with suppress(FlowFileError):
                check_flow_fits(card, load_flow(name).flow, action)
                return Proposals(sampler=name)
    chosen: dict[str, Mapping[str, float]] = {}
    here: Action | None = action
    while here is not None:
        found = {
            name: couplings
            for name, card in cards.items()
            if card["kind"] == "exchange" and (couplings := joins(card, here)) is not None
        }
        here = None
        # Downwards in the couplings, where chains are fast, and never back.
        for name, couplings in sorted(found.items(), key=lambda one: list(one[1].values())):
            before = [dict(action.parameters), *map(dict, chosen.values())]
            if couplings not in before and name not in chosen:
                chosen[name] = couplings
                here = action.at(**couplings)
                break
    return _through(action, chosen) if chosen else None


def _through(action: Action, chosen: Mapping[str, Mapping[str, float]]) -> Proposals:
    replicas = [action.parameters, *chosen.values()]
    moved = [key for key in action.parameters if len({one[key] for one in replicas}) > 1]
    ladder = {key: [float(one[key]) for one in replicas] for key in moved}
    return Proposals(ladder=ladder, exchange=tuple(chosen))
