// How a kernel's body is written once and run twice: by a block of threads on
// the device, and serially on the host, where tests hold it against the CPU's
// reference kernels.
//
// A body is a function template over the block. What it does outside of
// ForThreads every thread does alike (loops, addresses); ForThreads(fn) runs
// fn(thread) for each thread and is a barrier: what one thread wrote, in shared
// or global memory, the next ForThreads reads. Within one ForThreads no thread
// may read what another writes. The host runs the threads in any order it is
// told, so that a body that breaks this rule gives different bits in different
// orders.
#ifndef XCACHE_ENGINE_CUDA_THREAD_BLOCK_H_
#define XCACHE_ENGINE_CUDA_THREAD_BLOCK_H_

#include <cstdint>
#include <vector>

#include "engine/cuda/device_math.h"

namespace xcache::cuda {

// Threads of every kernel's block.
inline constexpr int kThreads = 128;

enum class ThreadOrder { kForward, kBackward, kScattered };

class HostBlock {
 public:
  explicit HostBlock(ThreadOrder order = ThreadOrder::kForward)
      : order_(order) {}

  template <typename Fn>
  void ForThreads(const Fn& fn) {
    for (int i = 0; i < kThreads; ++i) {
      // 37 is odd, so multiplying by it permutes the threads.
      fn(order_ == ThreadOrder::kForward    ? i
         : order_ == ThreadOrder::kBackward ? kThreads - 1 - i
                                            : i * 37 % kThreads);
    }
  }

  // A variable that each thread has for itself, from one ForThreads to the
  // next: a register on the device.
  template <typename T>
  class PerThread {
   public:
    PerThread() : values_(kThreads) {}
    T& operator()(int thread) { return values_[static_cast<size_t>(thread)]; }

   private:
    std::vector<T> values_;
  };

 private:
  ThreadOrder order_;
};

#if defined(__CUDACC__)
class DeviceBlock {
 public:
  template <typename Fn>
  __device__ __forceinline__ void ForThreads(const Fn& fn) {
    fn(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  template <typename T>
  class PerThread {
   public:
    __device__ __forceinline__ T& operator()(int /*thread*/) { return value_; }

   private:
    T value_{};
  };
};
#endif

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_THREAD_BLOCK_H_
