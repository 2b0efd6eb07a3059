#!/usr/bin/env bash
# Sets up and runs the tests: all of them in two processes, or those that the arguments, which go to
# pytest, choose: scripts/test.sh tests/kernels -k loss
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
[ $# -gt 0 ] || set -- -n 2
exec "${TODM_VENV:-.venv}/bin/python" -m pytest "$@"
