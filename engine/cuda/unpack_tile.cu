#include "engine/cuda/unpack_tile.cuh"

namespace xcache::cuda {
namespace {

// Threads of a block, all on neighbouring groups: their loads of a plane and
// their stores of a row are each one run of memory.
constexpr int kThreads = 128;

__global__ void UnpackTile(UnpackTileArgs args) {
  const int group =
      static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int octet = static_cast<int>(blockIdx.y);
  if (group >= args.shape.num_groups) return;
  const uint64_t codes = CodesOfOctet(args.packed, args.shape, octet, group);
  const float step = args.steps[group];
  const float base = args.bases[group];
  const int first = 8 * octet;
  const int last = min(first + 8, args.shape.num_values);
  for (int value = first; value < last; ++value) {
    // Rounded twice, as on the CPU, which does not contract either.
    const float product =
        __fmul_rn(step, static_cast<float>(CodeOf(codes, value - first)));
    args.x[value * args.x_stride + group] = __fadd_rn(base, product);
  }
}

}  // namespace

cudaError_t LaunchUnpackTile(const UnpackTileArgs& args, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>((args.shape.num_groups + kThreads - 1) / kThreads),
      static_cast<unsigned>((args.shape.num_values + 7) / 8));
  UnpackTile<<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace xcache::cuda
