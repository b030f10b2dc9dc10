"""The batch scripts, with stand-ins for the commands of SLURM and PBS."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.mpi import MPIRUN, needs_mpi
from tests.processes import ROOT, environment, flowmc, forked
from tests.run.small_runs import config, digests, write

CLUSTER = ROOT / "examples" / "cluster"
SCRIPTS = ["slurm_cpu.sh", "slurm_gpu.sh", "pbs_cpu.sh"]
# They differ in their heads and in how they start processes: one goes the whole way every time.
MOSTLY_SLOW = [SCRIPTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])]
TABLES = config(run={"updates": 20, "checkpoint_every": 5})


def executable(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def site(tmp_path):
    """A virtual environment and a batch system that only writes down what is submitted."""
    bin_directory = tmp_path / "env" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "activate").write_text("")
    # Each job gets a little farther than the last, as if it were stopped by the batch system.
    stopping = shlex.join(forked(Path(__file__).with_name("stopping.py")))
    executable(bin_directory / "flowmc", f'exec {stopping} "$@"')
    executable(bin_directory / "srun", f'[[ $1 == --mpi=pmi2 ]] && exec {MPIRUN} -n 2 "${{@:4}}"')
    executable(bin_directory / "mpirun", f'exec {MPIRUN} "$@"')
    for name in ("sbatch", "qsub"):
        executable(bin_directory / name, f'echo {name} "$@" >> {tmp_path}/submitted')
    (tmp_path / "nodes").write_text("localhost\nlocalhost\n")
    return environment(
        PATH=f"{bin_directory}:{os.environ['PATH']}",
        FLOWMC_ENV=str(tmp_path / "env"),
        FLOWMC_CLUSTER=str(CLUSTER),
        FLOWMC_SRUN_MPI="pmi2",
        SLURM_CPUS_PER_TASK="1",
        PBS_O_WORKDIR=str(tmp_path),
        PBS_NODEFILE=str(tmp_path / "nodes"),
        CONFIG="a.toml",
        OUTPUT="out",
    )


def run_job(script, site, tmp_path):
    """Run a job; return its process and what it has submitted."""
    submitted = tmp_path / "submitted"
    submitted.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(CLUSTER / script), "a.toml", "out"],
        cwd=tmp_path,
        env=site,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done, submitted.read_text().splitlines() if submitted.exists() else []


@needs_mpi
@pytest.mark.parametrize("script", MOSTLY_SLOW)
def test_submitted_until_all_updates_are_done(script, site, tmp_path):
    write(tmp_path / "a.toml", TABLES)
    jobs = 0
    while True:
        done, submitted = run_job(script, site, tmp_path)
        jobs += 1
        assert done.returncode == 0, done.stderr
        if not submitted:
            break
        assert len(submitted) == 1 and script in submitted[0]
        assert "a.toml" in submitted[0] and "out" in submitted[0]
        assert jobs < 6
    assert jobs == 2
    assert "25 of 25 updates (100%), finished" in done.stdout
    command = flowmc("run", "a.toml", "--output", "alone")
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


@needs_mpi
@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_one_job_is_enough_for_a_short_run(script, site, tmp_path):
    write(tmp_path / "a.toml", config(run={"updates": 5, "thermalization": 0}))
    done, submitted = run_job(script, site, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not submitted
    assert "5 of 5 updates (100%), finished" in done.stdout


@needs_mpi
@pytest.mark.parametrize("script", MOSTLY_SLOW)
def test_a_job_that_fails_is_not_submitted_again(script, site, tmp_path):
    write(tmp_path / "a.toml", TABLES | {"theory": {"action": "phi5"}})
    done, submitted = run_job(script, site, tmp_path)
    assert done.returncode != 0
    assert submitted == []
    assert "phi5" in done.stderr and "no progress" in done.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, "resubmit.sh"])
def test_scripts_are_sound_bash(script):
    assert subprocess.run(["bash", "-n", str(CLUSTER / script)]).returncode == 0
