// Bodies of the kernels that read quantized matrices: a product by tensor cores
// that turns weights to BF16 in shared memory, and rows as BF16.
//
// Product: a block of threads takes 64 rows and a panel of 32 columns (few, so
// that one row occupies many multiprocessors) and goes over k in units of 256,
// half a unit at a time. A unit's blocks are copied as they are, while the unit
// before is multiplied. Columns are A's rows in the tensor core's product and
// rows are B's columns, eight of them: octets that have no row are left out.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZED_WEIGHTS_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZED_WEIGHTS_H_

#include <cstdint>
#include <type_traits>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/kernels/weight_blocks.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

inline constexpr int kWeightColumns = 32;
inline constexpr int kHalfUnit = kUnitWeights / 2;
// Elements from a row of an operand to the next: with 68 words the lanes of a
// fragment, 8 rows of 4 words, are in 32 different banks.
inline constexpr int kHalfUnitStride = kHalfUnit + 8;
// Bytes of a column's unit: at most 272 and 16-byte aligned, or 210 of Q6_K
// with at most 14 before.
inline constexpr int kUnitStride = UnitBytes(WeightType::kQ8_0);
static_assert(kUnitStride % 16 == 0, "copied 16 bytes at a time");

struct alignas(16) QuantizedShared {
  uint8_t blocks[2][kWeightColumns * kUnitStride];  // [column][byte]
  uint16_t w[kWeightColumns * kHalfUnitStride];     // [column][channel]
  uint16_t a[kGemmRows * kHalfUnitStride];          // [row][channel]
};

// Two warps beside each other have 16 columns each, and every other octet of
// rows, as two more below them.
inline constexpr int kOctetStep = 2;
inline constexpr int kWarpOctets = kGemmRows / kMmaCols / kOctetStep;
static_assert(kWarps == 4 && kWeightColumns == 2 * kMmaRows,
              "two by two warps");
XC_HOST_DEVICE inline int WarpColumn(int warp) { return warp % 2 * kMmaRows; }
XC_HOST_DEVICE inline int WarpOctet(int warp, int i) {
  return warp / 2 + kOctetStep * i;
}

XC_HOST_DEVICE inline int NumColumnPanels(int n) {
  return (n + kWeightColumns - 1) / kWeightColumns;
}
XC_HOST_DEVICE inline int NumRowTiles(int num_rows) {
  return (num_rows + kGemmRows - 1) / kGemmRows;
}

// Begins to copy the units `unit` of `columns` columns, whole 16 bytes that
// cover them.
template <WeightType kType, typename Block>
XC_HOST_DEVICE void CopyUnits(Block& block, const QuantizedGemmArgs& args,
                              int first_column, int columns, int unit,
                              uint8_t* to) {
  const int left = args.k - unit * kUnitWeights;
  const int64_t begin = int64_t{unit} * UnitBytes(kType);
  const int64_t end =
      begin + WeightBytes(kType, left < kUnitWeights ? left : kUnitWeights);
  const int64_t aligned = begin / 16 * 16;
  const int pieces = static_cast<int>((end - aligned + 15) / 16);
  const uint8_t* from =
      args.w.blocks + first_column * args.w.row_bytes + aligned;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < columns * pieces; i += kThreads) {
      const int column = i / pieces;
      const int at = 16 * (i - column * pieces);
      block.CopyAsync(to + column * kUnitStride + at,
                      from + column * args.w.row_bytes + at);
    }
  });
}

// Begins to copy `channels` channels of `rows` rows.
template <typename Block>
XC_HOST_DEVICE void CopyRows(Block& block, const uint16_t* from, int stride,
                             int rows, int channels, uint16_t* to) {
  const int pieces = channels / 8;
  block.ForThreads([&](int thread) {
    for (int i = thread; i < rows * pieces; i += kThreads) {
      const int row = i / pieces;
      const int at = 8 * (i - row * pieces);
      block.CopyAsync(to + row * kHalfUnitStride + at,
                      from + int64_t{row} * stride + at);
    }
  });
}

// Half a unit of each column as BF16. `units`: where the first column's begins.
template <WeightType kType, typename Block>
XC_HOST_DEVICE void UnpackHalfUnits(Block& block, const uint8_t* units,
                                    int columns, int half, int channels,
                                    uint16_t* to) {
  constexpr int kLanesOfColumn = kThreads / kWeightColumns;
  static_assert(kLanesOfColumn * kBlockWeights == kHalfUnit,
                "a thread has one block");
  block.ForThreads([&](int thread) {
    // Eight neighbouring threads have eight columns: 16 bytes that they store
    // are in 32 different banks.
    const int column = thread % 8 + thread / kWarpLanes * 8;
    const int in_half = thread % kWarpLanes / 8;
    if (column >= columns || in_half * kBlockWeights >= channels) return;
    const int at = half * kUnitBlocks / 2 + in_half;
    const uint8_t* unit = units + column * kUnitStride;
    uint16_t* out = to + column * kHalfUnitStride + in_half * kBlockWeights;
    WeightScale scale;
    XC_UNROLL
    for (int octet = 0; octet < kBlockOctets; ++octet) {
      if (octet == 0 || (kType == WeightType::kQ6_K && octet == 2)) {
        scale = LoadWeightScale<kType>(unit, at, octet);
      }
      float values[8];
      WeightsOfOctet<kType>(unit, at, octet, scale, values);
      StoreBf16Octet(out + 8 * octet, values);
    }
  });
}

