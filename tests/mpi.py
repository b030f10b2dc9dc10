"""Starts programs under a real ``mpirun``."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

needs_mpi = pytest.mark.skipif(
    MPIRUN is None, reason="no mpirun here: pip install 'flowmc-lattice[test]'"
)


def environment(**more):
    """Return an environment in which ranks find the package and work with one thread each."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    # A test run that is itself a rank must not confuse its ranks.
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "HYDRA_"))}
    return own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | more


def command(ranks, program, *arguments):
    """Return the command line that runs a Python program on so many ranks."""
    return [MPIRUN, "-n", str(ranks), sys.executable, str(program), *map(str, arguments)]


def launch(ranks, program, *arguments, timeout=300, **more):
    """Run a Python program on so many ranks; return the finished process."""
    return subprocess.run(
        command(ranks, program, *arguments),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
