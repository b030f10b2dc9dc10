"""``flowmc evaluate``: how good a flow is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from flowmc.evaluation.density import DensityError
from flowmc.evaluation.files import evaluate
from flowmc.messages import say
from flowmc.parallel.devices import check_device
from flowmc.registry import ConfigError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run ``flowmc evaluate``; return the exit status."""
    try:
        for key in ("samples", "batch"):
            if getattr(args, key) < 2:
                raise ConfigError(f"--{key} {getattr(args, key)}: needs at least 2")
        result, warnings = evaluate(
            args.flow,
            samples=args.samples,
            batch=args.batch,
            config=args.config,
            settings=args.settings,
            seed=args.seed,
            device=check_device(args.device),
        )
    except ConfigError as error:
        say(str(error), prefix="flowmc evaluate: ")
        return 2
    except DensityError as error:
        say(str(error), prefix="flowmc evaluate: ")
        return 1
    if args.json:
        sys.stdout.write(json.dumps({**result, "warnings": warnings}) + "\n")
    else:
        sys.stdout.write(_table(result))
    for warning in warnings:
        say(warning, prefix="warning: ")
    return 0


def _table(result: Mapping[str, Any]) -> str:
    lines = []
    for key, value in result.items():
        if key.endswith("_error") and key.removesuffix("_error") in result:
            continue
        error = result.get(f"{key}_error")
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        if isinstance(error, float):
            text = f"{value:.6g} +- {error:.2g}"
        lines.append(f"{key:20s} {text}")
    return "\n".join(lines) + "\n"
