#!/usr/bin/env bash
# Writes logits_ARCHITECTURE_TYPE.txt, of the random models that
# logits_golden_test.cc makes, by llama-cpp-python:
#   make_tiny_logits.sh PYTHON BUILD_DIR
set -euo pipefail
cd "$(dirname "$0")"
python=$1 make=$2/tests/xcache-tiny-model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

types=(0 1 2 3 6 7 8 10 11 12 13 14 20 23 30)
for model in "${types[@]/#/qwen2:}" "${types[@]/#/qwen3:}" gemma3:1 gemma3:14; do
  architecture=${model%:*} type=${model#*:}  # as GGUF files number types
  "$make" "$work/model.gguf" "arch=$architecture" "type=$type" tied=0 layers=7 \
    pattern=6 d_model=256 n_heads=4 n_kv_heads=2 head_dim=64 d_ff=512
  "$python" make_logits.py "$work/model.gguf" 160 8 \
    >"logits_${architecture}_$type.txt"
done
