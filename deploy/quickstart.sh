#!/usr/bin/env bash
# From a fresh Debian 12 machine to a running XCache: installs the packages (as
# root), builds the release programs, gets the demo model, and runs the main
# job: a chat of several turns, kill -9, the chat goes on. The last line of
# stdout is one JSON object. A second run reuses the build and the model.
#   deploy/quickstart.sh [--codec SPEC] [--threads N] [--history TOKENS]
#                        [--model FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
BIN=$ROOT/build/release/bin

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$ROOT/deploy/quickstart.sh"
}

MODEL=
options=()
while [ $# -gt 0 ]; do
  case $1 in
    --codec | --threads | --history)
      options+=("$1" "${2:?$1 needs a value}"); shift ;;
    --model) MODEL=${2:?--model needs a file}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done

say() { echo "== $*" >&2; }

# Runs a step with its output in a log, which is shown where it fails.
WORK=$(mktemp -d "${TMPDIR:-/tmp}/xcache-quickstart.XXXXXX")
job=
clean_up() {
  # The job's servers die with it.
  if [ -n "$job" ]; then kill -KILL "$job" 2>/dev/null || true; fi
  rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

quietly() {
  local log=$1; shift
  if ! "$@" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "quickstart.sh: failed: $*" >&2
    exit 1
  fi
}

say "packages"
deploy/install_packages.sh build

say "build (the first one takes some minutes)"
quietly "$WORK/cmake.log" cmake --preset release
# A compiler at work takes up to 1 GB: a machine short of memory gets fewer.
jobs=$(nproc)
memory_gb=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if [ "$jobs" -gt "$memory_gb" ]; then jobs=$((memory_gb > 1 ? memory_gb : 1)); fi
quietly "$WORK/build.log" cmake --build --preset release -j "$jobs" \
  --target xcache-server xcache xcache-quickstart

if [ -z "$MODEL" ]; then
  say "demo model"
  MODEL=$(deploy/get_model.sh)
fi

say "the main job"
notice="To chat yourself, start the server in one terminal and chat in another:
  $BIN/xcache-server --model $MODEL
  $BIN/xcache chat"
# In the background and waited for, so that an interrupt is handled at once.
"$BIN/xcache-quickstart" --server "$BIN/xcache-server" --model "$MODEL" \
  --root "$ROOT" --work-dir "$WORK" --notice "$notice" \
  ${options[@]+"${options[@]}"} &
job=$!
status=0
wait "$job" || status=$?
job=
if [ $status -ne 0 ]; then
  for log in "$WORK"/*-server.log; do
    [ -f "$log" ] || continue
    echo "-- the last lines of $(basename "$log"):" >&2
    tail -n 15 "$log" >&2
  done
fi
exit $status
