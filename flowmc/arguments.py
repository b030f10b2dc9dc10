"""The arguments of every ``flowmc`` command, without what the commands themselves import.

``flowmc run --help`` and a misspelt option are answered before torch is imported.  Those of
``inspect`` and ``convert`` stand in :mod:`flowmc_adapters`.
"""

from __future__ import annotations

from argparse import ArgumentParser

__all__ = [
    "completion",
    "correlate",
    "evaluate",
    "example",
    "free_energy",
    "init",
    "pack",
    "regenerate",
    "report",
    "run",
    "schema",
    "status",
    "step",
    "train",
    "zoo",
]

_JSON = "print one JSON document on standard output"
_FORCE = "start from a file even if its header names another action or other couplings"
_RESULTS = "directory of the results (default: runs/<name of the file>)"


def run(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc run``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="what to run")
    parser.add_argument(
        "--output", metavar="DIR", help="run directory (default: runs/<name of the file>)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint; start if there is none",
    )
    parser.add_argument("--force", action="store_true", help=_FORCE)
    _set(parser)
    _trust(parser)


def step(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc step``."""
    parser.add_argument("source", metavar="IN", help="configuration file of any format")
    parser.add_argument("destination", metavar="OUT", help="file to write; may be IN")
    parser.add_argument("--config", required=True, metavar="CONFIG.toml", help="theory and updates")
    parser.add_argument(
        "--number",
        type=int,
        help="number of the configuration that is written (default: the one at the end of OUT, "
        "else that of IN plus 1); it selects the random numbers",
    )
    parser.add_argument(
        "--ladder",
        metavar="FILE",
        help="of a ladder, whose IN and OUT hold {replica}: the side file with its walkers "
        "(default: IN of replica 0 with .ladder behind it)",
    )
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument("--json", action="store_true", help=_JSON)
    _set(parser)
    _trust(parser)


def train(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc train``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="theory, flow and training")
    parser.add_argument("--output", required=True, metavar="FLOW.safetensors", help="flow file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, cuda (a GPU for each rank), cuda:N, or auto (default: cpu)",
    )
    _set(parser)
    _trust(parser)


def pack(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc pack``."""
    parser.add_argument(
        "weights", metavar="WEIGHTS.safetensors", help="state_dict of a flow, or of prior and flow"
    )
    parser.add_argument(
        "config", metavar="CONFIG.toml", help="theory and flow, as for flowmc train"
    )
    parser.add_argument("--output", required=True, metavar="FLOW.safetensors", help="flow file")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    _set(parser)
    _trust(parser)


def evaluate(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc evaluate``."""
    parser.add_argument("flow", metavar="FLOW", help="a flow file, or zoo:NAME")
    parser.add_argument("--samples", type=int, default=8192, help="how many (default: 8192)")
    parser.add_argument("--batch", type=int, default=1024, help="samples at a time (default: 1024)")
    parser.add_argument("--config", metavar="CONFIG.toml", help="take [theory] from this file")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--json", action="store_true", help=_JSON)
    _set(parser)
    _trust(parser)


def correlate(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc correlate``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="ensemble, targets and derivatives")
    parser.add_argument("--output", metavar="DIR", help=_RESULTS)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure only what has not been measured yet; start if nothing has",
    )
    parser.add_argument("--json", action="store_true", help=_JSON)
    _set(parser)
    _trust(parser)


def free_energy(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc free-energy``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="theory, method and samples")
    parser.add_argument("--output", metavar="DIR", help=_RESULTS)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint; start if there is none",
    )
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument("--json", action="store_true", help=_JSON)
    _set(parser)
    _trust(parser)


def init(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc init``."""
    parser.add_argument(
        "case",
        metavar="CASE",
        nargs="?",
        help="what to begin with: production, ladder, hybrid or training; all are listed",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="a configuration file of any format, from which lattice, group, precision and, as far "
        "as it says them, action and couplings are taken; chains start from it",
    )
    parser.add_argument(
        "--flow", metavar="FLOW", help="of a hybrid: a flow file (default: one of the zoo)"
    )
    parser.add_argument(
        "--output", metavar="CONFIG.toml", help="file to write (default: CASE.toml)"
    )
    _set(parser)
    _trust(parser)


def status(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc status``."""
    parser.add_argument("directories", metavar="DIR", nargs="+", help="run directory")
    parser.add_argument("--json", action="store_true", help=f"{_JSON}, a list")


def report(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc report``."""
    parser.add_argument(
        "directories",
        metavar="DIR",
        nargs="+",
        help="run directory, or the flow file of a training; several runs are compared by their "
        "cost per independent sample",
    )
    parser.add_argument(
        "--from",
        dest="first",
        metavar="N",
        type=int,
        default=0,
        help="leave out the first N updates of production, as thermalisation (default: 0)",
    )
    parser.add_argument(
        "--page",
        metavar="FILE.html",
        help="write the page there: that of a run or training instead of beside it, that of a "
        "comparison only if asked for",
    )
    parser.add_argument("--json", action="store_true", help=f"{_JSON} and write no page")


def regenerate(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc regenerate``."""
    parser.add_argument(
        "file",
        metavar="FILE",
        help='file of seeds, or run directory with one ([ensemble] format = "seeds")',
    )
    parser.add_argument(
        "numbers",
        metavar="NUMBERS",
        nargs="*",
        help="configuration numbers: 400, 400-800, 400-800:20 (default: all)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default=".",
        help="directory of the files, which have the names that the run would have given them "
        "(default: here)",
    )
    parser.add_argument(
        "--format", metavar="F", default="hdf5", help="of the files (default: hdf5)"
    )
    parser.add_argument(
        "--precision", type=int, choices=(32, 64), help="of the files (default: that of the run)"
    )
    parser.add_argument(
        "--chain",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="only this chain; may be repeated",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare the checksums, and write no files"
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="directory that paths of flows refer to (default: where the run found them)",
    )
    parser.add_argument("--json", action="store_true", help=_JSON)
    _trust(parser)


def zoo(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc zoo``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="print the card of this flow")
    parser.add_argument("--json", action="store_true", help=_JSON)


def example(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc example``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="copy this one; all are listed")
    parser.add_argument(
        "--directory", metavar="DIR", default=".", help="where examples/ is made (default: here)"
    )


def completion(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc completion``."""
    parser.add_argument(
        "shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish"
    )


def schema(parser: ArgumentParser) -> None:
    """Declare the arguments of ``flowmc schema``."""
    parser.add_argument(
        "kind",
        metavar="KIND",
        nargs="?",
        help="run, train, correlate, combine (correlate with several ensembles) or free-energy: "
        "print its JSON schema, with the parts of installed packages; all are listed",
    )
    parser.add_argument(
        "--reference", action="store_true", help="print the reference of all keys, as Markdown"
    )


def _set(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="TABLE.KEY=VALUE",
        action="append",
        default=[],
        help="replace or add a value of the configuration, as in run.updates=100 or "
        "update[1].steps=20 (the first [[update]]); may be repeated",
    )


def _trust(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        metavar="MODULE",
        action="append",
        default=[],
        help="let files of others, flow files and run directories, name components of this module, "
        "which is then imported; may be repeated",
    )