// Rows [64 tile, ..) and columns [32 panel, ..) of a product.
template <WeightType kType, typename Block>
XC_HOST_DEVICE void QuantizedGemmPanel(Block& block,
                                       const QuantizedGemmArgs& args, int tile,
                                       int panel, QuantizedShared& shared) {
  struct Sums {
    MmaSums of[kWarpOctets];
  };
  typename Block::template PerThread<Sums> sums;
  const int first_row = tile * kGemmRows;
  const int rows_left = args.num_rows - first_row;
  const int rows = rows_left < kGemmRows ? rows_left : kGemmRows;
  const int octets = (rows + kMmaCols - 1) / kMmaCols;
  const int first_column = panel * kWeightColumns;
  const int columns_left = args.n - first_column;
  const int columns =
      columns_left < kWeightColumns ? columns_left : kWeightColumns;
  const uint16_t* a = args.a + int64_t{first_row} * args.k;
  CopyUnits<kType>(block, args, first_column, columns, 0, shared.blocks[0]);
  block.FinishCopies();
  for (int first = 0; first < args.k; first += kHalfUnit) {
    const int unit = first / kUnitWeights;
    const int half = first / kHalfUnit % 2;
    const int left = args.k - first;
    const int channels = left < kHalfUnit ? left : kHalfUnit;
    CopyRows(block, a + first, args.k, octets * kMmaCols, channels, shared.a);
    const int64_t begin = int64_t{unit} * UnitBytes(kType);
    UnpackHalfUnits<kType>(block, shared.blocks[unit % 2] + begin % 16, columns,
                           half, channels, shared.w);
    // Also of the blocks that a second half has begun to copy in its first.
    block.FinishCopies();
    if (half == 0 && first + kUnitWeights < args.k) {
      CopyUnits<kType>(block, args, first_column, columns, unit + 1,
                       shared.blocks[(unit + 1) % 2]);
    }
    block.ForWarps([&](auto& warp) {
      using Warp = std::remove_reference_t<decltype(warp)>;
      const uint16_t* w = shared.w + WarpColumn(warp.index()) * kHalfUnitStride;
      for (int at = 0; at < channels; at += kMmaDepth) {
        typename Warp::template PerLane<MmaA> columns_tile;
        warp.ForLanes([&](int lane) {
          columns_tile(lane) = LoadMmaA(w + at, kHalfUnitStride, lane);
        });
        XC_UNROLL
        for (int i = 0; i < kWarpOctets; ++i) {
          const int octet = WarpOctet(warp.index(), i);
          if (octet >= octets) continue;
          typename Warp::template PerLane<MmaB> rows_tile;
          warp.ForLanes([&](int lane) {
            rows_tile(lane) =
                LoadMmaB(shared.a + octet * kMmaCols * kHalfUnitStride + at,
                         kHalfUnitStride, lane);
          });
          warp.template Mma<HalfType::kBf16>(
              columns_tile, rows_tile, [&](int lane) -> MmaSums& {
                return sums(warp.index() * kWarpLanes + lane).of[i];
              });
        }
      }
    });
  }
  block.ForThreads([&](int thread) {
    const int warp = thread / kWarpLanes;
    XC_UNROLL
    for (int i = 0; i < kWarpOctets; ++i) {
      XC_UNROLL
      for (int e = 0; e < 4; ++e) {
        const MmaPlace place = MmaPlaceSum(thread % kWarpLanes, e);
        const int column = WarpColumn(warp) + place.row;
        const int row = WarpOctet(warp, i) * kMmaCols + place.col;
        if (column >= columns || row >= rows) continue;
        float* to = args.out + (int64_t{first_row} + row) * args.out_stride +
                    first_column + column;
        const float sum = sums(thread).of[i].of[e];
        *to = args.add ? *to + sum : sum;
      }
    }
  });
}

// A row of a quantized matrix as BF16.
template <typename Block>
XC_HOST_DEVICE void UnpackMatrixRow(Block& block, const UnpackArgs& args,
                                    int row) {
  const uint8_t* from = args.w.blocks + row * args.w.row_bytes;
  uint16_t* to = args.out + int64_t{row} * args.k;
  block.ForThreads([&](int thread) {
    for (int octet = thread; octet < args.k / 8; octet += kThreads) {
      float values[8] = {};
      WeightsOfRow(args.w.type, from, octet, values);
      StoreBf16Octet(to + 8 * octet, values);
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_QUANTIZED_WEIGHTS_H_
