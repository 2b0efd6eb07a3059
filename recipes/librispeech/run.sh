#!/usr/bin/env bash
# From speech to recognisers that run in sherpa-onnx: every stage, top to bottom. Each stage can be
# run by itself, says so when it is done already, and continues when it was interrupted.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: recipes/librispeech/run.sh [--config NAME] [--data PATH] [--out DIR] [--set A.B=C]...

  --config NAME  debug, commands, clean100 or full960 (default: commands; with --data: clean100)
  --data PATH    LibriSpeech, or your speech in a layout that  todm prepare --help  lists: a
                 directory or a file of JSON lines; without it, the built-in corpus is made with
                 espeak-ng
  --out DIR      where all is kept (default: runs/NAME)
  --set A.B=C    change a setting of the config, such as train.num_updates=500; may be repeated
TEXT
}

fail() {
  echo "run.sh: $*" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
config='' data='' out='' settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --set)
      [ -n "${2:-}" ] || fail "--set needs A.B=C: see --help"
      settings+=(--set "$2")
      shift 2
      ;;
    --config | --data | --out)
      [ -n "${2:-}" ] || fail "$1 needs a value: see --help"
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    *) fail "unknown argument '$1': allowed are --config, --data, --out, --set and --help" ;;
  esac
done
if [ -n "$data" ]; then
  [ -e "$data" ] || fail "--data '$data' does not exist"
  data=$(realpath -- "$data")
fi
config=${config:-${data:+clean100}}
config=${config:-commands}
case $config in
  debug | commands) ;;
  clean100 | full960) [ -n "$data" ] || fail "--config $config needs --data PATH with LibriSpeech" ;;
  *) fail "unknown config '$config': allowed are debug, commands, clean100 and full960" ;;
esac
run=${out:-$root/runs/$config}

"$root/scripts/setup.sh"
bin=$(cd "$root" && cd "${TODM_VENV:-.venv}/bin" && pwd)
todm() { "$bin/todm" "$@"; }

# What a device may hold, in parameters: a name and a budget for each subnet.
case $config in
  debug) budgets=(large=0.2M medium=0.15M small=0.12M) ;;
  commands) budgets=(large=0.65M medium=0.4M small=0.205M) ;;
  clean100) budgets=(large=9M medium=5M small=3M) ;;
  full960) budgets=(large=43M medium=20M small=10M) ;;
esac

# Of a whole LibriSpeech directory, clean100 takes the 100 clean hours.
splits=()
if [ "$config" = clean100 ] && [ -d "$data/train-clean-100" ]; then
  splits=(--split train-clean-100=train --split dev-clean=dev --split test-clean=test)
fi

todm prepare --config "$config" ${data:+--data "$data"} --out "$run/corpus" \
  ${splits[@]+"${splits[@]}"} ${settings[@]+"${settings[@]}"}
todm train "$run/corpus" --config "$config" --out "$run" ${settings[@]+"${settings[@]}"}
for entry in "${budgets[@]}"; do
  name=${entry%%=*}
  todm extract-subnet "$run/supernet" --budget "${entry#*=}" --corpus "$run/corpus" \
    --out "$run/subnets/$name"
  todm export "$run/subnets/$name" --target sherpa-onnx --corpus "$run/corpus" \
    --out "$run/bundles/$name"
  todm evaluate "$run/bundles/$name" "$run/corpus" --after-silence --card \
    --out "$run/evaluation/$name"
  todm evaluate "$run/bundles/$name" "$run/corpus" --out "$run/evaluation/$name"
done
todm report "$run"
"$bin/python" "$root/export/sherpa_onnx/run.py" "$run/bundles/large" "$run/bundles/large/test_wavs/0.wav"
