// Packed codes to FP32 on the device: x = base[g] + step[g] * code, the same
// bits as the CPU's unpack_tile.
#ifndef XCACHE_ENGINE_CUDA_UNPACK_TILE_CUH_
#define XCACHE_ENGINE_CUDA_UNPACK_TILE_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "engine/cuda/packed_tile.h"

namespace xcache::cuda {

struct UnpackTileArgs {
  const uint8_t* packed = nullptr;  // device, bits * PlaneBytes bytes
  TileShape shape;
  const float* steps = nullptr;  // device, [num_groups]
  const float* bases = nullptr;  // device, [num_groups]
  float* x = nullptr;            // device, [num_values, num_groups]
  int64_t x_stride = 0;          // elements, at least num_groups
};

// Enqueues the kernel on `stream` and does not wait. The caller has checked the
// shape: positive sizes, 1 to 8 bits.
cudaError_t LaunchUnpackTile(const UnpackTileArgs& args, cudaStream_t stream);

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_UNPACK_TILE_CUH_
