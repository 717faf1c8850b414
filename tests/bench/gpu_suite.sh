#!/usr/bin/env bash
# The engine on a GPU: its tests, the sanitizer, and the benchmarks, side by
# side, within ten minutes. Runs in the folder that gpu_pack.sh made, on a machine
# with a driver, the CUDA Toolkit's libraries and PyTorch.
#   ./gpu_suite.sh OUT_FOLDER [tests|bench|all]
# Writes logs, results.jsonl (a line a measurement), summary.json and plots.
# Every part has a time limit of its own, together less than ten minutes; what
# did not finish is said, and its lines up to there are kept.
set -uo pipefail
OUT=$(realpath -m "${1:?usage: gpu_suite.sh OUT_FOLDER [tests|bench|all]}")
cd "$(dirname "$0")"
WHAT=${2:-all}
mkdir -p "$OUT"
export XCACHE_CUDA_PLUGIN=$PWD/bin/libxcache_cuda.so
PYTHON=${PYTHON:-python3}
# For our programs alone: PyTorch has libraries of its own. Where it brings
# CUDA's, they are found there too.
LIBRARIES=$PWD/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
for folder in $("$PYTHON" - <<'PY' 2>/dev/null
import glob, os
try:
    import nvidia
    for base in nvidia.__path__:
        print(*glob.glob(os.path.join(base, "**", "lib"), recursive=True),
              sep="\n")
except ImportError:
    pass
PY
); do LIBRARIES=$LIBRARIES:$folder; done
OURS=(env "LD_LIBRARY_PATH=$LIBRARIES")
STATUS=()
RESULTS=$OUT/results.jsonl
: > "$RESULTS"

# part NAME SECONDS COMMAND...: its output to NAME.log, its end to the summary.
part() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" > "$OUT/$name.log" 2> "$OUT/$name.err"
  local rc=$?
  STATUS+=("\"$name\": {\"rc\": $rc, \"seconds\": $((SECONDS - start))}")
  echo "$name: rc $rc, $((SECONDS - start)) s"
  [ $rc -eq 0 ] || tail -n 5 "$OUT/$name.log" "$OUT/$name.err"
  return $rc
}
bench() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "${OURS[@]}" bin/xcache-gpu-bench "$@"
  cat "$OUT/$name.log" >> "$RESULTS"
}

if ! nvidia-smi > "$OUT/nvidia-smi.log" 2>&1; then
  echo "gpu_suite.sh: expected a GPU and its driver, nvidia-smi found none" >&2
  exit 1
fi
if ls model.gguf.? >/dev/null 2>&1; then
  cat model.gguf.? > "$OUT/model.gguf"
  if [ "$(sha256sum "$OUT/model.gguf" | cut -d ' ' -f 1)" = \
       "$(cat model.sha256)" ]; then
    export XCACHE_TEST_MODEL=$OUT/model.gguf
  else
    echo "model: the halves do not make the file that was packed"
  fi
fi

if [ "$WHAT" != bench ]; then
  part device_ops 40 "${OURS[@]}" bin/device_ops_test --gtest_filter='*Gpu*'
  part gpu_engine 110 "${OURS[@]}" bin/gpu_engine_test
  SANITIZER=$(command -v compute-sanitizer ||
    ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [ -n "$SANITIZER" ]; then
    for tool in memcheck racecheck; do
      part "sanitizer_$tool" 50 "${OURS[@]}" "$SANITIZER" --tool "$tool" \
        --error-exitcode 9 bin/device_ops_test --gtest_filter='*Gpu*'
    done
  else
    echo "compute-sanitizer: not found"
  fi
fi

if [ "$WHAT" != tests ]; then
  bench llama-3.1-8b 120 --shape llama-3.1-8b \
    --codec 'kv-fp16;xquant-gqa:bits=4' --resume 4096,32768,131072 \
    --depth 1024,3072,8192 --batch 1,8,32,64 --capacity 8192
  bench llama-3.1-8b-cl 70 --shape llama-3.1-8b \
    --codec 'xquant-cl-gqa:bits=4' --resume 4096,32768 --depth 3072 \
    --batch 1,32 --capacity 8192
  bench llama-2-7b 80 --shape llama-2-7b \
    --codec 'kv-fp16;xquant:bits=4;xquant-cl:bits=2' \
    --resume 4096,32768 --depth 1024,3072 --batch 1,8 --capacity 8192
  part torch 60 "$PYTHON" gpu_torch.py 4096 32768
  cat "$OUT/torch.log" >> "$RESULTS"
  if "$PYTHON" -c 'import matplotlib' 2>/dev/null; then
    part plots 15 "$PYTHON" gpu_plots.py "$RESULTS" "$OUT"
  else
    echo "plots: no matplotlib here; gpu_plots.py makes them of results.jsonl"
  fi
fi

rm -f "$OUT/model.gguf"
(IFS=,; echo "{${STATUS[*]}}") > "$OUT/summary.json"
cat "$OUT/summary.json"
! grep -q '"rc": [^0]' "$OUT/summary.json"
