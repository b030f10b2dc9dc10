"""The parts of a flow file's card, and the configuration tables that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action
from flowmc.registry import ConfigError, parameters, resolve

__all__ = ["FlowFileError", "card_action", "flat", "resolved"]


class FlowFileError(ConfigError):
    """A flow file that is missing, damaged or made for something else."""


def card_action(card: Mapping[str, Any], where: str) -> Action:
    """Return the theory of a card.

    Args:
        card: see :mod:`flowmc.flows.files`.
        where: how to name the card in messages.

    Raises:
        ConfigError: for a theory that is not installed.
    """
    theory = dict(card["theory"])
    table = {
        "action": theory["action"],
        "lattice": theory["lattice"],
        **theory.get("settings", {}),
        **theory["couplings"],
    }
    if theory.get("group", "R") != "R":
        table["group"] = theory["group"]
    return build_action(table, f"{where}: theory")


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
    defaults = {
        "lambda" if key == "lam" else key: parameter.default
        for key, parameter in parameters(resolve(kind, name)).items()
        if isinstance(parameter.default, (bool, int, float, str, list, tuple))
    }
    return {"name": name, "parameters": {**defaults, **given}}
