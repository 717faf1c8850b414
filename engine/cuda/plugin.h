// Finds and opens the CUDA plugin, libxcache_cuda.so: the one part that needs a
// driver and CUDA's libraries, so that programs run where there are none.
#ifndef XCACHE_ENGINE_CUDA_PLUGIN_H_
#define XCACHE_ENGINE_CUDA_PLUGIN_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

// Opens device `ordinal`. The plugin is the file that the environment variable
// XCACHE_CUDA_PLUGIN names; else the one next to the program, or in the folder
// `bin` beside the program's. FAILED_PRECONDITION says what was expected and
// what was found: no plugin, no driver, no such device.
absl::StatusOr<std::shared_ptr<DeviceOps>> OpenCudaDevice(int ordinal);

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_PLUGIN_H_
