// Where the elements of a 16x8x16 product of FP16 or BF16 matrices with FP32
// sums, D = A B + C, lie in the registers of a warp's lanes (mma.sync.m16n8k16,
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": the
// two types lie alike), as functions that host and device compile alike; and
// the same product on the host.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_MMA_FRAGMENTS_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_MMA_FRAGMENTS_H_

#include <cstdint>

#include "engine/device/kernels/math.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMmaRows = 16;   // of A and of the sums
inline constexpr int kMmaCols = 8;    // of B and of the sums
inline constexpr int kMmaDepth = 16;  // columns of A, rows of B

// A lane's part of A, B and of the sums. A register of halves holds two
// elements, the one of the lower number in its lower half.
struct MmaA {
  uint32_t pairs[4] = {};
};
struct MmaB {
  uint32_t pairs[2] = {};
};
struct MmaSums {
  float of[4] = {};
};

struct MmaPlace {
  int row = 0;
  int col = 0;
};
// Of element i, 0 to 7, of a lane's A.
XC_HOST_DEVICE inline MmaPlace MmaPlaceA(int lane, int i) {
  return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
// Of element i, 0 to 3, of a lane's B: row is k, col is n.
XC_HOST_DEVICE inline MmaPlace MmaPlaceB(int lane, int i) {
  return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}
// Of element i, 0 to 3, of a lane's sums.
XC_HOST_DEVICE inline MmaPlace MmaPlaceSum(int lane, int i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// Two neighbouring halves as a register. REQUIRES: p is 4-byte aligned.
XC_HOST_DEVICE inline uint32_t LoadPair(const uint16_t* p) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const uint32_t*>(p);
#else
  return p[0] | static_cast<uint32_t>(p[1]) << 16;
#endif
}

// A lane's parts of A [16, 16] with its rows `stride` apart, and of B as its
// transpose [8, 16]. REQUIRES: an even stride, 4-byte aligned pointers.
XC_HOST_DEVICE inline MmaA LoadMmaA(const uint16_t* a, int stride, int lane) {
  MmaA out;
  XC_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    const MmaPlace at = MmaPlaceA(lane, 2 * pair);
    out.pairs[pair] = LoadPair(a + at.row * stride + at.col);
  }
  return out;
}
XC_HOST_DEVICE inline MmaB LoadMmaB(const uint16_t* b, int stride, int lane) {
  MmaB out;
  XC_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    const MmaPlace at = MmaPlaceB(lane, 2 * pair);
    out.pairs[pair] = LoadPair(b + at.col * stride + at.row);
  }
  return out;
}

// ldmatrix.x4.trans: lane l names eight neighbouring halves, row l % 8 of
// matrix l / 8; each lane gets two elements of a column of each matrix. With
// the row that LoadPlace gives of a matrix [16, 16] these are two lanes' parts
// of B.
XC_HOST_DEVICE inline MmaPlace LoadPlace(int lane) {
  return {lane % 16, lane / 16 * 8};
}
// `row` yields a lane's row, `out` its register for a matrix.
template <typename Row, typename Out>
void HostLoadMatrices(const Row& row, const Out& out) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int first = 8 * matrix + lane % 4 * 2;
      out(lane, matrix) = row(first)[lane / 4] |
                          static_cast<uint32_t>(row(first + 1)[lane / 4]) << 16;
    }
  }
}

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ void DeviceLoadMatrices(const uint16_t* row,
                                                   MmaB& left, MmaB& right) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(left.pairs[0]), "=r"(left.pairs[1]), "=r"(right.pairs[0]),
        "=r"(right.pairs[1])
      : "r"(shared)
      : "memory");
}
template <HalfType kType>
__device__ __forceinline__ void DeviceMma(const MmaA& a, const MmaB& b,
                                          MmaSums& d) {
  if constexpr (kType == HalfType::kF16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d.of[0]), "+f"(d.of[1]), "+f"(d.of[2]), "+f"(d.of[3])
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]),
          "r"(b.pairs[0]), "r"(b.pairs[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d.of[0]), "+f"(d.of[1]), "+f"(d.of[2]), "+f"(d.of[3])
        : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]),
          "r"(b.pairs[0]), "r"(b.pairs[1]));
  }
}
#endif

// The host's: `a`, `b` and `d` are functions of a lane. The 16 products of an
// element are exact in FP32 and summed in order of k, then added to C. A tensor
// core's order is not documented and its sums may be truncated, so the last
// bits differ.
template <HalfType kType, typename A, typename B, typename D>
void HostMma(const A& a, const B& b, const D& d) {
  float left[kMmaRows][kMmaDepth], right[kMmaDepth][kMmaCols];
  const auto element = [](const uint32_t* pairs, int i) {
    const auto half = static_cast<uint16_t>(pairs[i / 2] >> (i % 2 * 16));
    return kType == HalfType::kF16 ? F16ToF32(half) : Bf16ToF32(half);
  };
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const MmaPlace at = MmaPlaceA(lane, i);
      left[at.row][at.col] = element(a(lane).pairs, i);
    }
    for (int i = 0; i < 4; ++i) {
      const MmaPlace at = MmaPlaceB(lane, i);
      right[at.row][at.col] = element(b(lane).pairs, i);
    }
  }
  float sums[kMmaRows][kMmaCols] = {};
  for (int row = 0; row < kMmaRows; ++row) {
    for (int k = 0; k < kMmaDepth; ++k) {
      for (int col = 0; col < kMmaCols; ++col) {
        sums[row][col] += left[row][k] * right[k][col];
      }
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MmaPlace at = MmaPlaceSum(lane, i);
      float& sum = d(lane).of[i];
      sum = sum + sums[at.row][at.col];
    }
  }
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_MMA_FRAGMENTS_H_
