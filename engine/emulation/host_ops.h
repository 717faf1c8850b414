// A device that is the host: the kernels' own bodies run serially, products in
// plain loops. For tests: it proves, where no GPU is, what the device engine
// and the kernels' arithmetic do. It also is an adversary: streams run as late
// and out of step with each other as the engine allows them, fresh memory is
// full of NaNs, freed memory is poisoned, threads run in the order asked for.
#ifndef XCACHE_ENGINE_EMULATION_HOST_OPS_H_
#define XCACHE_ENGINE_EMULATION_HOST_OPS_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

struct HostOpsOptions {
  ThreadOrder order = ThreadOrder::kForward;
  // What the device pretends to have; 0: no limit.
  size_t memory_bytes = 0;
  // Seeds the choice of the stream that runs next.
  uint32_t seed = 1;
  bool fused_remat = true;     // whether the device has FusedRemat
  bool quantized_gemm = true;  // whether it has QuantizedGemm
  // Counts the bytes that CopyToDevice is given for StreamId::kCopy, or null.
  int64_t* copied_bytes = nullptr;
};

std::unique_ptr<DeviceOps> MakeHostOps(const HostOpsOptions& options);

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_EMULATION_HOST_OPS_H_
