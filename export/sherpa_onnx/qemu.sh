#!/usr/bin/env bash
# Runs a bundle on processors that this machine is not, emulated one program at a time by qemu-user:
# ARM Cortex-A53 (no dot products) and A76 (with them), and x86 without VNNI (Haswell). Every form must
# give the promised transcript in sherpa-onnx, and its noise against fp32 is shown, from onnxruntime.
#
#   sudo apt-get install qemu-user-static          # the set-up: one line
#   export/sherpa_onnx/qemu.sh BUNDLE [CPU ...]    # cortex-a53 cortex-a76 Haswell
#
#   TODM_QEMU_DIR  where the ARM packages lie between runs (default: /tmp/todm-qemu; 250 MB)
#
# Works on x86-64 Debian or Ubuntu. An ARM python and its libraries come from the distribution, into
# a directory (nothing is installed), and the ARM wheels from the package index. Not run in CI.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=$(realpath "${1:?usage: qemu.sh BUNDLE [CPU ...]}")
shift
processors=("$@")
[ "${#processors[@]}" -gt 0 ] || processors=(cortex-a53 cortex-a76 Haswell)
work=${TODM_QEMU_DIR:-/tmp/todm-qemu}
packages=(sherpa-onnx==2.0.1 onnxruntime kaldi-native-fbank numpy soundfile)

[ -z "${CI:-}" ] || {
  echo "qemu: skipped in CI: emulation takes minutes"
  exit 0
}
for program in qemu-aarch64-static qemu-x86_64-static apt-get dpkg-deb; do
  command -v "$program" >/dev/null || {
    echo "qemu: $program is not here: run  sudo apt-get install qemu-user-static  (Debian, Ubuntu)" >&2
    exit 2
  }
done

fetch_arm() { # an ARM system with python in $work/arm
  [ ! -f "$work/arm/.done" ] || return 0
  echo "qemu: fetching an ARM python into $work ..."
  rm -rf "$work/arm"
  mkdir -p "$work"/apt/lists/partial "$work"/apt/cache/archives/partial "$work/arm"
  : >"$work/apt/status"
  local options=(-q -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$work/apt"
    -o "Dir::State::status=$work/apt/status" -o "Dir::Cache=$work/apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  # libatomic: soundfile's and onnxruntime's wheels take it from the system.
  apt-get "${options[@]}" -y --no-install-recommends --download-only install \
    python3-minimal libpython3-stdlib libstdc++6 libgomp1 libatomic1 >/dev/null
  for package in "$work"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$work/arm"
  done
  touch "$work/arm/.done"
}

fetch_wheels() { # TAG FOLDER PYTHON-VERSION
  [ ! -f "$2/.done" ] || return 0
  echo "qemu: fetching wheels for $1 ..."
  local platforms=() glibc
  for glibc in 17 24 26 27 28 31 34; do
    platforms+=(--platform "manylinux_2_${glibc}_$1")
  done
  python3 -m pip install -q --only-binary=:all: --target "$2" --python-version "$3" \
    "${platforms[@]}" --platform "manylinux2014_$1" --implementation cp "${packages[@]}"
  touch "$2/.done"
}

describe_arm() { # CPU: /proc/cpuinfo of that processor; onnxruntime dies of this machine's own
  local number part=0xd03 features="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
  case $1 in cortex-a76) part=0xd0b features+=" atomics fphp asimdhp asimdrdm lrcpc asimddp" ;; esac
  mkdir -p "$work/arm/proc"
  for ((number = 0; number < $(nproc --all); number++)); do
    printf 'processor\t: %s\nBogoMIPS\t: 100.00\nFeatures\t: %s\n' "$number" "$features"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 4\n\n' "$part"
  done >"$work/arm/proc/cpuinfo"
}

emulated() { # CPU ARGUMENTS ...: python on that processor
  local cpu=$1
  shift
  case $cpu in
    cortex*) PYTHONPATH=$work/aarch64 PYTHONHOME=$work/arm/usr qemu-aarch64-static -cpu "$cpu" -L "$work/arm" "$arm_python" "$@" ;;
    *) PYTHONPATH=$work/x86_64 qemu-x86_64-static -cpu "$cpu" "$x86_python" "$@" ;;
  esac
}

promised() { # PRECISION
  python3 -c 'import json, sys
print(json.load(open(sys.argv[1] + "/test_wavs/expected.json"))[sys.argv[2]]["streaming"]["text"])' "$bundle" "$1"
}

failures=0
for cpu in "${processors[@]}"; do
  case $cpu in
    cortex*)
      fetch_arm
      describe_arm "$cpu"
      arm_python=$(find "$work/arm/usr/bin" -name 'python3.*[0-9]' -type f | head -n 1)
      fetch_wheels aarch64 "$work/aarch64" "${arm_python##*python}"
      ;;
    *)
      x86_python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
      fetch_wheels x86_64 "$work/x86_64" "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
      ;;
  esac
  echo "== $cpu"
  emulated "$cpu" "$here/../onnx/forms.py" "$bundle" --repeats 0 2>"$work/err" || tail -n 3 "$work/err"
  for precision in fp32 int8 int8.rr int8.block int4; do
    middle=.$precision
    [ "$precision" != fp32 ] || middle=
    [ -f "$bundle/encoder$middle.onnx" ] || continue
    found=$(emulated "$cpu" "$here/run.py" "$bundle" "$bundle/test_wavs/0.wav" --precision "$precision" 2>"$work/err") ||
      found="failed: $(tail -n 1 "$work/err")"
    if [ "${found#*$'\t'}" = "$(promised "$precision")" ]; then
      echo "$cpu  $precision in sherpa-onnx: as promised"
    else
      echo "$cpu  $precision in sherpa-onnx: FAILED: ${found#*$'\t'}"
      # Sums that overflow there are what int8.rr is for.
      [ "$cpu/$precision" = Haswell/int8 ] || failures=$((failures + 1))
    fi
  done
done
echo "qemu: ${#processors[@]} processors, $failures failures"
[ "$failures" -eq 0 ]
