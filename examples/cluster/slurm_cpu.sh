#!/bin/bash
# A run over CPU nodes that submits itself again until it has all its updates; from the directory
# of the repository:
#
#     sbatch examples/cluster/slurm_cpu.sh run.toml runs/b6.0
#
# chains.count is the total over all ranks; choose chains.block such that there are at least as many
# blocks as ranks (the first lines of the output say so if not).  Adapt to your site: account,
# partition, modules, where the virtual environment is, and how srun tells the tasks of each other,
# unless it does so by itself: "export FLOWMC_SRUN_MPI=pmi2" for MPICH, Intel MPI and MVAPICH,
# "cray_shasta" for Cray MPICH, "pmix" for Open MPI (srun --mpi=list says what there is).

#SBATCH --job-name=flowmc
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --output=%x.%j.out
# SIGTERM to every rank three minutes before the end: a checkpoint, and all ranks stop.
#SBATCH --signal=TERM@180
# A job that SLURM starts again by itself would meet the one that is submitted below.
#SBATCH --no-requeue

set -u
config=$1 output=$2
here=${FLOWMC_CLUSTER:-examples/cluster}

# module load openmpi
source "${FLOWMC_ENV:-$HOME/flowmc-env}/bin/activate"
source "$here/resubmit.sh"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

before=$(progress "$output")
# A rank that dies ends the job step at once.
srun ${FLOWMC_SRUN_MPI:+--mpi="$FLOWMC_SRUN_MPI"} \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    flowmc run "$config" --output "$output" --resume
submit_again "$output" "$before" sbatch "$here/slurm_cpu.sh" "$config" "$output"
