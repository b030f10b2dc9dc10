"""What a configuration file says about how it was made, against what it is about to serve for."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action, name_of
from flowmc.registry import BUILTIN, ConfigError, resolve

__all__ = ["Claims", "check_theory", "seeds_of"]

# What MILC calls the coupling of the Wilson action.
_FOREIGN = {"BETA": ("GAUGE.BETA11",)}


def check_theory(
    path: str, metadata: Mapping[str, str], action: Action, *, force: bool = False
) -> tuple[str, ...]:
    """Refuse a file whose metadata name another action or other couplings.

    A file that names none passes.

    Args:
        path: of the file.
        metadata: of it, as of :class:`flowmc.io.StoredField`.
        action: the theory of the run.
        force: go on, and only say so.

    Returns:
        What there is to say, one sentence each.

    Raises:
        ConfigError: naming every difference.
    """
    differences = list(_differences(metadata, action))
    if not differences:
        return ()
    text = f"{path} was made with another theory: " + "; ".join(differences)
    if force:
        return (f"{text} (--force: taken as a start all the same)",)
    raise ConfigError(
        f"{text}; correct [theory], or add --force to start from it all the same and thermalize"
    )


def seeds_of(path: str, metadata: Mapping[str, str]) -> list[int]:
    """Return the seeds of all runs that a configuration has passed through, the last one first.

    They are in its metadata; those of formats without are in the run directory that it lies in.
    """
    text = f"{metadata.get('FLOWMC_SEED', '')} {metadata.get('FLOWMC_EARLIER_SEEDS', '')}"
    found = [int(word) for word in text.split() if word.isdecimal()]
    return found or _seed_of_run(Path(path))


def _seed_of_run(path: Path) -> list[int]:
    ensemble = next((one for one in path.absolute().parents[:2] if one.name == "ensemble"), None)
    if ensemble is None:
        return []
    try:
        table = tomllib.loads((ensemble.parent / "config.toml").read_text(encoding="utf-8"))
        origins = json.loads((ensemble.parent / "provenance.json").read_text())["origins"]
        earlier = origins[0].get("seeds", "").split()
        return [int(table["chains"]["seed"]), *map(int, earlier)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # another program's directory of this name


class Claims:
    """What the metadata of a file say about the theory that it was made with.

    Attributes:
        action: the name of the action, if the file names one that is known here; else None.
        other_action: what else the file says in the place of an action; "" for nothing.
    """

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._said = {key.upper(): value for key, value in metadata.items()}
        self._said |= {
            key.upper(): value
            for key, value in re.findall(r"(\w+)\s*=\s*([-+.\deE]+)", metadata.get("xlf-info", ""))
        }
        text = self._said.get("ACTION", "")
        try:
            table = json.loads(text)
        except ValueError:
            table = None
        self._couplings = table if isinstance(table, dict) else {}
        name = self._said.get("FLOWMC_ACTION") or self._couplings.get("name")
        name = name or text.strip().lower()
        is_ours = "FLOWMC_ACTION" in self._said or name in BUILTIN["actions"]
        self.action = str(name) if is_ours else None
        self.other_action = "" if is_ours else str(name)

    def coupling(self, key: str) -> Any:
        """Return what the file says of a coupling or setting, as a rule a text; None: nothing."""
        header = "".join(c if c.isalnum() else "_" for c in key).upper()
        keys = (header, *_FOREIGN.get(header, ()))
        stated = next((self._said[one] for one in keys if one in self._said), None)
        return self._couplings.get(key, stated)


def _differences(metadata: Mapping[str, str], action: Action) -> Iterator[str]:
    claims, own = Claims(metadata), name_of(action)
    # What another program has made, or is to go on with, may be any theory of these couplings.
    is_open = "external" in (claims.action, own)
    if claims.action is not None and claims.action != own and not is_open:
        is_known = claims.action in BUILTIN["actions"]
        stated = getattr(resolve("actions", claims.action), "same_as", {}) if is_known else {}
        there = _names(claims.action, stated, claims.coupling)
        if not there & _names(own, action.same_as, action.parameters.get):
            yield f"it says action {claims.action}, [theory] has {own}"
            return
    for key, value in {**action.parameters, **action.settings}.items():
        text = claims.coupling(key)
        if text is not None and not _agree(text, value):
            yield f"it says {key} = {text}, [theory] has {value!r}"


def _names(
    own: str, same_as: Mapping[str, Mapping[str, float]], coupling: Callable[[str], Any]
) -> set[str]:
    """Return all names of an action at its couplings; see :attr:`Action.same_as`."""
    return {own} | {
        name
        for name, where in same_as.items()
        if all(coupling(key) is not None and _agree(coupling(key), where[key]) for key in where)
    }


def _agree(text: Any, value: Any) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            # Headers of other programs round.
            return math.isclose(float(text), value, rel_tol=1e-6, abs_tol=1e-9)
        except (TypeError, ValueError):
            return True  # no number: not what is meant here
    # JSON has lists for tuples.
    return text in (value, repr(value)) or (isinstance(value, tuple) and text == list(value))
