#!/usr/bin/env bash
# Tests deploy/: manifests, rules, boards, the image's packages, the systemd unit.
#   tests/deploy/run.sh BUILD_DIR [pytest arguments...]
# The Python packages (kubectl, Envoy and checkov among them) live in a virtual
# environment below BUILD_DIR; promtool and prometheus are Debian's.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
BUILD=$(cd "${1:?usage: $0 BUILD_DIR [pytest arguments...]}" && pwd)
shift

WORK=$BUILD/deploy
source tests/support/python_env.sh
make_venv "$WORK" tests/deploy/requirements.txt
# tests/integration/harness.py starts servers and speaks to them.
make_stubs "$WORK" "$ROOT"

# Whatever else is configured on this machine must not steer the tests.
for name in $(compgen -e | grep '^XCACHE_'); do
  unset "$name"
done
export XCACHE_BUILD=$BUILD
export XCACHE_SOURCE_DIR=$ROOT
export PYTHONPATH=$STUBS:$ROOT/tests/integration
export PYTHONDONTWRITEBYTECODE=1
export PATH=$VENV/bin:$PATH
cd "$ROOT/tests/deploy"
exec "$VENV/bin/python" -m pytest -p no:cacheprovider -q -rsx \
  --basetemp="$WORK/tmp" "$@"
