"""Which processes a launcher has started, what goes together with which MPI, and who says so."""

import os
import subprocess

import pytest

from flowmc.cli import main
from flowmc.launcher import first_speaks, has_told_mpi, launched_processes
from flowmc.parallel.world import world
from tests.mpi import launch, needs_mpi
from tests.processes import environment, flowmc
from tests.run.small_runs import config, write

# As SLURM 22 sets them: a batch script in an allocation of many tasks, a task of srun --mpi=none,
# one of srun --mpi=pmi2, and a process of an mpirun that srun has helped to start.
BATCH = {"SLURM_JOB_ID": "2", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8"}
BATCH |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = BATCH | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
TASK |= {"SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "8"}
SINGLE = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
PMI2 = TASK | {"PMI_SIZE": "8", "PMI_RANK": "1", "PMI_FD": "13"}
PMIX = TASK | {"PMIX_RANK": "1"}
HYDRA = SINGLE | {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1"}


@pytest.fixture
def surroundings(monkeypatch):
    """Give a process the environment of a launcher; none of it is left from the one before."""

    def set_to(values):
        for name in list(os.environ):
            if name.startswith(("SLURM_", "PMI", "OMPI_", "MV2_", "PALS_", "MPI_LOCAL")):
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        world.cache_clear()

    monkeypatch.setattr("flowmc.launcher._LAST_WORDS", 0.0)
    yield set_to
    world.cache_clear()


@pytest.mark.parametrize(
    ("values", "processes", "told", "silent"),
    [
        ({}, None, False, False),
        (BATCH, None, False, False),
        (SINGLE, None, False, False),
        (TASK, 8, False, True),
        (TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 8, False, False),
        # The first of another machine.
        (TASK | {"SLURM_PROCID": "4", "SLURM_LOCALID": "0"}, 8, False, False),
        (PMI2, 8, True, True),
        (PMIX, 8, True, True),
        (HYDRA, 4, True, True),
        (HYDRA | {"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, 4, True, False),
        ({"PMIX_RANK": "0"}, 0, True, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 2, True, False),
    ],
)
def test_what_a_launcher_has_told(values, processes, told, silent, surroundings):
    surroundings(values)
    assert (launched_processes(), has_told_mpi()) == (processes, told)
    assert first_speaks() == silent


@pytest.mark.parametrize("command", ["run", "status"])
def test_tasks_that_do_not_know_each_other_are_refused_once(
    command, surroundings, tmp_path, capsys
):
    words = {"run": ["run", write(tmp_path / "a.toml", config()), "--output", str(tmp_path / "o")]}
    words["status"] = ["status", str(tmp_path)]
    for rank in (0, 1):
        surroundings(TASK | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        try:
            assert main(words[command]) == 2
        except SystemExit as end:
            assert end.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "works in one process" in said or "--mpi=pmi2 for MPICH" in said
    assert not (tmp_path / "o").exists()


@needs_mpi
def test_an_mpich_without_pmix_is_not_started(tmp_path):
    """It would end the process in words of its own."""
    arguments = ["run", write(tmp_path / "a.toml", config()), "--output", str(tmp_path / "o")]
    done = subprocess.run(
        flowmc(*arguments),
        env=environment(PMIX_RANK="0", PMIX_NAMESPACE="x"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "cannot be imported" in done.stderr:
        pytest.skip("mpi4py finds no MPI library outside mpirun here")
    assert done.returncode == 2
    assert "built without it: use srun --mpi=pmi2 for MPICH" in done.stderr
    assert done.stderr.count("\n") == 1


@needs_mpi
def test_ranks_without_mpi4py_say_so_once(tmp_path):
    """With a package mpi4py that cannot be imported in front of the real one."""
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise RuntimeError('no MPI\\nhere')\n")
    arguments = ["run", write(tmp_path / "a.toml", config()), "--output", str(tmp_path / "o")]
    program = tmp_path / "program.py"  # beside the package, so that it finds that one first
    program.write_text("import sys; from flowmc.cli import main; sys.exit(main())")
    done = launch(4, program, *arguments, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("mpi4py cannot be imported") == 1
    assert "Traceback" not in done.stderr
