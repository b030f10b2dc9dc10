"""Whether the flow of a card fits a theory, and which way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.theory import describe_theory
from flowmc.flows.base import Flow, Inverse
from flowmc.flows.cards.tables import FlowFileError
from flowmc.flows.scalar.conditional import BetweenCouplings
from flowmc.registry import named_by, resolve

__all__ = ["check_flow_fits", "check_lattice", "joins", "orient"]


def check_flow_fits(
    card: Mapping[str, Any], flow: Flow | None, action: Action, *, same_couplings: bool = True
) -> None:
    """Raise unless the sampler, or the local flow, of a card was made for ``action``.

    Args:
        card: of a sampler or a local flow.
        flow: the map of a sampler; None for a local flow.
        action: the target it is to be used on.
        same_couplings: False accepts a flow trained at other couplings: proposals stay exact and
            are only accepted less often.  A conditional flow is for all couplings of its range, and
            is refused outside of it.

    Raises:
        FlowFileError: naming both theories.
    """
    if card["kind"] not in ("sampler", "local"):
        raise FlowFileError(
            "this is an exchange flow, which carries one theory to another: proposals need a "
            "sampler (a flow with a prior)"
        )
    conditional = None if flow is None else flow.conditional_on
    couplings, described = dict(card["theory"]["couplings"]), _describe(card["theory"])
    in_range, same_theory = True, _same_theory(card, action)
    if conditional is not None:
        coupling, low, high = conditional
        described += f" (conditional: {coupling} = {low:g} ... {high:g})"
        if same_theory:
            couplings[coupling] = value = action.parameters[coupling]
            in_range = low <= value <= high
    if (
        not same_theory
        or not in_range
        or (same_couplings and not _same_couplings(couplings, action))
    ):
        raise FlowFileError(
            f"this is a flow for {described}, but the theory is {_describe_action(action)}"
        )


def orient(card: Mapping[str, Any], flow: Flow, action_a: Action, action_b: Action) -> Flow:
    """Return the map from ``action_a`` to ``action_b``: the flow of a card, or its inverse.

    The sampler of a conditional flow gives the map between any two couplings of its range.

    Raises:
        FlowFileError: naming both pairs, if the flow joins other theories.
    """
    if card["kind"] == "sampler" and flow.conditional_on is not None:
        for action in (action_a, action_b):
            check_flow_fits(card, flow, action)
        return BetweenCouplings(flow, action_a, action_b)
    if card["kind"] != "exchange":
        raise FlowFileError(
            "this flow is a sampler (it starts from a prior): an exchange needs a flow trained "
            "with [exchange]"
        )
    if _same_theory(card, action_a) and _same_theory(card, action_b):
        ends = card["from"], card["to"]
        if _same_couplings(ends[0], action_a) and _same_couplings(ends[1], action_b):
            return flow
        if _same_couplings(ends[1], action_a) and _same_couplings(ends[0], action_b):
            return Inverse(flow)
    theory = card["theory"]
    source, target = ({**theory, "couplings": card[end]} for end in ("from", "to"))
    raise FlowFileError(
        f"this flow carries {_describe(source)} to {_describe(target)}, but the replicas are "
        f"{_describe_action(action_a)} and {_describe_action(action_b)}"
    )


def joins(card: Mapping[str, Any], action: Action) -> dict[str, float] | None:
    """Return the couplings at the other end of the exchange flow of a card; None: not of a theory.

    Args:
        card: of an exchange flow.
        action: the theory at one end of it.
    """
    if not _same_theory(card, action):
        return None
    for one, other in (("to", "from"), ("from", "to")):
        if _same_couplings(card[one], action):
            return {**action.parameters, **card[other]}
    return None


def check_lattice(card: Mapping[str, Any], lattice: tuple[int, ...]) -> None:
    """Raise ``FlowFileError`` unless the flow of a card can be used on another lattice."""
    own = tuple(card["theory"]["lattice"])
    if lattice == own:
        return
    if len(lattice) != len(own) or not _transfers(card):
        raise FlowFileError(
            f"this {card['flow']['name']} flow was trained on a {'x'.join(map(str, own))} lattice "
            f"and cannot be used on {'x'.join(map(str, lattice))}: train one for that lattice"
        )


def _component(kind: str, name: str) -> Any:
    with named_by("the card of the flow"):
        return resolve(kind, name)


def _transfers(card: Mapping[str, Any]) -> bool:
    component = _component("flows", card["flow"]["name"])
    return bool(getattr(component, "transfers_to_other_lattices", False))


def _same_theory(card: Mapping[str, Any], action: Action) -> bool:
    theory = card["theory"]
    lattice = tuple(theory["lattice"])
    same_lattice = lattice == action.lattice or (
        len(lattice) == len(action.lattice) and _transfers(card)
    )
    same_settings = dict(theory.get("settings", {})) == dict(action.settings)
    known = theory["group"] == action.group.name and same_lattice and same_settings
    return known and _same_action(theory["action"], action)


def _same_action(name: str, action: Action) -> bool:
    if name == action.name:
        return True
    component = _component("actions", name)
    return isinstance(component, type) and type(action) is component


def _same_couplings(couplings: Mapping[str, float], action: Action) -> bool:
    own = action.parameters
    if set(couplings) != set(own):
        return False
    # Written numbers survive JSON exactly; the tolerance is for couplings computed in two ways.
    return all(
        abs(couplings[key] - own[key]) <= 1e-12 * max(1.0, abs(own[key])) for key in couplings
    )


def _describe(theory: Mapping[str, Any]) -> str:
    couplings = ", ".join(
        [
            *(f"{key} = {value:g}" for key, value in theory["couplings"].items()),
            *(f"{key} = {value}" for key, value in theory.get("settings", {}).items()),
        ]
    )
    group = "" if theory["group"] == "R" else f" {theory['group']}"
    size = "x".join(map(str, theory["lattice"]))
    return f"{theory['action']}{group} on {size} with {couplings or 'fixed couplings'}"


def _describe_action(action: Action) -> str:
    return _describe(describe_theory(action))
