"""The zoo: small trained flows that come with flowmc, each with its card.

``models/NAME.safetensors`` holds the flow and ``models/NAME.json`` a copy of its card; wherever a
flow file is asked for, ``"zoo:NAME"`` names one of these.  Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmc.registry import ConfigError, nearest

__all__ = ["MODELS", "PREFIX", "ancestors", "card", "path", "zoo_list"]

PREFIX = "zoo:"
MODELS = Path(__file__).parent / "models"


def zoo_list() -> dict[str, dict[str, Any]]:
    """Return the card of every flow in the zoo, by name."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(MODELS.glob("*.json"))
    }


def path(name: str) -> Path:
    """Return the file of the flow ``NAME`` or ``zoo:NAME``.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    short = name.removeprefix(PREFIX)
    known = [file.stem for file in MODELS.glob("*.safetensors")]
    if short not in known:
        hint = nearest(short, known) or "; the zoo of this installation is empty"
        raise ConfigError(f"there is no flow {short!r} in the zoo{hint}")
    return MODELS / f"{short}.safetensors"


def card(name: str) -> dict[str, Any]:
    """Return the card of the flow ``NAME`` or ``zoo:NAME``; errors as :func:`path`."""
    return json.loads(path(name).with_suffix(".json").read_text(encoding="utf-8"))


def ancestors(training: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the training seconds of the flows from which a training began, by name.

    Cards say so under ``ancestors``; of those that do not, flows of the zoo are looked up.

    Args:
        training: of a card: ``config``, ``seconds`` and, if it began from another flow,
            ``ancestors``: a list of ``{flow, seconds}``, the nearest first.

    Returns:
        None for a flow whose training time is not known.
    """
    found: dict[str, float | None] = {}
    for entry in training.get("ancestors", []):
        found[entry["flow"]] = entry["seconds"]
    source = training.get("config", {}).get("training", {}).get("start_from")
    if found or source is None:
        return found
    name = source if source.startswith(PREFIX) else Path(source).name
    found[name] = None
    if source.startswith(PREFIX):
        try:
            own = card(source)["training"]
        except ConfigError:
            return found
        found[name] = own["seconds"]
        found.update(ancestors(own))
    return found
