"""The batch scripts under a real SLURM: controller, node and authentication of this test's own."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.processes import ROOT, environment
from tests.run.small_runs import config, digests, write

CLUSTER = ROOT / "examples" / "cluster"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {', '.join(MISSING)} here: apt-get install slurm-wlm munge"
    ),
    pytest.mark.skipif(
        hasattr(os, "geteuid") and os.geteuid() != 0, reason="the daemons of SLURM run as root"
    ),
]

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={here}/munge.socket
CredType=cred/munge
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return the environment of a SLURM of one node with four processors."""
    here = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (here / name).mkdir()
    key = here / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    text = CONFIGURATION.format(here=here, host=host, ports=free_ports(2))
    (here / "slurm.conf").write_text(text)
    surroundings = environment(SLURM_CONF=str(here / "slurm.conf"))
    surroundings["PATH"] = f"{os.path.dirname(sys.executable)}:{PATH}"
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    files["seed-file"] = "seed"
    munge = [f"--{option}={here}/munge.{name}" for option, name in files.items()]
    processes = []
    try:
        for command in (
            ["munged", "--foreground", "--force", "--num-threads=2", *munge],
            ["slurmctld", "-D"],
            ["slurmd", "-D"],
        ):
            with (here / f"{command[0]}.out").open("w") as out:
                processes.append(
                    subprocess.Popen(command, env=surroundings, stdout=out, stderr=out, cwd=here)
                )
            time.sleep(2)
        until = time.monotonic() + 60
        while "idle" not in ask(surroundings, "sinfo", "-h", "-o", "%T"):
            if time.monotonic() > until:
                text = "\n".join(log.read_text()[-2000:] for log in here.glob("*.log"))
                pytest.fail(f"the node does not come up:\n{text}")
            time.sleep(0.5)
        yield surroundings
    finally:
        # Jobs of a test that failed would outlive their SLURM.
        ask(surroundings, "scancel", "--user=root")
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def ask(surroundings, *command):
    return subprocess.run(
        command, env=surroundings, capture_output=True, text=True, timeout=60
    ).stdout


def wait_for_all_jobs(surroundings, seconds=600):
    until = time.monotonic() + seconds
    while jobs := ask(surroundings, "squeue", "-h", "-o", "%i %T"):
        assert time.monotonic() < until, jobs
        time.sleep(0.5)


@pytest.fixture
def site(slurm, tmp_path):
    """The scripts with heads for this small cluster; nothing below their heads is touched."""
    bin_directory = tmp_path / "env" / "bin"
    bin_directory.mkdir(parents=True)
    (bin_directory / "activate").write_text(f"export PATH={shlex.quote(str(bin_directory))}:$PATH")
    flowmc = bin_directory / "flowmc"
    flowmc.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flowmc.cli "$@"\n')
    flowmc.chmod(0o755)
    scripts = tmp_path / "cluster"
    shutil.copytree(CLUSTER, scripts)
    script = scripts / "slurm_cpu.sh"
    text = script.read_text()
    for option, value in {
        "nodes": "1",
        "ntasks-per-node": "2",
        "cpus-per-task": "1",
        "time": "10",
    }.items():
        text, count = re.subn(rf"(#SBATCH --{option}=)\S+", rf"\g<1>{value}", text)
        assert count == 1
    script.write_text(text)
    return slurm | {"FLOWMC_ENV": str(tmp_path / "env"), "FLOWMC_CLUSTER": str(scripts)}


def submit(site, tmp_path, *words):
    ask(site, "sbatch", f"--chdir={tmp_path}", *words)


def output_of(tmp_path):
    return "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.out")))


TABLES = config(chains={"count": 4, "block": 2}, run={"updates": 4000, "checkpoint_every": "1s"})


