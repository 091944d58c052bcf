#!/usr/bin/env bash
# Installs into .venv, writes scikit-learn's digits to an HDF5 file, trains on it, and prints the model's accuracy and
# three commands to try next.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare demo

runs="$root/runs"
"$python" "$root/scripts/make_dataset.py" "$runs/digits.h5"
echo "$ dnn train $runs/digits.h5 --hidden 64,32 --epochs 30 --batch-size 32 --seed 1 --out $runs/digits --force" >&2
"$python" -m dnn train "$runs/digits.h5" --hidden 64,32 --epochs 30 --batch-size 32 --seed 1 \
    --out "$runs/digits" --force

# as they stand, in any folder and any shell
printf -v dnn '%q -m dnn' "$python"
printf -v data '%q' "$runs/digits.h5"
printf -v model '%q' "$runs/digits/model.h5"
printf -v wide '%q' "$runs/wide"
echo "try next:"
echo "$dnn predict $model $data | head"
echo "$dnn train $data --hidden 256,128 --validation-split 0.1 --out $wide --force"
echo "$dnn doctor"
