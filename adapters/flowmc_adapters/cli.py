"""The commands `inspect` and `convert`, to be mounted by the `flowmc` command or run alone.

Exit status: 0 fine, 1 a check failed (checksum, plaquette, link trace, group membership, numbers
that are not finite), 2 unusable input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands.convert import add_convert_arguments, run_convert
from .commands.inspect import add_inspect_arguments, run_inspect

__all__ = [
    "add_convert_arguments",
    "add_inspect_arguments",
    "main",
    "run_convert",
    "run_inspect",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m flowmc_adapters`."""
    parser = argparse.ArgumentParser(
        prog="flowmc_adapters", description="Inspect and convert lattice field configurations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect_parser = commands.add_parser("inspect", help="what files hold, and whether it is sound")
    add_inspect_arguments(inspect_parser)
    inspect_parser.set_defaults(run=run_inspect)
    convert_parser = commands.add_parser("convert", help="write files in another format")
    add_convert_arguments(convert_parser)
    convert_parser.set_defaults(run=run_convert)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except BrokenPipeError:
        # The reader of a pipe went away, as in `... inspect files | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
