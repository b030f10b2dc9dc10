"""The parts of a flow file's card, and the configuration tables that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, theory_table
from flowmc.registry import ConfigError, defaults, resolve

__all__ = ["FlowFileError", "card_action", "check_parts", "flat", "resolved"]


_NAMES = {
    dict: "a table",
    list: "a list",
    str: "text",
    int: "an integer",
    float: "a number",
}


class FlowFileError(ConfigError):
    """A flow file that is missing, damaged or made for something else."""


def check_parts(card: Mapping[str, Any], where: str) -> None:
    """Check the parts of a card by their types; what they say is for those who build from them.

    Args:
        card: see :mod:`flowmc.flows.cards.files`.
        where: how to name the card in messages.

    Raises:
        FlowFileError: naming the part.
    """
    theory = card["theory"]
    _check(theory, dict, f"{where}: theory")
    for key, kind in (("action", str), ("group", str), ("lattice", list), ("couplings", dict)):
        if key not in theory:
            raise FlowFileError(f"{where}: theory lacks {key}")
        _check(theory[key], kind, f"{where}: theory: {key}")
    for extent in theory["lattice"]:
        _check(extent, int, f"{where}: theory: lattice")
    _check(theory.get("settings", {}), dict, f"{where}: theory: settings")
    for key in ("flow", "prior"):
        if key in card:
            _check(card[key], dict, f"{where}: {key}")
            _check(card[key].get("name"), str, f"{where}: {key}: name")
            _check(card[key].get("parameters", {}), dict, f"{where}: {key}: parameters")
    for key in ("from", "to"):
        _check(card.get(key, {}), dict, f"{where}: {key}")
    for couplings in (theory["couplings"], card.get("from", {}), card.get("to", {})):
        for key, value in couplings.items():
            _check(value, (int, float), f"{where}: the coupling {key}")
            if not abs(value) < 1e100:
                raise FlowFileError(f"{where}: the coupling {key} = {value!r} is out of range")
    training = card.get("training", {})
    _check(training, dict, f"{where}: training")
    _check(training.get("config", {}), dict, f"{where}: training: config")
    for name, table in training.get("config", {}).items():
        _check(table, list if name == "size" else dict, f"{where}: training: config: {name}")
    _check(card.get("measured", {}), dict, f"{where}: measured")


def _check(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(_NAMES[one] for one in kinds)
        raise FlowFileError(f"{where} should be {names}, not {str(value)[:60]!r}")


def card_action(card: Mapping[str, Any], where: str) -> Action:
    """Return the theory of a card.

    Args:
        card: see :mod:`flowmc.flows.cards.files`.
        where: how to name the card in messages.

    Raises:
        ConfigError: for a theory that is not installed.
    """
    return build_action(theory_table(card["theory"]), f"{where}: theory")


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table ``{name, ...its parameters}`` of a flow or prior.

    Args:
        entry: such a table, or ``{name, parameters}`` of a card.
    """
    own = {key: value for key, value in entry.items() if key != "parameters"}
    return {**own, **entry.get("parameters", {})}


def resolved(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{name, parameters}`` with the defaults written out: they may change, the file not.

    Args:
        kind: "flows" or "priors".
        table: ``{name, ...its parameters}``.
    """
    name, given = table["name"], {key: value for key, value in table.items() if key != "name"}
    return {"name": name, "parameters": {**defaults(resolve(kind, name)), **given}}
