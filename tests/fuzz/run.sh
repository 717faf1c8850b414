#!/usr/bin/env bash
# Runs libFuzzer programs of a build, all or those named, for some seconds each,
# as many at a time as there are CPUs.
#   tests/fuzz/run.sh BUILD_DIR SECONDS [PROGRAM...]
# A finding ends it with the input's path. Corpora stay in BUILD_DIR/corpus.
set -euo pipefail
usage="usage: run.sh BUILD_DIR SECONDS [PROGRAM...]"
build=${1:?$usage}
seconds=${2:?$usage}
shift 2
shopt -s nullglob
programs=("$build"/fuzz/*_fuzz)
[ $# -eq 0 ] || programs=("${@/#/$build/fuzz/}")
for program in "${programs[@]:-$build/fuzz/*_fuzz}"; do
  if [ ! -x "$program" ]; then
    echo "$0: expected the program $program, found none: build it first" >&2
    exit 1
  fi
done

fuzz_one() {
  local program=$1 seconds=$2 build=$3
  local name corpus log
  name=$(basename "$program")
  corpus=$build/corpus/$name
  log=$build/corpus/$name.log
  mkdir -p "$corpus"
  if XCACHE_FUZZ_SEED_DIR=$corpus "$program" -max_total_time="$seconds" \
      -max_len=65536 -timeout=20 -rss_limit_mb=4096 \
      -artifact_prefix="$build/corpus/$name." "$corpus" >"$log" 2>&1; then
    echo "$name: no finding; $(grep -E '^Done ' "$log" || tail -n 1 "$log")"
  else
    tail -n 40 "$log"
    echo "$name: FINDING"
    return 255  # xargs starts no other
  fi
}
export -f fuzz_one
printf '%s\n' "${programs[@]}" |
  xargs -P "$(nproc)" -I{} bash -c 'fuzz_one "$@"' _ {} "$seconds" "$build"
echo "${#programs[@]} passed, 0 failed"
