#!/usr/bin/env bash
# The tests that need a CUDA device; fails if there is no device or no such test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
python=${TODM_VENV:-.venv}/bin/python
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "test_gpu: torch sees no CUDA device here" >&2
  exit 1
}
exec "$python" -m pytest -m gpu "$@"
