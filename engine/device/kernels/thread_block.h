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
//
// ForWarps(fn) runs fn(warp) for each warp and is a barrier too. What a warp
// does in lanes is in ForLanes; between two of these it may multiply tiles
// together.
//
// CopyAsync, by any thread, begins a copy of 16 aligned bytes from global to
// shared memory; FinishCopies waits for all of them and is a barrier. On the
// host either nothing is copied before, or, in one order, everything at once.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_THREAD_BLOCK_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_THREAD_BLOCK_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"

namespace xcache::cuda {

// Threads of every kernel's block.
inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / kWarpLanes;

enum class ThreadOrder { kForward, kBackward, kScattered };

class HostWarp {
 public:
  explicit HostWarp(int index) : index_(index) {}
  int index() const { return index_; }

  template <typename Fn>
  void ForLanes(const Fn& fn) {
    for (int lane = 0; lane < kWarpLanes; ++lane) fn(lane);
  }
  // d += a b, all three functions of a lane, a and b of halves of a type.
  template <HalfType kType, typename A, typename B, typename D>
  void Mma(const A& a, const B& b, const D& d) {
    HostMma<kType>(a, b, d);
  }

  template <typename T>
  class PerLane {
   public:
    T& operator()(int lane) { return values_[static_cast<size_t>(lane)]; }
    const T& operator()(int lane) const {
      return values_[static_cast<size_t>(lane)];
    }

   private:
    std::array<T, kWarpLanes> values_{};
  };

  // Two neighbouring right sides of a product, 16 rows and 8 columns each, of a
  // matrix in shared memory whose rows are `stride` apart.
  void LoadTransposed(const uint16_t* matrix, int stride, PerLane<MmaB>& left,
                      PerLane<MmaB>& right) {
    HostLoadMatrices(
        [&](int lane) {
          const MmaPlace at = LoadPlace(lane);
          return matrix + at.row * stride + at.col;
        },
        [&](int lane, int i) -> uint32_t& {
          return (i < 2 ? left : right)(lane).pairs[i % 2];
        });
  }
  // Each lane's value becomes that of its four neighbours by `combine`, which
  // takes its arguments in any order: lanes 4 i to 4 i + 3.
  template <typename Fn>
  void CombineQuads(PerLane<float>& values, const Fn& combine) {
    for (int step = 1; step <= 2; ++step) {
      const PerLane<float> before = values;
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        values(lane) = combine(before(lane), before(lane ^ step));
      }
    }
  }

 private:
  const int index_;
};

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

  template <typename Fn>
  void ForWarps(const Fn& fn) {
    for (int i = 0; i < kWarps; ++i) {
      HostWarp warp(order_ == ThreadOrder::kForward ? i : kWarps - 1 - i);
      fn(warp);
    }
  }

  void CopyAsync(void* to, const void* from) {
    if (order_ == ThreadOrder::kBackward) {
      std::memcpy(to, from, 16);
    } else {
      copies_.push_back({to, from});
    }
  }
  void FinishCopies() {
    for (const auto& [to, from] : copies_) std::memcpy(to, from, 16);
    copies_.clear();
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
  std::vector<std::pair<void*, const void*>> copies_;
};

#if defined(__CUDACC__)
class DeviceWarp {
 public:
  __device__ __forceinline__ int index() const {
    return static_cast<int>(threadIdx.x) / kWarpLanes;
  }
  template <typename Fn>
  __device__ __forceinline__ void ForLanes(const Fn& fn) {
    fn(lane());
  }
  template <HalfType kType, typename A, typename B, typename D>
  __device__ __forceinline__ void Mma(const A& a, const B& b, const D& d) {
#if defined(__CUDA_ARCH__)
    DeviceMma<kType>(a(lane()), b(lane()), d(lane()));
#endif
  }

  template <typename T>
  class PerLane {
   public:
    __device__ __forceinline__ T& operator()(int /*lane*/) { return value_; }
    __device__ __forceinline__ const T& operator()(int /*lane*/) const {
      return value_;
    }

   private:
    T value_{};
  };

  __device__ __forceinline__ void LoadTransposed(const uint16_t* matrix,
                                                 int stride,
                                                 PerLane<MmaB>& left,
                                                 PerLane<MmaB>& right) {
#if defined(__CUDA_ARCH__)
    const MmaPlace at = LoadPlace(lane());
    DeviceLoadMatrices(matrix + at.row * stride + at.col, left(0), right(0));
#endif
  }
  template <typename Fn>
  __device__ __forceinline__ void CombineQuads(PerLane<float>& values,
                                               const Fn& combine) {
#if defined(__CUDA_ARCH__)
    float& value = values(0);
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, 1));
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, 2));
#endif
  }

 private:
  __device__ __forceinline__ static int lane() {
    return static_cast<int>(threadIdx.x) % kWarpLanes;
  }
};

class DeviceBlock {
 public:
  template <typename Fn>
  __device__ __forceinline__ void ForThreads(const Fn& fn) {
    fn(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <typename Fn>
  __device__ __forceinline__ void ForWarps(const Fn& fn) {
    DeviceWarp warp;
    fn(warp);
    __syncthreads();
  }

  __device__ __forceinline__ void CopyAsync(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
    const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared),
                 "l"(from)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void FinishCopies() {
#if defined(__CUDA_ARCH__)
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
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

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_THREAD_BLOCK_H_
