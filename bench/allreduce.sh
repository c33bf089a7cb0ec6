#!/usr/bin/env bash
# All-reduce of fewsync, NCCL and torch's symmetric memory on this machine, in one table with ratios:
#   bench/allreduce.sh OUTDIR [SIZES [TP [DTYPE]]]
# FEWSYNC names the binary (default: the one on the path), PYTHON an interpreter with torch. What is not there is left out.
set -euo pipefail
out=${1:?usage: bench/allreduce.sh OUTDIR [SIZES [TP [DTYPE]]]}
sizes=${2:-1KiB..64MiB} tp=${3:-2} dtype=${4:-bf16}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
rm -f "$out"/torch.csv "$out"/allreduce.csv

join=()
if "${PYTHON:-python3}" -c 'import torch.distributed._symmetric_memory' 2>/dev/null; then
    "${PYTHON:-python3}" "$here/peers/torch_symmetric_memory.py" \
        --sizes "$sizes" --tp "$tp" --dtype "$dtype" --csv "$out/torch.csv" 2>"$out/torch.log" &&
        join=(--join "$out/torch.csv") || echo "torch: not measured, since $(tail -n 1 "$out/torch.log")" >&2
else
    echo "torch: not measured, since ${PYTHON:-python3} has none with symmetric memory" >&2
fi
"${FEWSYNC:-fewsync}" bench allreduce --sizes "$sizes" --tp "$tp" --dtype "$dtype" "${join[@]}" \
    --csv "$out/allreduce.csv" --plot "$out/allreduce.svg" | tee "$out/allreduce.txt"
