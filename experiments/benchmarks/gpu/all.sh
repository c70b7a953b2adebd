#!/usr/bin/env bash
# Makes the table of training steps on one GPU inside 8 minutes: experiments/benchmarks/gpu/all.sh [FOLDER] [--tiny]
# Each row is written to FOLDER/rows.jsonl (runs/gpu) as it is made; a row that ends the process does not end the table. Without a GPU it says so
# and ends with code 2; --tiny tries the parts with tiny shapes on any device.
set -u
cd "$(dirname "$0")/../../.."
folder=runs/gpu
if [ $# -gt 0 ] && [ "$1" != --tiny ]; then folder=$1; shift; fi
mkdir -p "$folder"
end=$(($(date +%s) + ${GPU_TABLE_SECONDS:-480}))
export XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_ENABLE_COMPILATION_CACHE=false # so that compile times are those of the compiler
for _ in 1 2 3 4 5 6; do # starts: the first makes all rows unless one ends the process
    left=$((end - $(date +%s)))
    [ "$left" -gt 5 ] || break
    timeout "$left" python -m experiments.benchmarks.gpu.run --output "$folder/rows.jsonl" --until "$end" "$@" | tee "$folder/table.txt"
    code=${PIPESTATUS[0]}
    case $code in 0 | 2 | 3 | 124) exit "$code" ;; esac
done
exit 3
