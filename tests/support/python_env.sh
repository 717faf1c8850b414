# For scripts to source: the virtual environment and the stubs that Python tests
# take. Both leave them below WORK, and names of this file are theirs to use.

# make_venv WORK REQUIREMENTS: $VENV, made anew where the requirements changed.
make_venv() {
  VENV=$1/venv
  mkdir -p "$1"
  if ! cmp -s "$2" "$VENV/installed.txt"; then
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check -r "$2"
    cp "$2" "$VENV/installed.txt"
  fi
}

# make_stubs WORK ROOT: $STUBS, of the proto files, as any foreign client's are.
make_stubs() {
  STUBS=$1/stubs
  rm -rf "$STUBS"
  mkdir -p "$STUBS"
  "$VENV/bin/python" -m grpc_tools.protoc -I "$2/proto" \
    --python_out="$STUBS" --grpc_python_out="$STUBS" "$2"/proto/xcache/v1/*.proto
}

# for_tests BUILD ROOT [FOLDER...]: what tests of a build's programs find in their
# environment; they import from the stubs, tests/integration and the folders.
for_tests() {
  local folder
  export XCACHE_BUILD=$1 XCACHE_SOURCE_DIR=$2
  export PYTHONPATH=$STUBS:$2/tests/integration
  for folder in "${@:3}"; do
    PYTHONPATH+=:$2/$folder
  done
  export PYTHONDONTWRITEBYTECODE=1
  keep_test_variables
}

# keep_test_variables: of XCACHE_*, what tests ask for. Whatever else is configured
# on this machine must not steer them.
keep_test_variables() {
  local name
  for name in $(compgen -e | grep '^XCACHE_'); do
    case $name in
      XCACHE_BUILD | XCACHE_SOURCE_DIR | XCACHE_SEED) ;;
      XCACHE_TEST_MODEL | XCACHE_GEMMA_MODEL) ;;
      XCACHE_FORCE_ISA | XCACHE_*_ROUNDS | XCACHE_*_SECONDS) ;;
      XCACHE_FLEET_EVENTS | XCACHE_SCHEMAS) ;;
      *) unset "$name" ;;
    esac
  done
}
