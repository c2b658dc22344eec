#!/usr/bin/env bash
# One process of a run over several machines, which takes all GPUs of its own; to be started on each, with its number:
#     launch/several_machines.sh host0:1234 2 0 --config configs/lora_16k.py --workdir /shared/runs/mine    # on host0
#     launch/several_machines.sh host0:1234 2 1 --config configs/lora_16k.py --workdir /shared/runs/mine    # on the other
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 HOST0:PORT PROCESSES NUMBER_OF_THIS_ONE FLAGS_OF_TRAIN_PY" >&2
    exit 2
fi
export JAX_COORDINATOR_ADDRESS=$1 JAX_NUM_PROCESSES=$2 JAX_PROCESS_ID=$3
shift 3
exec "${PYTHON:-.venv/bin/python}" train.py "$@"
