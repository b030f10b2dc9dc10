"""``flowmc regenerate``: configurations made again from a file of seeds, checksums compared."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flowmc.chains.regeneration import Regeneration, open_seeds, seeds_base
from flowmc.io import check_format
from flowmc.messages import say
from flowmc.parallel import Communicator, world
from flowmc.registry import ConfigError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Make them, compare and write them; return the exit status."""
    communicator = world()
    base = communicator.together(lambda: seeds_base(args.file, args.base))
    # Modules of the user's stand beside the configuration of the run, and hide no others.
    sys.path.append(os.path.abspath(base))
    numbers = communicator.together(lambda: parse_numbers(args.numbers))
    made = open_seeds(args.file, base=base, communicator=communicator)
    wanted = communicator.together(lambda: _of_chains(made, made.rows_of(numbers), args.chain))
    total = sum(len(chains) for chains in wanted.values())
    if args.check:
        for _ in made.make(wanted):
            pass
        _report(args, communicator, {"configurations": total, "directory": None})
        return 0
    action, present = made.config.action, made.config.chains.precision
    communicator.together(
        lambda: check_format(
            args.format, action, "--format", present=present, precision=args.precision
        )
    )
    writer = made.writer(Path(args.output), args.format, args.precision)

    def look() -> None:
        for row, chains in wanted.items():
            for chain in chains:
                path = writer.path(chain, made.update_of(row))
                if os.path.lexists(path):
                    raise ConfigError(f"{path} is there already: choose another --output")

    communicator.from_root(look)
    for one in made.make(wanted):
        writer.write(one.chain, one.update, one.field)
    communicator.barrier()
    _report(args, communicator, {"configurations": total, "directory": str(Path(args.output))})
    return 0


def _report(args: argparse.Namespace, communicator: Communicator, result: dict) -> None:
    if communicator.rank:
        return
    count = result["configurations"]
    if args.json:
        print(json.dumps(result, indent=2))
        return
    where = "" if result["directory"] is None else f", written to {result['directory']}"
    say(
        f"{count} configuration{'s' if count != 1 else ''} made again, all checksums as they were"
        f"{where}"
    )


def _of_chains(
    made: Regeneration, rows: dict[int, list[int]], chosen: Sequence[int]
) -> dict[int, list[int]]:
    """Return what is wanted of some chains; of all if none is chosen.

    Raises:
        ConfigError: there is no such chain, or nothing is left.
    """
    for chain in chosen:
        if not 0 <= chain < made.seeds.chains:
            raise ConfigError(
                f"--chain {chain}: {made.path} has the chains 0 to {made.seeds.chains - 1}"
            )
    if chosen:
        rows = {row: [one for one in chains if one in chosen] for row, chains in rows.items()}
        rows = {row: chains for row, chains in rows.items() if chains}
    if not rows:
        raise ConfigError(f"{made.path} has none of these configurations")
    return rows


def parse_numbers(words: Sequence[str]) -> list[range] | None:
    """Return the ranges that words like 400, 400-800 and 400-800:20 name; None for no word.

    Raises:
        ConfigError: a word is none of these.
    """
    found = []
    for word in words:
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18})(?::(\d{1,18}))?)?", word)
        first, last, step = (
            (int(one) if one else None for one in match.groups()) if match else (None, None, None)
        )
        if first is None or (last is not None and last < first) or step == 0:
            raise ConfigError(
                f"{word!r} is no configuration number: write 400, 400-800, or 400-800:20 for every "
                "20th number"
            )
        found.append(range(first, (first if last is None else last) + 1, step or 1))
    return found or None
