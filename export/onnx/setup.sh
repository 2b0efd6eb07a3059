#!/usr/bin/env bash
# Builds run.cc beside it as `run`. Prints where header and library of onnxruntime come from:
#   ORT_HOME   an unpacked release (include/, lib/), or any folder laid out so; else
#              the system's (Debian 13: apt-get install libonnxruntime-dev); else, for the library
#              alone, the Python wheel's: the release's headers still have to be given by ORT_HOME.
# Releases: https://github.com/microsoft/onnxruntime/releases (onnxruntime-linux-x64-*.tgz)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/run}

first() { # the first path that exists
  local path
  for path in "$@"; do [ -e "$path" ] && echo "$path" && return; done
  return 1
}

wheel=$("${PYTHON:-python3}" -c 'import importlib.util as u; s = u.find_spec("onnxruntime"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true)
header=$(first "${ORT_HOME:-/nowhere}/include/onnxruntime_c_api.h" /usr/include/onnxruntime/onnxruntime_c_api.h \
  /usr/include/onnxruntime/core/session/onnxruntime_c_api.h /usr/local/include/onnxruntime_c_api.h) || {
  echo "setup: no onnxruntime_c_api.h: unpack a release of onnxruntime and set ORT_HOME to it" >&2
  exit 1
}
library=$(first "${ORT_HOME:-/nowhere}"/lib/libonnxruntime.so /usr/lib/*/libonnxruntime.so /usr/local/lib/libonnxruntime.so \
  "${wheel:-/nowhere}"/capi/libonnxruntime.so.*) || {
  echo "setup: no libonnxruntime: set ORT_HOME, or pip install onnxruntime" >&2
  exit 1
}
# The wheel's file has another name than its soname, under which it is searched.
links=$(dirname "$out")/.ort
mkdir -p "$links"
ln -sf "$library" "$links/libonnxruntime.so.1"
"${CXX:-g++}" -O2 -std=c++17 "$here/run.cc" -I "$(dirname "$header")" "$links/libonnxruntime.so.1" \
  -Wl,-rpath,"$(cd "$links" && pwd)" -o "$out"
echo "setup: $out (header $header, library $library)"
