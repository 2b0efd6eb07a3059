#!/usr/bin/env bash
# The tests of k2's loss and beam search, in an environment of its own (.venv-k2, 5 GB): the newest k2 on
# PyPI is 1.23.4, built for torch 1.13.1 and Python 3.9. Arguments go to pytest.
#
#   TODM_K2_PYTHON  a Python 3.9 (default: python3.9)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=.venv-k2
python=${TODM_K2_PYTHON:-python3.9}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null || {
  echo "test_k2: a Python 3.9 is needed and $python is not: set TODM_K2_PYTHON" >&2
  exit 1
}
[ -x "$venv/bin/pytest" ] || {
  "$python" -m venv "$venv"
  "$venv/bin/pip" install -q k2==1.23.4 torch==1.13.1 'numpy<2' pytest
}
exec "$venv/bin/python" scripts/test_k2.py -p no:cacheprovider \
  tests/kernels/test_rnnt_loss_k2.py tests/asr/decode/test_search_k2.py "$@"
