"""``flowmc zoo``: the flows that come with flowmc, and their cards."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from flowmc import zoo
from flowmc.estimators.autocorrelation import format_value
from flowmc.messages import say
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
        say(str(error), prefix="flowmc zoo: ")
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
    if any("!" in row[-1] for row in rows):
        lines.append(
            "!: not to be believed as they stand; flowmc zoo NAME says why (measured.warnings)"
        )
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
        f"{key} {_measured(measured, key)}"
        for key in ("ess", "acceptance", "swap_rate")
        if measured.get(key) is not None
    ]
    if measured.get("warnings"):
        shown[0] += "!"
    return (
        card["kind"],
        f"{theory['action']}{group} {couplings}",
        "x".join(map(str, theory["lattice"])),
        card["flow"]["name"],
        str(card.get("parameters", "?")),
        ", ".join(shown),
    )


def _measured(measured: dict[str, Any], key: str) -> str:
    """Return a number of a card with its error, where the card has one."""
    error = measured.get(f"{key}_error")
    return f"{measured[key]:.3g}" if error is None else format_value(measured[key], error)


def _couplings(couplings: dict[str, float]) -> str:
    return " ".join(f"{key}={value:g}" for key, value in couplings.items())
