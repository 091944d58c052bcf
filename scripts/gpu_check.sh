#!/usr/bin/env bash
# The proof on a GPU, in stages of some minutes: bash scripts/gpu_check.sh [suite|parity|small|wide|epoch]... (all)
#
# Works with what a GPU machine has: a python3 with cupy, numpy, h5py, tqdm and pytest, and torch and jax for the
# comparisons. What is missing can come from a folder of wheels: --wheels DIR. Results go to scripts/results/, stage by
# stage; a stage that has its result for this commit is not run again.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"

if [ "${1:-}" = --wheels ]; then
    [ -d "${2:-}" ] || { echo "gpu_check.sh: --wheels needs a folder of wheels" >&2; exit 2; }
    "$python" -m pip install --quiet --no-index --no-deps --target "$root/.wheels" "$2"/*.whl
    shift 2
fi
export PYTHONPATH="$root:$root/.wheels${PYTHONPATH:+:$PYTHONPATH}"
missing="$("$python" -c 'from importlib.util import find_spec as f
print(*(n for n in ("cupy", "numpy", "h5py", "tqdm", "pytest", "hypothesis") if not f(n)))')"
[ -z "$missing" ] || { echo "gpu_check.sh: $python lacks $missing: install them, or give --wheels DIR" >&2; exit 1; }
exec "$python" "$root/scripts/gpu_check.py" "$@"
