#!/usr/bin/env bash
# Verification on a GPU, in parts of four minutes at most:
#
#     bash scripts/gpu_check.sh [suite|parity|nodes|small|wide|epoch|compiled]... [--minutes 9] [--results DIR]
#
# All stages by default. Needs a python3 (PYTHON) of version 3.11 or newer with the packages named below and CUDA's
# libraries; torch and jax for the comparisons. Missing packages can be installed from a folder of wheels, which
# gpu_wheels.sh gathers: --wheels DIR, as the first option.
#
# Every figure is written to scripts/results/ as it is measured, and not measured again for the same commit, so a run that
# was interrupted, or that ran out of its minutes, is resumed by the same command. It fails where a part fails or was
# skipped, where cuBLAS does not load, where no step is captured and where no derived kernel runs. --rehearse runs
# everything on NumPy, in small.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"

fail() {
    echo "gpu_check.sh: $1" >&2
    exit "${2:-1}"
}

if [ "${1:-}" = --wheels ]; then
    compgen -G "${2:-}/*.whl" > /dev/null || fail "--wheels needs a folder of wheels" 2
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$root/.wheels" "$2"/*.whl ||
        fail "the wheels of $2 cannot be installed: see the lines above"
    shift 2
fi
export PYTHONPATH="$root:$root/.wheels${PYTHONPATH:+:$PYTHONPATH}"

lacking() {
    "$python" -c 'import sys
from importlib.util import find_spec

def there(name):
    try:
        return find_spec(name)
    except ModuleNotFoundError:  # of the package around it
        return None

print(*(name for name in sys.argv[1:] if not there(name)))' "$@"
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11: set PYTHON"
needed=(numpy h5py tqdm threadpoolctl)
processes=20
case " $* " in
    *" --rehearse "*) processes=1 ;;
    *) needed+=(cupy cuda.pathfinder llvmlite ml_dtypes pytest hypothesis) ;;
esac
missing="$(lacking "${needed[@]}")"
[ -z "$missing" ] || fail "$python lacks $missing: install them, or give --wheels DIR"
for name in $(lacking torch jax); do
    echo "gpu_check.sh: no $name: the comparison with it is left out" >&2
done
[ -z "$(lacking xdist)" ] || echo "gpu_check.sh: no pytest-xdist: the suite runs on one core" >&2

# An error on the device can end the process, or leave it without the device: another goes on with the part after.
GPU_CHECK_BEGAN="$(date +%s)"
export GPU_CHECK_BEGAN
for _ in $(seq "$processes"); do
    status=0
    "$python" "$root/scripts/gpu_check.py" "$@" || status=$?
    case "$status" in
        75 | 13[4569]) echo "gpu_check.sh: ended with status $status: going on in another process" >&2 ;;
        *) exit "$status" ;;
    esac
done
fail "it does not get to an end: the last process ended with status $status"
