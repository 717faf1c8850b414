#!/usr/bin/env bash
# Installs what the tests need, builds, and runs all of them. Run as root on a
# fresh Debian 12 machine, or as anybody where the packages are installed.
#   tests/run_all.sh                 everything
#   tests/run_all.sh --quick         dev build, unit tests: the inner loop
#   tests/run_all.sh --require-cuda  fail where the CUDA Toolkit is not found
#   tests/run_all.sh --only STAGE    one stage (names: see the table it prints)
#   tests/run_all.sh --skip A,B      all stages but these
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD

QUICK=0 REQUIRE_CUDA=0 ONLY= SKIP=
while [ $# -gt 0 ]; do
  case $1 in
    --quick) QUICK=1 ;;
    --require-cuda) REQUIRE_CUDA=1 ;;
    --skip) SKIP=${2:?--skip needs names of stages}; shift ;;
    --only) ONLY=${2:?--only needs the name of a stage}; shift ;;
    *) echo "run_all.sh: unknown option '$1'; known: --quick, --require-cuda," \
            "--only STAGE, --skip STAGES" >&2; exit 2 ;;
  esac
  shift
done

JOBS=$(nproc)
LOGS=$ROOT/build/logs
mkdir -p "$LOGS"
SUMMARY=()
FAILED=0

# The longest that a stage may take before it is stopped and its log shown. A
# stage takes a third of it on 2 cores.
STAGE_SECONDS=${XCACHE_STAGE_SECONDS:-2700}

# stage NAME: runs the function NAME, keeps its log, shows its end where it fails.
stage() {
  local name=$1
  if [ -n "$ONLY" ] && [ "$ONLY" != "$name" ]; then return 0; fi
  if [[ ",$SKIP," == *",$name,"* ]]; then
    SUMMARY+=("$(printf '%-14s skipped, as asked' "$name")")
    return 0
  fi
  local log=$LOGS/$name.log start=$SECONDS result=ok
  echo "== $name"
  # A process group of its own (set -m), so that all of it can be stopped. Not
  # `if "$name"`: a condition would switch errexit off inside the stage.
  set -m
  (set -e; "$name") >"$log" 2>&1 &
  local pid=$!
  (sleep "$STAGE_SECONDS" && kill -- "-$pid" &&
    echo "expected the stage to end within $STAGE_SECONDS s" >>"$log") &
  local watchdog=$!
  set +m
  local rc=0
  wait "$pid" || rc=$?
  kill -- "-$watchdog" 2>/dev/null || true
  if [ $rc -ne 0 ]; then
    result=FAILED
    FAILED=1
    tail -n 80 "$log"
    # GoogleTest says it in the midst of the other tests' lines.
    grep -E -A 12 ': Failure$' "$log" | tail -n 60 || true
  fi
  grep -E '^(SKIPPED|skipped:)|tests passed|[0-9]+ passed' "$log" | tail -n 5 \
    || true
  local took=$((SECONDS - start))
  SUMMARY+=("$(printf '%-14s %-7s %3d min %02d s' "$name" "$result" \
    $((took / 60)) $((took % 60)))")
  echo "   $name: $result, $((took / 60)) min $((took % 60)) s"
}

# configure_and_build PRESET [cmake options...] -- [targets...]
build() {
  local preset=$1; shift
  local options=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# -gt 0 ] && shift
  cmake --preset "$preset" ${options[@]+"${options[@]}"}
  cmake --build --preset "$preset" -j "$JOBS" ${1:+--target "$@"}
}

run_ctest() {
  local preset=$1; shift
  ctest --preset "$preset" --no-tests=error "$@"
}

packages() { deploy/install_packages.sh build test eval; }

model() {
  local path
  path=$(deploy/get_model.sh)
  echo "$path" > "$ROOT/build/model_path"
}

eval_text() { tests/eval/eval_text.py --all "$ROOT/build/eval_text"; }

# With the CUDA part where the toolkit is found: its code compiles for each
# architecture, and its tests are run on the host, or on a GPU if there is one.
release() {
  export PATH=$PATH:/usr/local/cuda/bin
  local cuda=ON
  if ! command -v nvcc >/dev/null; then
    if [ "$REQUIRE_CUDA" = 1 ]; then
      echo "nvcc: expected the CUDA Toolkit (nvcc on PATH or under" \
           "/usr/local/cuda), found none" >&2
      return 1
    fi
    echo "skipped: the CUDA part, no nvcc on PATH or under /usr/local/cuda"
    cuda=OFF
  fi
  build release "-DXCACHE_CUDA=$cuda"
}

