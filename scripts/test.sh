#!/usr/bin/env bash
# Sets up and runs the tests. Arguments go to pytest: scripts/test.sh tests/kernels -k loss
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec "${TODM_VENV:-.venv}/bin/python" -m pytest "$@"
