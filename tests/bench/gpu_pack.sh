#!/usr/bin/env bash
# Packs what gpu_suite.sh needs on a machine that has a GPU, the CUDA Toolkit and
# PyTorch but none of our libraries: the plugin, the GPU's tests, the benchmark,
# and every shared library of theirs but the C library and CUDA's own. The model
# travels in two halves, so that no piece is over 64 MiB.
#   tests/bench/gpu_pack.sh BUILD_FOLDER OUT_FOLDER [MODEL.gguf]
# BUILD_FOLDER was built with the CUDA Toolkit: cmake --preset cuda, targets
# cuda_tests and xcache-gpu-bench.
set -euo pipefail
BUILD=${1:?usage: gpu_pack.sh BUILD_FOLDER OUT_FOLDER [MODEL.gguf]}
OUT=${2:?usage: gpu_pack.sh BUILD_FOLDER OUT_FOLDER [MODEL.gguf]}
MODEL=${3:-}
HERE=$(cd "$(dirname "$0")" && pwd)

FILES=("$BUILD/bin/libxcache_cuda.so" "$BUILD/bin/xcache-gpu-bench"
       "$BUILD/tests/device_ops_test" "$BUILD/tests/gpu_engine_test")
for file in "${FILES[@]}"; do
  if [ ! -f "$file" ]; then
    echo "gpu_pack.sh: expected $file, found none: build the targets" \
         "cuda_tests and xcache-gpu-bench" >&2
    exit 1
  fi
done
rm -rf "$OUT"
mkdir -p "$OUT/bin" "$OUT/lib"
for file in "${FILES[@]}"; do
  cp "$file" "$OUT/bin/"
  strip "$OUT/bin/$(basename "$file")"
done
# A newer C library runs older programs, not the other way round: it stays.
for file in "${FILES[@]}"; do ldd "$file"; done |
  awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libcuda[a-z]*|libcublas[A-Za-z]*)\.so' |
  while read -r library; do cp -L "$library" "$OUT/lib/"; done
strip "$OUT"/lib/*
cp "$HERE/gpu_suite.sh" "$HERE/gpu_torch.py" "$HERE/gpu_plots.py" "$OUT/"
if [ -n "$MODEL" ]; then
  SIZE=$(stat -c %s "$MODEL")
  split -b $(((SIZE + 1) / 2)) -d -a 1 "$MODEL" "$OUT/model.gguf."
  sha256sum "$MODEL" | cut -d ' ' -f 1 > "$OUT/model.sha256"
fi
du -sh "$OUT"/* | sort -h
