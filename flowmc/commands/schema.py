"""``flowmc schema``: what may stand in a configuration, for editors and readers."""

from __future__ import annotations

import argparse
import json
import sys

from flowmc.config.kinds import KINDS
from flowmc.registry import ConfigError, nearest

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Print a schema, the reference, or the kinds that there are; return the exit status."""
    if args.kind is not None and args.kind not in KINDS:
        raise ConfigError(f"unknown kind of configuration {args.kind!r}{nearest(args.kind, KINDS)}")
    # They import everything that has keys, and torch with it.
    if args.reference:
        from flowmc.config.reference import reference

        text = reference()
    elif args.kind is not None:
        from flowmc.config.schema import json_schema

        text = json.dumps(json_schema(args.kind, installed=True), indent=1, ensure_ascii=False)
    else:
        text = "\n".join(KINDS)
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    return 0
