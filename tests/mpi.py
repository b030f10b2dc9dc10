"""Starts programs under a real ``mpirun``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import environment, forked

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

needs_mpi = pytest.mark.skipif(
    MPIRUN is None, reason="no mpirun here: pip install 'flowmc-lattice[test]'"
)


def command(ranks, program, *arguments):
    """Return the command line that runs a Python program on so many ranks."""
    return [MPIRUN, "-n", str(ranks), *forked(program, *arguments)]


def launch(ranks, program, *arguments, timeout=300, **more):
    """Run a Python program on so many ranks; return the finished process."""
    return finished([*command(ranks, program, *arguments)], timeout, **more)


def launch_fresh(ranks, program, *arguments, timeout=300, **more):
    """The same with an interpreter of its own for each rank."""
    words = [MPIRUN, "-n", str(ranks), sys.executable, str(program), *map(str, arguments)]
    return finished(words, timeout, **more)


def finished(words, timeout, **more):
    """Run a command line and return the finished process."""
    return subprocess.run(
        words, env=environment(**more), capture_output=True, text=True, timeout=timeout
    )
