# Sourced by the scripts beside it: `prepare EXTRA...` makes the private environment .venv in the project's folder, or
# takes the one that is there, with these extras of pyproject.toml, and sets `python`. From any working directory.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

prepare() {
    # what was installed holds for this folder and this pyproject.toml
    local state missing=() base extra
    state="$root $(cksum < "$root/pyproject.toml")"
    if [ -e "$venv" ] && [ ! -e "$venv/made-by-dnn" ]; then
        fail "$venv is there and is not one that these scripts made: move it away"
    fi
    if [ "$(cat "$venv/installed-for" 2> /dev/null)" = "$state" ] && "$python" -c '' 2> /dev/null; then
        for extra in "$@"; do
            [ -e "$venv/installed-$extra" ] || missing+=("$extra")
        done
        [ ${#missing[@]} -eq 0 ] && return
    else
        missing=("$@")
        base="$(find_python)" || fail "needs Python 3.11 or newer: install it, or name one: PYTHON=/path/to/python3"
        "$base" -c 'import venv, ensurepip' 2> /dev/null ||
            fail "$base has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or set PYTHON"
        rm -rf "$venv"
        mkdir "$venv" && touch "$venv/made-by-dnn"
        "$base" -m venv "$venv" > /dev/null || fail "cannot make the environment $venv: see the line above"
        # it stays out of `git status` wherever the project is copied to
        echo '*' > "$venv/.gitignore"
    fi
    echo "installing into $venv (once)" >&2
    local wanted
    wanted="$(IFS=,; echo "${missing[*]}")"
    if ! "$python" -m pip install --disable-pip-version-check --editable "$root[$wanted]" > "$venv/pip.log" 2>&1; then
        if grep -qE 'NewConnectionError|ConnectTimeout|Name or service not known|name resolution|ProxyError|from versions: none' "$venv/pip.log"
        then
            fail "no network: the first run downloads the packages; connect and run it again (log: $venv/pip.log)"
        fi
        fail "the installation failed: $(grep -E '^ *(ERROR|error):?' "$venv/pip.log" | head -n 1) (log: $venv/pip.log)"
    fi
    echo "$state" > "$venv/installed-for"
    for extra in "${missing[@]}"; do
        touch "$venv/installed-$extra"
    done
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$candidate"
            return
        fi
        [ -n "${PYTHON:-}" ] && return 1
    done
    return 1
}