unit() { run_ctest release -L 'unit|gpu' -j "$JOBS"; }
model_tests() { run_ctest release -L 'model'; }

# The fallback instruction sets must give what the best one gives: the tests
# that compare them run in `unit`; here whole programs run on them.
other_isas() {
  local isa
  for isa in ref avx2; do
    XCACHE_FORCE_ISA=$isa run_ctest release -R '^(server_app_test|core_engine_test)$'
  done
}

# The integration tests wait as much as they work.
PARALLEL=(-n 2 --dist loadfile)

integration() {
  run_ctest release -L 'integration' -j "$JOBS"
  # One seed, so that a change is judged by what it changes; other seeds find
  # more.
  export XCACHE_SEED=${XCACHE_SEED:-1}
  tests/integration/run.sh build/release "${PARALLEL[@]}"
  tests/integration/fleet/run.sh build/release
  tests/integration/foreign/run.sh build/release
  tests/deploy/run.sh build/release
}

# Findings go to files: a server's own output is a test's, and what it says as it
# is killed would be lost there.
asan() {
  build asan-ubsan -- asan_tests fuzzers
  local found=$ROOT/build/asan-ubsan/findings
  rm -rf "$found"
  mkdir -p "$found"
  export ASAN_OPTIONS=detect_stack_use_after_return=1:log_path=$found/asan
  export UBSAN_OPTIONS=print_stacktrace=1:log_path=$found/ubsan
  # The real model is too slow here: its tests run in `model_tests`. And what is
  # about other programs, or takes its time, runs in `integration`.
  unset XCACHE_TEST_MODEL
  local failed=0
  run_ctest asan-ubsan -L 'unit|integration' -j "$JOBS" || failed=1
  XCACHE_SEED=${XCACHE_SEED:-1} XCACHE_CRASH_ROUNDS=${XCACHE_CRASH_ROUNDS:-20} \
    tests/integration/run.sh build/asan-ubsan "${PARALLEL[@]}" \
    --ignore=test_prometheus.py --ignore=test_quickstart.py \
    --ignore=test_readme.py --ignore=test_soak.py || failed=1
  local report
  for report in "$found"/*; do
    [ -e "$report" ] || continue
    failed=1
    echo "== $report"
    cat "$report"
  done
  return $failed
}

tsan() {
  build tsan -- tsan_tests
  TSAN_OPTIONS=suppressions=$ROOT/tests/tsan.supp:halt_on_error=1 \
    run_ctest tsan -L 'tsan' -j "$JOBS"
}

# XCACHE_FUZZ_SECONDS, for each of them: some here, some hundreds for a campaign.
fuzz() {
  build asan-ubsan -- fuzzers
  tests/fuzz/run.sh build/asan-ubsan "${XCACHE_FUZZ_SECONDS:-25}"
}

rules() { python3 tests/house_rules.py; }
quick() { build dev; ctest --preset dev --no-tests=error -L unit -j "$JOBS"; }

STAGES=(packages model eval_text rules release unit model_tests other_isas
  integration asan tsan fuzz)
[ $QUICK = 0 ] || STAGES=(rules quick)
for name in $ONLY ${SKIP//,/ }; do
  [[ " ${STAGES[*]} " == *" $name "* ]] || {
    echo "run_all.sh: no stage '$name'; known: ${STAGES[*]}" >&2
    exit 2
  }
done
for name in "${STAGES[@]}"; do
  stage "$name"
  # What the stages after it take, also from a run before.
  case $name in
    model)
      if [ -f "$ROOT/build/model_path" ]; then
        XCACHE_TEST_MODEL=$(cat "$ROOT/build/model_path")
        export XCACHE_TEST_MODEL
      fi ;;
    eval_text) export XCACHE_TEST_TEXT=$ROOT/build/eval_text/prose.txt ;;
  esac
done

echo
printf '%s\n' "${SUMMARY[@]}"
[ $FAILED = 0 ] || { echo "FAILED: see $LOGS"; exit 1; }
echo "all stages passed"
