#!/bin/bash
# A run over CPU nodes that submits itself again until it has all its updates; from the directory
# of the repository:
#
#     qsub -v CONFIG=run.toml,OUTPUT=runs/b6.0 examples/cluster/pbs_cpu.sh
#
# PBS gives no warning before it kills; let run.toml stop the run in time, with a checkpoint:
# [run] time_limit = "23h50m".  See slurm_cpu.sh for what else to adapt.

#PBS -N flowmc
#PBS -l select=4:ncpus=128:mpiprocs=32:ompthreads=4
#PBS -l walltime=24:00:00
#PBS -j oe
# Not to be started again by PBS: the next job is submitted below.
#PBS -r n

set -u
cd "$PBS_O_WORKDIR" || exit 2
here=${FLOWMC_CLUSTER:-examples/cluster}

# module load openmpi
source "${FLOWMC_ENV:-$HOME/flowmc-env}/bin/activate"
source "$here/resubmit.sh"

before=$(progress "$OUTPUT")
# Open MPI and MPICH find the nodes of the job by themselves.
mpirun -n "$(wc -l <"$PBS_NODEFILE")" flowmc run "$CONFIG" --output "$OUTPUT" --resume
submit_again "$OUTPUT" "$before" qsub -v "CONFIG=$CONFIG,OUTPUT=$OUTPUT" "$here/pbs_cpu.sh"
