#!/usr/bin/env bash
# Writes logits_qwen2.txt, logits_qwen3.txt and logits_gemma3.txt, of the random
# models that logits_golden_test.cc makes, by llama-cpp-python:
#   make_tiny_logits.sh PYTHON BUILD_DIR
set -euo pipefail
cd "$(dirname "$0")"
python=$1 make=$2/tests/xcache-tiny-model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tiny() {  # ARCHITECTURE TYPE D_MODEL
  "$make" "$work/$1.gguf" "arch=$1" "type=$2" "d_model=$3" "d_ff=$((2 * $3))" \
    layers=7 pattern=6 n_heads=4 n_kv_heads=2 head_dim=64
  "$python" make_logits.py "$work/$1.gguf" 200 12 >"logits_$1.txt"
}
tiny qwen2 12 256
tiny qwen3 6 128
tiny gemma3 14 256
