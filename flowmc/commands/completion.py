"""``flowmc completion``: a script with which a shell completes commands, options and files.

The script is made once, by shtab from the parser of the command line, and holds all words: the
shell starts nothing of flowmc while one types.
"""

from __future__ import annotations

import argparse
import sys

import shtab

from flowmc import zoo
from flowmc.commands.example import examples
from flowmc.config.kinds import CASES, KINDS

__all__ = ["run"]

_FILES = (
    *("CONFIG.toml", "FILE", "FILE.html", "FLOW", "FLOW.safetensors", "WEIGHTS.safetensors"),
    *("IN", "OUT", "SRC", "DST"),
)  # fmt: skip
_DIRECTORIES = ("DIR",)


def run(args: argparse.Namespace) -> int:
    """Print the script for a shell; return the exit status."""
    parser = args.make_parser()
    [commands] = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    words = {
        ("init", "case"): list(CASES),
        ("example", "name"): list(examples()),
        ("schema", "kind"): list(KINDS),
        ("zoo", "name"): list(zoo.zoo_list()),
    }
    for name, sub in commands.choices.items():
        for action in sub._actions:
            if (name, action.dest) in words:
                action.choices = words[name, action.dest]
            elif action.metavar in _FILES:
                action.complete = shtab.FILE
            elif action.metavar in _DIRECTORIES:
                action.complete = shtab.DIRECTORY
    script = shtab.complete(parser, shell=args.shell)
    sys.stdout.write(script if script.endswith("\n") else f"{script}\n")
    return 0
