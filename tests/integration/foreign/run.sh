#!/usr/bin/env bash
# Runs other projects' clients against the HTTP API: what their users would do.
#   tests/integration/foreign/run.sh BUILD_DIR [pytest arguments...]
# The Python packages (some 1.5 GB of them) live in a virtual environment below
# BUILD_DIR.
set -euo pipefail
cd "$(dirname "$0")/../../.."
ROOT=$PWD
BUILD=$(cd "${1:?usage: $0 BUILD_DIR [pytest arguments...]}" && pwd)
shift

WORK=$BUILD/foreign
source tests/support/python_env.sh
make_venv "$WORK" tests/integration/foreign/requirements.txt
make_stubs "$WORK" "$ROOT"

for_tests "$BUILD" "$ROOT"
# Nothing is fetched from anywhere.
export LITELLM_LOCAL_MODEL_COST_MAP=True LANGSMITH_TRACING=false
cd "$ROOT/tests/integration/foreign"
exec "$VENV/bin/python" -m pytest -p no:cacheprovider -q -rsx \
  --basetemp="$WORK/tmp" "$@"
