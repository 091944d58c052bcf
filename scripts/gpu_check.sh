#!/usr/bin/env bash
# Verification on a GPU, in stages of a few minutes: bash scripts/gpu_check.sh [suite|parity|small|wide|epoch]... (all)
#
# Needs a python3 with cupy, numpy, h5py, tqdm, pytest and hypothesis; nvmath, without which steps run eagerly; torch and
# jax for the comparisons. Missing packages can be installed from a folder of wheels: --wheels DIR, as the first option.
# Every figure is written to scripts/results/ as it is measured, and not measured again for the same commit, so an
# interrupted run is resumed by the same command. --rehearse runs everything on NumPy, in small.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"

if [ "${1:-}" = --wheels ]; then
    compgen -G "${2:-}/*.whl" > /dev/null || { echo "gpu_check.sh: --wheels needs a folder of wheels" >&2; exit 2; }
    "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$root/.wheels" "$2"/*.whl
    shift 2
fi
export PYTHONPATH="$root:$root/.wheels${PYTHONPATH:+:$PYTHONPATH}"

lacking() {
    "$python" -c 'import sys; from importlib.util import find_spec as f
print(*(n for n in sys.argv[1:] if not f(n)))' "$@"
}
needed=(numpy h5py tqdm)
case " $* " in
    *" --rehearse "*) ;;
    *) needed+=(cupy pytest hypothesis) ;;
esac
missing="$(lacking "${needed[@]}")"
[ -z "$missing" ] || { echo "gpu_check.sh: $python lacks $missing: install them, or give --wheels DIR" >&2; exit 1; }
for name in $(lacking nvmath torch jax); do
    case "$name" in
        nvmath) echo "gpu_check.sh: no nvmath-python: steps run eagerly, not as CUDA graphs" >&2 ;;
        *) echo "gpu_check.sh: no $name: the comparison with it is left out" >&2 ;;
    esac
done
exec "$python" "$root/scripts/gpu_check.py" "$@"
