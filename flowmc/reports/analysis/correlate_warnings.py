"""What to doubt in results of ``flowmc correlate``: every kind of warning once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from flowmc.correlate.measurement import Section
from flowmc.reports.words import quantity_text

__all__ = ["warnings_of"]

_FEW = 3  # components of a vector that are named one by one


@dataclass
class _Kind:
    """Warnings that differ in their numbers only.

    Attributes:
        text: of the worst of them.
        tau_int: of the quantity that it is about.
        about: the quantities by section.
    """

    text: str
    tau_int: float
    about: dict[str, list[str]] = field(default_factory=dict)


def warnings_of(sections: Sequence[Section]) -> list[str]:
    """Return all different warnings, each with the sections and quantities that it is about.

    Of warnings that differ in their numbers only there is one, with the numbers of the quantity of
    the longest autocorrelation.
    """
    found = [text for section in sections for text in section.warnings]
    told = set(found)
    kinds: dict[str, _Kind] = {}
    for section in sections:
        for name, verdict in section.weights.items():
            for text in verdict.warnings:
                _add(kinds, text, section.label, f"weights at {name}", math.inf)
        known = {text for verdict in section.weights.values() for text in verdict.warnings} | told
        for entry in section.entries:
            for text in entry.result.warnings:
                # What is said of weights, or of a whole section, is not said of each quantity.
                if not any(text.endswith(one) for one in known):
                    _add(kinds, text, section.label, entry.observable, entry.result.tau_int)
    for kind in kinds.values():
        places = [
            ("" if len(sections) == 1 else f"{label}: ") + ", ".join(_names(names))
            for label, names in kind.about.items()
        ]
        found.append(f"{kind.text} [{'; '.join(places)}]")
    return list(dict.fromkeys(found))


def _add(kinds: dict[str, _Kind], text: str, label: str, name: str, tau_int: float) -> None:
    # A coupling, as in beta=6, is a name.
    kind = kinds.setdefault(re.sub(r"(?<![=\w.])[\d.]+", "#", text), _Kind(text, -math.inf))
    if tau_int > kind.tau_int:
        kind.text, kind.tau_int = text, tau_int
    kind.about.setdefault(label, []).append(name)


def _names(names: Sequence[str]) -> list[str]:
    """Return quantities as they are called, vectors of many components once."""
    vectors: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        is_component = name.endswith("]")
        vectors.setdefault(name.rpartition("[")[0] if is_component else name, []).append(name)
    found = []
    for vector, components in vectors.items():
        if len(components) > _FEW:
            found.append(f"{vector}, {len(components)} components")
        else:
            found += map(quantity_text, components)
    return found
