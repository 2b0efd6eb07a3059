#!/usr/bin/env bash
# Time and peak memory of the RNN-T loss, each measured only after its check. Arguments go to the study.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec "${TODM_VENV:-.venv}/bin/python" -m benchmarks.studies.rnnt_loss "$@"
