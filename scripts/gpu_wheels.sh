#!/usr/bin/env bash
# Gathers the wheels that gpu_check.sh needs on a machine without a network:
#
#     bash scripts/gpu_wheels.sh DIR [PACKAGE]...
#
# DIR is made, or must hold no wheels. For Python 3.12 (PYTHON_VERSION) on Linux, x86-64. By default all packages but
# CuPy with what it brings, NumPy and CUDA's libraries, which such a machine has, and PyTorch and JAX. It fails where the
# wheels exceed 60 MB. llvmlite's, four fifths of all, is compressed anew for that, by LZMA: 41 instead of 60 MB.
set -euo pipefail
python="${PYTHON:-python3}"
version="${PYTHON_VERSION:-3.12}"
most=60000000

fail() {
    echo "gpu_wheels.sh: $1" >&2
    exit "${2:-1}"
}

case "${1:-}" in
    '' | -*) fail "usage: gpu_wheels.sh DIR [PACKAGE]..." 2 ;;
esac
folder="$1"
shift
mkdir -p "$folder"
! compgen -G "$folder/*.whl" > /dev/null || fail "$folder holds wheels already: give another folder, or empty it" 2

packages=(llvmlite h5py tqdm threadpoolctl ml_dtypes cuda-pathfinder)
packages+=(pytest iniconfig packaging pluggy pygments pytest-xdist execnet hypothesis sortedcontainers)
[ $# -eq 0 ] || packages=("$@")

# pip takes each of these names for itself, not for the older ones too
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
    "${platforms[@]}" --dest "$folder" "${packages[@]}" || fail "not all wheels are to be had: see the lines above"

for wheel in "$folder"/llvmlite-*.whl; do
    [ ! -e "$wheel" ] || "$python" - "$wheel" << 'END'
import os, sys
from zipfile import ZIP_LZMA, ZipFile

wheel = sys.argv[1]
with ZipFile(wheel) as given, ZipFile(f"{wheel}.part", "w") as smaller:
    for entry in given.infolist():
        smaller.writestr(entry, given.read(entry), ZIP_LZMA)
os.replace(f"{wheel}.part", wheel)
END
done

total=0
for wheel in "$folder"/*.whl; do
    size="$(wc -c < "$wheel")"
    total=$((total + size))
    printf '%9d  %s\n' "$size" "${wheel##*/}"
done
printf '%9d  bytes in all\n' "$total"
[ "$total" -le "$most" ] || fail "more than $most bytes: name the packages that the machine lacks"
