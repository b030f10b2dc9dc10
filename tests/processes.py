"""Processes that begin with torch and the package imported.

Importing them takes seconds of processor time, far more than most programs of the tests do.  A
server that has done it once forks them.  What is about imports, memory, threads or the environment
of the interpreter must be an own process.  All forked ones have the same hashes of strings: where
an order of hashes might matter, as between ranks, one member of a family is not forked.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(**more):
    """Return an environment in which a process finds the package and works with one thread."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    # A test run that is itself a rank must not confuse its ranks.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "HYDRA_"))}
    # Ranks of MPICH that wait for each other sleep, as there are more of them than cores.
    mpich = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    return own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | mpich | more


@functools.cache
def _server():
    """Start the server; return the folder where it listens.  It ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="fork")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py")), folder.name],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    atexit.register(process.communicate)
    return folder


def forked(*words):
    """Return the command line of a Python program, or of ``-m`` or ``-c`` and what follows them."""
    client = Path(__file__).with_name("fork_client.py")
    return [sys.executable, "-I", "-S", str(client), _server().name, *map(str, words)]


def flowmc(*arguments):
    """Return the command line of ``flowmc`` with these arguments."""
    return forked("-m", "flowmc.cli", *arguments)
