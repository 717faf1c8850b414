// Makes the engine that the options ask for. The only door through which
// servers and tools get one.
#ifndef XCACHE_ENGINE_ENGINE_FACTORY_H_
#define XCACHE_ENGINE_ENGINE_FACTORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/model/model.h"

namespace xcache {

struct EngineOptions {
  // "cpu"; "cuda" or "cuda:N", the GPU with that number; "auto": the first GPU,
  // or the CPU where there is none, with a line in the log.
  std::string device = "auto";
  // Threads of the forward pass (on a GPU: of the host's part); 0: one for each
  // CPU that the process may use.
  int num_threads = 0;
  // Instruction set: "", "ref", "avx2" or "avx512"; "" takes the best there is
  // (the environment variable XCACHE_FORCE_ISA, where set, says which).
  std::string isa;
  // Folder where profiles are kept and looked for; empty: made in memory.
  std::string profile_dir;
  // On the CPU: folder where packed weights are kept and looked for, so that
  // the next engine of the model need not pack them; empty: they are packed.
  std::string weights_cache_dir;
  // On a GPU: most bytes for K/V blocks and live rows; 0: nine tenths of what
  // the weights leave free.
  uint64_t device_memory_bytes = 0;
  // On a GPU: "bf16": matrices are dequantized once, at load. "quantized":
  // those of quantized types stay in the file's blocks, which products turn to
  // the same BF16 values as they read them. "auto": BF16 where that takes at
  // most half of the device memory that is free at start, else quantized.
  std::string weights = "auto";
  // No other engine will be made of this model: it gives back the memory of
  // what the engine has packed or uploaded (Model::Release).
  bool last_of_model = false;
};

// The engine keeps what it needs of `model`, which may go away afterwards.
// Nothing reads the model's file any more.
// FAILED_PRECONDITION: a GPU was asked for and there is none, or no plugin or
// driver to reach it; the message says what was expected and found.
absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(
    std::shared_ptr<const Model> model, const EngineOptions& options,
    const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_ENGINE_FACTORY_H_
