"""``flowmc zoo``: the flows that come with flowmc, and their cards."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from flowmc import zoo
from flowmc.registry import ConfigError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run ``flowmc zoo``; return the exit status."""
    try:
        if args.name:
            sys.stdout.write(
                json.dumps(zoo.card(args.name), indent=None if args.json else 2) + "\n"
            )
        elif args.json:
            sys.stdout.write(json.dumps(zoo.zoo_list()) + "\n")
        else:
            sys.stdout.write(_table(zoo.zoo_list()))
    except ConfigError as error:
        sys.stderr.write(f"flowmc zoo: {error}\n")
        return 2
    return 0


def _table(cards: dict[str, dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = [
        ("name", "kind", "theory", "lattice", "flow", "weights", "measured")
    ]
    rows += [(name, *_row(card)) for name, card in cards.items()]
    if len(rows) == 1:
        return "the zoo of this installation is empty\n"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    theory = card["theory"]
    if card["kind"] == "exchange":
        couplings = f"{_couplings(card['from'])} -> {_couplings(card['to'])}"
    else:
        couplings = _couplings(theory["couplings"])
    group = "" if theory["group"] == "R" else f" {theory['group']}"
    measured = card.get("measured", {})
    shown = [
        f"{key} {measured[key]:.3g}"
        for key in ("ess", "acceptance", "swap_rate")
        if measured.get(key) is not None
    ]
    return (
        card["kind"],
        f"{theory['action']}{group} {couplings}",
        "x".join(map(str, theory["lattice"])),
        card["flow"]["name"],
        str(card.get("parameters", "?")),
        ", ".join(shown),
    )


def _couplings(couplings: dict[str, float]) -> str:
    return " ".join(f"{key}={value:g}" for key, value in couplings.items())
