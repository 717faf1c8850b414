#!/usr/bin/env bash
# Gets the source of xgrammar, the grammar library, from PyPI, checks its SHA-256 and
# prints the folder that it is in, and nothing else, on standard output:
#
#   source=$(deploy/get_xgrammar.sh [DIR])
#
# CMake calls it (deploy/cmake/FindXGrammar.cmake). Kept under DIR, by default
# ${XCACHE_CACHE_DIR:-~/.cache/xcache}; a second run finds it there. Needs python3
# and its pip (or venv).
set -euo pipefail

name=xgrammar-0.2.9
sha256=87b466bca2475e29bb0323abc62c6c33cbcbcff47e5fb800a3e2099ac9620b90
if [ $# -gt 1 ] || [[ "${1:-}" = -* ]]; then
  echo "usage: $0 [DIR]" >&2
  exit 2
fi
dir=${1:-${XCACHE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/xcache}}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# What of it is built, and its licenses. It comes to its place by one rename, when it
# is whole.
source=$dir/$name
if [ -d "$source" ]; then
  echo "$source"
  exit 0
fi

find "$dir" -maxdepth 1 -name '.get_xgrammar.*' -mmin +60 -exec rm -rf {} +
work=$(mktemp -d "$dir/.get_xgrammar.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if python3 -m pip --version >/dev/null 2>&1; then
  pip=(python3 -m pip)
else
  python3 -m venv "$work/venv" >&2 || {
    echo "$0: needs pip: apt-get install python3-pip (or python3-venv)" >&2
    exit 1
  }
  pip=("$work/venv/bin/python" -m pip)
fi
echo "getting $name" >&2
echo "${name/-/==} --hash=sha256:$sha256" >"$work/requirements.txt"
"${pip[@]}" download --disable-pip-version-check --no-cache-dir --no-deps \
  --no-binary xgrammar --require-hashes -r "$work/requirements.txt" \
  --dest "$work" >&2
tar -xzf "$work/$name.tar.gz" -C "$work" \
  "$name"/{LICENSE,NOTICE,cpp,include} \
  "$name"/3rdparty/{picojson,dlpack/include,dlpack/LICENSE}
# Another run may have been faster.
mv -T "$work/$name" "$source" 2>/dev/null || [ -d "$source" ]
echo "$source"
