#!/usr/bin/env bash
# Lint, format, import contracts and types; all checks run even if one fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
bin=${TODM_VENV:-.venv}/bin
status=0
"$bin/ruff" check . || status=1
"$bin/ruff" format --check . || status=1
"$bin/lint-imports" || status=1
"$bin/pyright" --pythonpath "$bin/python" || status=1
exit "$status"
