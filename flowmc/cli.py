"""The ``flowmc`` command: finds the sub-command, and turns errors into one sentence and a status.

Nothing heavy is imported before the sub-command is known: ``flowmc inspect`` and ``flowmc convert``
work without torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any

from flowmc import __version__, arguments
from flowmc.commands.seeds import SeedsMaker
from flowmc.config.keys import check_keys
from flowmc.launcher import first_speaks, launched_processes
from flowmc.messages import (
    is_output_lost,
    one_line,
    open_standard_streams,
    say,
    settle_standard_streams,
)
from flowmc.registry import nearest, trust

__all__ = ["main"]

# Sub-command: module whose `run` does it, and a line of help.
_COMMANDS = {
    "init": ("flowmc.commands.init", "write a configuration to begin with"),
    "run": ("flowmc.commands.run", "a chain, or many, from a configuration"),
    "step": ("flowmc.commands.step", "one cycle of updates on one file"),
    "train": ("flowmc.commands.train", "train a flow"),
    "pack": ("flowmc.commands.pack", "a flow file of weights that were trained elsewhere"),
    "evaluate": ("flowmc.commands.evaluate", "how good a flow is"),
    "correlate": (
        "flowmc.commands.correlate",
        "what an ensemble says about theories nearby: reweighting and derivatives",
    ),
    "free-energy": ("flowmc.commands.free_energy", "ln Z of a theory, with its error"),
    "status": ("flowmc.commands.status", "how far runs are"),
    "report": ("flowmc.commands.report", "numbers and plots of a run"),
    "inspect": ("flowmc_adapters.cli", "what a configuration file holds, and whether it is sound"),
    "convert": ("flowmc_adapters.cli", "write a configuration file in another format"),
    "regenerate": (
        "flowmc.commands.regenerate",
        "configurations made again from the seeds that a run has kept",
    ),
    "zoo": ("flowmc.commands.zoo", "the trained flows that come with flowmc"),
    "schema": ("flowmc.commands.schema", "what may stand in a configuration, for editors"),
    "example": ("flowmc.commands.example", "the examples that come with flowmc, copied here"),
    "completion": ("flowmc.commands.completion", "what lets a shell complete flowmc's words"),
}

# Those that several processes can share.
_ON_RANKS = ("run", "train", "inspect", "convert", "regenerate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0: fine; 1: a check failed or the run had to stop; 2: unusable input.
    """
    open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(words[:1])
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        parser.error(f"unknown command {words[0]!r}{nearest(words[0], _COMMANDS)}")
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:
        # Help and version are on standard output, which may be full.
        raise SystemExit(_settled(stop.code if isinstance(stop.code, int) else 0)) from None
    if words[0] not in _ON_RANKS and (launched_processes() or 1) > 1:
        text = f"flowmc {words[0]} works in one process: start it without mpirun or srun"
        if not first_speaks():
            say(text, prefix="flowmc: error: ")
        return 2
    # Commands do not know this module, and one of them is about its parser.
    args.make_parser = _parser
    for module in getattr(args, "trust", ()):
        trust(module)
    return _settled(_run(words[0], args))


def _parser(named: Collection[str] = tuple(_COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        named: the commands that get their arguments; of others only the name is known.
    """
    parser = argparse.ArgumentParser(
        prog="flowmc", description="Exact Markov kernels with normalizing flows, on lattices."
    )
    parser.add_argument("--version", action="version", version=f"flowmc {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in _COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name not in named:
            continue
        if module == "flowmc_adapters.cli":
            adapters = importlib.import_module(module)
            getattr(adapters, f"add_{name}_arguments")(sub)
            sub.set_defaults(run=getattr(adapters, f"run_{name}"), maker=SeedsMaker())
        else:
            getattr(arguments, name.replace("-", "_"))(sub)
    return parser


def _run(command: str, args: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    try:
        return int(_function(command, args)(args))
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        return _unwritten(error) if is_output_lost(error) else _failed(error)


def _settled(status: int) -> int:
    """Return the status of a command, or another if standard output does not take its words."""
    failure = settle_standard_streams()
    return status if failure is None else status or _unwritten(failure)


def _unwritten(error: Exception) -> int:
    """Say that standard output cannot be written; return the exit status."""
    if isinstance(error, BrokenPipeError):
        # Its reader went away, as in `flowmc zoo | head`; nothing is left to say.
        return 0
    say(_sentence(error), prefix="flowmc: error: standard output: ")
    settle_standard_streams()
    return 2


def _function(command: str, args: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """Return what does a command; imported only after all that can be said without it."""
    if hasattr(args, "run"):
        return args.run
    if getattr(args, "config", None) is not None:
        # Last in the path: a user's module stands beside the configuration, and hides no other.
        sys.path.append(os.path.dirname(os.path.abspath(args.config)))
        if launched_processes() in (None, 1):
            check_keys(command, args.config, getattr(args, "settings", ()))
    return importlib.import_module(_COMMANDS[command][0]).run


def _failed(error: Exception) -> int:
    """Say what went wrong and return the exit status, or end all ranks; a bug is raised."""
    status = _status(error)
    # Only code that works on several ranks has imported this.
    parallel = sys.modules.get("flowmc.parallel.world")
    ranks: Any = None
    if parallel is not None:
        world = parallel.world
        # Where MPI does not work, that is the error.
        with contextlib.suppress(Exception):
            ranks = world()
    several = ranks is not None and ranks.size > 1
    if status is None and not several:
        raise error
    is_common = bool(getattr(error, "kinds", ()))
    where = f" on rank {ranks.rank} of {ranks.size}" if several and not is_common else ""
    if not is_common or not several or ranks.rank == 0:
        if status is None:
            say("".join(traceback.format_exception(error)).rstrip(), prefix="")
        say(_sentence(error), prefix=f"flowmc: error{where}: ")
    if several and not is_common:
        # The other ranks do not know; they would wait for this one.
        ranks.abort(1 if status is None else status)
    return 1 if status is None else status


_STOPPED = {
    "flowmc.kernels.base.NonFiniteStateError",
    "flowmc.kernels.base.UpdateFailedError",
}


def _status(error: Exception) -> int | None:
    """Return the exit status of an expected error, None for a bug."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    names.update(getattr(error, "kinds", ()))
    # By name: importing the classes would import torch for `flowmc inspect`.
    if "flowmc.chains.runner.RunStopped" in names:
        # A disk that cannot be written is as unusable as a file that cannot be read.
        return 2 if getattr(error, "is_unusable", False) else 1
    if "builtins.OSError" in names:
        return 2
    if names & _STOPPED:
        return 1
    unusable = ("flowmc.registry.ConfigError", "flowmc_adapters.errors.FormatError")
    if isinstance(error, OSError) or any(name in names for name in unusable):
        return 2
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return one_line(text)


if __name__ == "__main__":
    sys.exit(main())
