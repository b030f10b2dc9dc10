"""The zoo: small trained flows that come with flowmc, each with its card.

``models/NAME.safetensors`` holds the flow and ``models/NAME.json`` a copy of its card; wherever a
flow file is asked for, ``"zoo:NAME"`` names one of these.  Nothing here needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowmc.registry import ConfigError, nearest

__all__ = ["MODELS", "PREFIX", "card", "path", "zoo_list"]

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
