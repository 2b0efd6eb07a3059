#!/usr/bin/env bash
# Runs a bundle in old and new releases of sherpa-onnx, each in a temporary environment: every form of
# the bundle must give the transcript that the bundle promises.
#
#   export/sherpa_onnx/releases.sh BUNDLE [RELEASE ...]
#
# Needs python3 with venv and a package index; about 100 MB a release, one at a time. Not run in CI.
# The 8-bit blockwise form needs sherpa-onnx 1.12 or newer: if an older one does not load it, that is
# reported, but not as a failure.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=${1:?usage: releases.sh BUNDLE [RELEASE ...]}
shift
releases=("$@")
[ "${#releases[@]}" -gt 0 ] || releases=(1.9.30 1.10.46 1.12.26 1.13.4 2.0.1)
[ -z "${CI:-}" ] || {
  echo "releases: skipped in CI: it installs ${#releases[@]} releases of sherpa-onnx"
  exit 0
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

promised() { # PRECISION MODE
  python3 - "$bundle" "$@" <<'PY'
import json, sys
folder, precision, mode = sys.argv[1:]
print(json.load(open(f"{folder}/test_wavs/expected.json"))[precision][mode]["text"])
PY
}

try() { # RELEASE PRECISION MODE
  local found flags=(--precision "$2")
  [ "$3" = streaming ] || flags+=(--offline)
  if ! found=$("$work/venv/bin/python" "$here/run.py" "$bundle" "$bundle/test_wavs/0.wav" "${flags[@]}" 2>"$work/err"); then
    if [ "$2" = int8.block ] && [[ $1 =~ ^1\.(9|10|11)\. ]]; then
      echo "$1  $2  $3: not loaded by its onnxruntime"
      return
    fi
    echo "$1  $2  $3: FAILED: $(tail -n 1 "$work/err" | cut -c 1-200)"
    failures=$((failures + 1))
  elif [ "${found#*$'\t'}" = "$(promised "$2" "$3")" ]; then
    echo "$1  $2  $3: as promised"
  else
    echo "$1  $2  $3: FAILED: '${found#*$'\t'}' and '$(promised "$2" "$3")' was promised"
    failures=$((failures + 1))
  fi
}

for release in "${releases[@]}"; do
  rm -rf "$work/venv"
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q "sherpa-onnx==$release" numpy soundfile 2>"$work/err" || {
    echo "$release: FAILED: not installed: $(tail -n 1 "$work/err")"
    failures=$((failures + 1))
    continue
  }
  for precision in fp32 int8 int8.rr int8.block int4; do
    middle=.$precision
    [ "$precision" != fp32 ] || middle=
    if [ -f "$bundle/encoder$middle.onnx" ]; then
      try "$release" "$precision" streaming
      [ ! -f "$bundle/offline/encoder$middle.onnx" ] || try "$release" "$precision" offline
    fi
  done
done
echo "releases: ${#releases[@]} tried, $failures failures"
[ "$failures" -eq 0 ]
