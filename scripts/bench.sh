#!/usr/bin/env bash
# Memory and time of the ops, each timed only after its check. Arguments go to the benchmark.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec "${TODM_VENV:-.venv}/bin/python" -m benchmarks.studies.rnnt_loss "$@"
