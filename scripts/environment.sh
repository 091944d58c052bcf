# Sourced by the other scripts: `prepare EXTRA...` creates, or reuses, the private environment .venv in the project's
# folder, installs these extras of pyproject.toml, and sets `python`. Works from any directory.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

prepare() {
    # an installation is valid for this folder and this pyproject.toml
    local state missing=() base extra
    state="$root $(cksum < "$root/pyproject.toml")"
    if [ -e "$venv" ] && [ ! -e "$venv/made-by-dnn" ]; then
        fail "$venv exists but was not created by these scripts: move it away"
    fi
    if [ "$(cat "$venv/installed-for" 2> /dev/null)" = "$state" ] && "$python" -c '' 2> /dev/null; then
        for extra in "$@"; do
            [ -e "$venv/installed-$extra" ] || missing+=("$extra")
        done
        [ ${#missing[@]} -eq 0 ] && return
    else
        missing=("$@")
        base="$(find_python)" || fail "needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python3"
        "$base" -c 'import venv, ensurepip' 2> /dev/null ||
            fail "$base has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or set PYTHON"
        rm -rf "$venv"
        mkdir "$venv" && touch "$venv/made-by-dnn"
        "$base" -m venv "$venv" > /dev/null || fail "cannot create the environment $venv: see the line above"
        # keeps it out of `git status`, wherever the project is copied
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
