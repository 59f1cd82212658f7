#!/bin/bash
# Trains on a Slurm cluster as the paper did: 20 nodes of 8 GPUs, jobs of at most 3 days.
#
#     sbatch recipes/slurm/pretrain-20x8.sh RECIPE SHARDS RUN [--set a.b=c ...]
#
# Shards and run folder lie where all nodes see them. Jobs run one after another and each goes on where the last one
# stopped; those left over when the run is finished end at once. Other sizes: sbatch --nodes=2 --gpus-per-node=4 ...
# PYTHON names the interpreter where it is not the environment's own.
#SBATCH --job-name=mobillama
#SBATCH --nodes=20
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=3-00:00:00
#SBATCH --array=1-4%1
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=TERM@600
#SBATCH --open-mode=append
#SBATCH --output=mobillama-%A.log
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: sbatch $0 RECIPE SHARDS RUN [--set a.b=c ...]" >&2
    exit 2
fi
recipe=$1 shards=$2 run=$3
shift 3

# The first node keeps the list of who takes part. If another is lost for good, the rest goes on from the newest
# checkpoint, down to half of the nodes (--no-kill above lets it); if the first is lost, Slurm starts the job again.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}
most=$SLURM_JOB_NUM_NODES
least=$(((most + 1) / 2))
port=$((29500 + SLURM_JOB_ID % 1000))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# --signal above asks for a stop 10 minutes before the time is over: the step that runs is finished and saved.
srun --no-kill --kill-on-bad-exit=0 "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$least:$most" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts 3 --shutdown-timeout 500 \
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$SLURM_JOB_ID" \
    -m mobillama.cli train "$recipe" --data "$shards" --out "$run" "$@"
