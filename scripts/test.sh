#!/usr/bin/env bash
# Installs into .venv and runs the test suite, in a process a core; arguments are passed to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare test

cd "$root"
exec "$python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
