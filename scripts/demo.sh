#!/usr/bin/env bash
# Installs into .venv, writes scikit-learn's digits to an HDF5 file, trains on it, and prints the model's accuracy.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare demo

runs="$root/runs"
"$python" "$root/scripts/make_dataset.py" "$runs/digits.h5"
echo "$ dnn train $runs/digits.h5 --hidden 64,32 --epochs 30 --batch-size 32 --seed 1 --out $runs/digits --force" >&2
exec "$python" -m dnn train "$runs/digits.h5" --hidden 64,32 --epochs 30 --batch-size 32 --seed 1 \
    --out "$runs/digits" --force
