#!/usr/bin/env bash
# Makes the environment that every other script uses. Run it again to continue after an interruption;
# with a complete environment it prints nothing.
#
#   PYTHON            the interpreter (default: the first of python3, python3.14 ... that is 3.11 or newer)
#   TODM_VENV         directory of the environment (default: .venv)
#   TODM_EXTRAS       what to install (default: train,llm,vision,dev)
#   TODM_TORCH_INDEX  package index for torch and torchaudio (default: pip's own)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${TODM_VENV:-.venv}
extras=${TODM_EXTRAS-train,llm,vision,dev}
needed_mb=9000 # peak, with wheels beside their unpacked files; 5 GB remain
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
  fail "${PYTHON:-python3} is not Python 3.11 or newer: run" \
    " sudo apt-get install -y python3 python3-venv  (or python3.11 python3.11-venv, if that" \
    "installs an older one), or set PYTHON"
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
    return # most of it is installed
  fi
  free_mb=$(df -Pm "$(dirname "$venv")" | awk 'NR == 2 { print $4 }')
  [ "$free_mb" -ge "$needed_mb" ] ||
    fail "the installation needs $needed_mb MB of free disk, and $(dirname "$venv") has" \
      "$free_mb MB: free some space, or set TODM_TORCH_INDEX to an index with a smaller torch"
}

announce() {
  if [ "$needed_mb" -le 500 ]; then
    echo "setup: installing what a device needs; well under 1 GB."
  elif [ -n "${TODM_TORCH_INDEX:-}" ]; then
    echo "setup: torch comes from $TODM_TORCH_INDEX; the size of the download depends on it."
  else
    echo "setup: downloading about 3 GB of wheels, which take 5 GB on disk (Linux x86-64; less elsewhere)."
  fi
}

install() {
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check)
  # Not in /tmp, which is in memory on many machines.
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
  # Scripts started at the same time wait for each other, if the system has flock.
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
