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
VENV=$WORK/venv
WANTED=$ROOT/tests/deploy/requirements.txt
mkdir -p "$WORK"
if ! cmp -s "$WANTED" "$VENV/installed.txt"; then
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check -r "$WANTED"
  cp "$WANTED" "$VENV/installed.txt"
fi

# tests/integration/harness.py starts servers and speaks to them.
STUBS=$WORK/stubs
rm -rf "$STUBS"
mkdir -p "$STUBS"
"$VENV/bin/python" -m grpc_tools.protoc -I "$ROOT/proto" \
  --python_out="$STUBS" --grpc_python_out="$STUBS" \
  "$ROOT"/proto/xcache/v1/*.proto

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
