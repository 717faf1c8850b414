#!/usr/bin/env bash
# Runs the integration tests against a build.
#   tests/integration/run.sh BUILD_DIR [pytest arguments...]
# The Python packages live in a virtual environment below BUILD_DIR. Tests with
# the real model run where XCACHE_TEST_MODEL names its file; XCACHE_SEED repeats
# a run's random choices.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
BUILD=$(cd "${1:?usage: $0 BUILD_DIR [pytest arguments...]}" && pwd)
shift

for program in bin/xcache-server bin/xcache bin/xcache-calibrate \
  bin/xcache-quickstart tests/xcache-tiny-model; do
  if [ ! -x "$BUILD/$program" ]; then
    echo "$0: $BUILD/$program is missing: build it first" >&2
    exit 2
  fi
done

WORK=$BUILD/integration
source tests/support/python_env.sh
make_venv "$WORK" tests/integration/requirements.txt
make_stubs "$WORK" "$ROOT"

for_tests "$BUILD" "$ROOT"
cd "$ROOT/tests/integration"
exec "$VENV/bin/python" -m pytest -p no:cacheprovider -q -rsx \
  --basetemp="$WORK/tmp" "$@"