def test_stopped_by_slurm_and_submitted_again_to_the_same_bytes(site, tmp_path):
    write(tmp_path / "a.toml", TABLES)
    alone = [sys.executable, "-m", "flowmc.cli", "run", "a.toml", "--output", "alone"]
    subprocess.run(alone, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    site = site | {"FLOWMC_SRUN_MPI": "pmi2"}
    script = f"{site['FLOWMC_CLUSTER']}/slurm_cpu.sh"
    submit(site, tmp_path, script, "a.toml", "out")
    until = time.monotonic() + 300
    while not (tmp_path / "out" / "checkpoint.h5").exists():
        assert time.monotonic() < until, output_of(tmp_path)
        time.sleep(0.1)
    # What "--signal=TERM@180" does, without three minutes of waiting.
    (job,) = ask(site, "squeue", "-h", "-o", "%i").split()
    ask(site, "scancel", "--signal=TERM", job)
    wait_for_all_jobs(site)
    said = output_of(tmp_path)
    assert "(SIGTERM); continue with" in said, said
    assert "finished" in said and len(list(tmp_path.glob("*.out"))) == 2, said
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_tasks_that_do_not_know_each_other(site, tmp_path):
    """``--mpi=none``: one sentence, and nothing is begun or submitted again."""
    write(tmp_path / "a.toml", TABLES)
    site = site | {"FLOWMC_SRUN_MPI": "none"}
    submit(site, tmp_path, f"{site['FLOWMC_CLUSTER']}/slurm_cpu.sh", "a.toml", "out")
    wait_for_all_jobs(site)
    said = output_of(tmp_path)
    assert said.count("without telling MPI of each other (--mpi=none)") == 1, said
    assert said.count("use srun --mpi=pmi2 for MPICH") == 1
    assert "no progress in this job" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_script_that_calls_flowmc_itself_is_one_process(site, tmp_path):
    write(tmp_path / "a.toml", config(run={"updates": 5, "thermalization": 0}))
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n{tmp_path}/env/bin/flowmc run a.toml --output out\n"
        f"{tmp_path}/env/bin/flowmc status out\n"
        f"srun -n 1 {tmp_path}/env/bin/flowmc run a.toml --output one\n"
    )
    submit(site, tmp_path, "--ntasks=2", "--output=job.out", str(script))
    wait_for_all_jobs(site)
    said = output_of(tmp_path)
    assert said.count("finished 5 updates") == 2 and "5 of 5 updates (100%), finished" in said, said


def test_a_training_is_submitted_until_its_flow_is_there(site, tmp_path):
    """Its time limit stops it twice and is lifted then: the machine may be as slow as it likes."""
    config = tmp_path / "t.toml"
    table = (
        '[theory]\naction = "phi4"\nlattice = [4, 4]\nm2 = -0.5\nlambda = 1.0\n'
        '[flow]\nname = "affine_coupling"\nlayers = 2\nhidden = [2]\n'
        '[prior]\nname = "gaussian"\n'
        "[training]\nsteps = 2000\nbatch = 8\nevaluate_samples = 64\n"
    )
    config.write_text(table + 'time_limit = "1s"\n')
    script = tmp_path / "train.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --output=%j.out\n#SBATCH --ntasks=2\n"
        f"srun --kill-on-bad-exit=1 --mpi=pmi2 -n 2 {tmp_path}/env/bin/flowmc train t.toml "
        "--output f.safetensors --resume\n"
        f"[ $? -ge 124 ] && sbatch --chdir={tmp_path} {script}\n"
    )
    script.chmod(0o755)
    submit(site, tmp_path, str(script))
    stopped = "stopped with a checkpoint (time limit)"
    for done in (
        lambda: output_of(tmp_path).count(stopped) >= 2,
        lambda: (tmp_path / "f.safetensors").exists(),
    ):
        until = time.monotonic() + 600
        while not done():
            assert time.monotonic() < until, output_of(tmp_path)
            time.sleep(0.5)
        config.write_text(table)
    wait_for_all_jobs(site)
    said = output_of(tmp_path)
    assert said.count(stopped) >= 2 and "Traceback" not in said, said
