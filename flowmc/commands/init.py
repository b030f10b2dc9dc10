"""``flowmc init``: a configuration with remarks, to begin with."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmc_adapters import atomic_write

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, theory_table
from flowmc.chains.config import read_config
from flowmc.config.cases import DEFAULT_THEORIES, Draft, Start, draft
from flowmc.config.kinds import CASES
from flowmc.config.settings import with_settings
from flowmc.config.toml_text import toml_text
from flowmc.ensembles.theories import StoredTheory, theory_of_file
from flowmc.flows.cards.choosing import Proposals, proposals_of, proposals_of_zoo
from flowmc.flows.cards.files import flow_path, read_card
from flowmc.io import check_format
from flowmc.messages import say
from flowmc.registry import ConfigError, nearest
from flowmc.training.plan import make_plan
from flowmc.zoo import PREFIX

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Write the configuration of a case; return the exit status.

    Raises:
        ConfigError: there is no such case, the files do not say enough, or something is where the
            configuration would be written.
        OSError: it cannot be written.
    """
    if args.case is None:
        width = max(map(len, CASES))
        print("\n".join(f"{name.ljust(width)}  {text}" for name, text in CASES.items()))
        return 0
    if args.case not in CASES:
        raise ConfigError(f"there is no case {args.case!r}{nearest(args.case, CASES)}")
    if args.flow is not None and args.case != "hybrid":
        raise ConfigError(f"--flow {args.flow}: only a hybrid has a flow, not {args.case}")
    output = Path(args.output or f"{args.case}.toml")
    if output.exists():
        raise ConfigError(f"{output} is there: give another name with --output, or move it away")
    # A module of one's own action stands beside the configuration.
    sys.path.append(str(output.absolute().parent))
    found = _draft(args, output)
    base = output.absolute().parent
    # What is written is checked as the command that takes it does.
    if found.command == "train":
        make_plan(found.tables, base)
    else:
        read_config(found.tables, base)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(_text(found, str(output)).encode())
    print(output)
    options = "" if found.command == "run" else " --output flow.safetensors"
    say(f"look at it, then:  flowmc {found.command} {output}{options}")
    return 0


def _draft(args: argparse.Namespace, output: Path) -> Draft:
    """Return the configuration with what was set on the command line."""
    given = with_settings({"theory": {}}, args.settings)["theory"]
    start: Start | None = None
    if args.file is not None:
        stored = theory_of_file(args.file, given)
        for text in stored.remarks:
            say(text)
        theory, action = stored.table, stored.action
        start = _start(args.file, stored, output)
    else:
        theory = _theory(args, given)
        action = build_action(theory)
    flows = _proposals(args, action, output) if args.case == "hybrid" else None
    found = draft(args.case, theory, action, start, flows)
    if args.file is not None:
        end = found.title.index("")
        found.title.insert(end, f"The theory is that of {_from(args.file, output)}.")
    return dataclasses.replace(found, tables=with_settings(found.tables, args.settings))


def _theory(args: argparse.Namespace, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the theory of a configuration without a file: that of the flow, or of the case."""
    table: dict[str, Any] = dict(DEFAULT_THEORIES[args.case])
    if args.flow is not None:
        table = theory_table(read_card(flow_path(args.flow))["theory"])
    if given.get("action", table["action"]) != table["action"]:
        # Nothing of another action is known but what was said.
        return {"lattice": table["lattice"]} | dict(given)
    return table | dict(given)


def _start(path: str, stored: StoredTheory, output: Path) -> Start:
    """Return the start of chains, saved in the format of the file if that can be written."""
    form = stored.format
    try:
        check_format(form, stored.action, path, precision=stored.precision)
    except ConfigError:
        form = "hdf5"
    return Start(_from(path, output), form, stored.precision)


def _proposals(args: argparse.Namespace, action: Action, output: Path) -> Proposals:
    if args.flow is not None:
        is_zoo = args.flow.startswith(PREFIX)
        return proposals_of(args.flow, args.flow if is_zoo else _from(args.flow, output), action)
    found = proposals_of_zoo(action)
    if found is None:
        raise ConfigError(
            f"no flow of the zoo is for {action!r}: train one (flowmc init training), then give it "
            "with --flow FLOW.safetensors"
        )
    return found


def _from(path: str, output: Path) -> str:
    """Return a path as a configuration names it: from its own directory."""
    return os.path.relpath(path, output.absolute().parent)


def _text(found: Draft, path: str) -> str:
    title = "\n".join(f"# {line.replace('CONFIG', path)}".rstrip() for line in found.title)
    return f"{title}\n\n{toml_text(found.tables, found.remarks)}"
