#!/bin/bash
# A run with one rank per GPU that submits itself again until it has all its updates:
#
#     sbatch examples/cluster/slurm_gpu.sh run.toml runs/b6.0
#
# All GPUs of a node are visible to all its ranks; a rank takes the one of its rank on the node.
# With an MPI that takes pointers to GPU memory nothing is staged through the host.  See slurm_cpu.sh
# for what else to adapt.

#SBATCH --job-name=flowmc
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x.%j.out
#SBATCH --signal=TERM@180
#SBATCH --no-requeue

set -u
config=$1 output=$2
here=${FLOWMC_CLUSTER:-examples/cluster}

# module load openmpi cuda
source "${FLOWMC_ENV:-$HOME/flowmc-env}/bin/activate"
source "$here/resubmit.sh"
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# Cray MPICH takes GPU pointers only if asked to:
# export MPICH_GPU_SUPPORT_ENABLED=1

before=$(progress "$output")
srun ${FLOWMC_SRUN_MPI:+--mpi="$FLOWMC_SRUN_MPI"} \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    flowmc run "$config" --output "$output" --resume
submit_again "$output" "$before" sbatch "$here/slurm_gpu.sh" "$config" "$output"
