#!/usr/bin/env bash
# Makes the environment that every other script uses. Run again after an interruption, it continues;
# run again when all is there, it says nothing.
#
#   PYTHON            the interpreter (default: the newest python3 found, 3.11 or newer)
#   TODM_VENV         where the environment lies (default: .venv)
#   TODM_EXTRAS       what to install (default: train,llm,vision,dev)
#   TODM_TORCH_INDEX  a package index to take torch and torchaudio from (default: pip's own)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${TODM_VENV:-.venv}
extras=${TODM_EXTRAS-train,llm,vision,dev}
needed_mb=9000 # at the peak, with wheels beside what they unpack to; 5 GB of it stay
[ -z "${TODM_TORCH_INDEX:-}" ] || needed_mb=3000
case $extras in *train*) ;; *) needed_mb=500 ;; esac

fail() {
  echo "setup: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      return
    fi
  done
  fail "Python 3.11 or newer is needed and ${PYTHON:-python3} is not: run" \
    " sudo apt-get install -y python3 python3-venv  (where that brings an older one:" \
    "python3.11 python3.11-venv), or set PYTHON"
}

check_venv_module() {
  local version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make environments: run  sudo apt-get install -y python$version-venv"
}

check_disk() {
  local free_mb
  if compgen -G "$venv/lib/python*/site-packages/torch" >/dev/null; then
    return # the bulk is there
  fi
  free_mb=$(df -Pm "$(dirname "$venv")" | awk 'NR == 2 { print $4 }')
  [ "$free_mb" -ge "$needed_mb" ] ||
    fail "$needed_mb MB of free disk are needed while installing, and $(dirname "$venv") has" \
      "$free_mb MB: free some space, or let TODM_TORCH_INDEX name an index with a smaller torch"
}

announce() {
  if [ "$needed_mb" -le 500 ]; then
    echo "setup: installing what a device needs; well under 1 GB."
  elif [ -n "${TODM_TORCH_INDEX:-}" ]; then
    echo "setup: torch comes from $TODM_TORCH_INDEX, which decides how much is downloaded."
  else
    echo "setup: about 3 GB of wheels are downloaded, 5 GB stay on disk (Linux x86-64; less elsewhere)."
  fi
}

install() {
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check)
  # Wheels wait here and not in /tmp, which is memory on many machines.
  TMPDIR=$(cd "$venv" && pwd)/tmp
  export TMPDIR
  rm -rf "$TMPDIR"
  mkdir -p "$TMPDIR"
  "${pip[@]}" install --quiet --upgrade pip || return
  if [ -n "${TODM_TORCH_INDEX:-}" ]; then
    "${pip[@]}" install --index-url "$TODM_TORCH_INDEX" --no-deps --force-reinstall \
      --constraint constraints.txt torch torchaudio || return
  fi
  "${pip[@]}" install --constraint constraints.txt --editable ".${extras:+[$extras]}" || return
  rm -rf "$TMPDIR"
}

main() {
  local stamp=$venv/.todm-setup wanted
  mkdir -p "$(dirname "$venv")"
  # Two scripts started together wait for each other, where the system has flock.
  if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
  fi
  wanted=$(cat pyproject.toml constraints.txt - <<<"$PWD $extras ${TODM_TORCH_INDEX:-}" | cksum)
  if [ -x "$venv/bin/todm" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  rm -f "$stamp"
  check_disk
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    find_python
    check_venv_module
    "$python" -m venv --clear "$venv"
  fi
  announce
  install || fail "the installation did not finish: run the same command again to continue"
  echo "$wanted" >"$stamp"
  echo "setup: done ($venv)"
}

main
