// Body of the kernel that rematerializes K and V from codes, or from the sums
// of a cross-layer codec, at once: nothing but these, matrices and tiles
// touches global memory. A block of threads takes the 64 rows of one page and a
// panel of at most 128 columns, whole heads of K or of V, and goes over k in
// slices of 64 channels: to FP16 in shared memory, then a product on tensor
// cores. The sums stay in registers until the end.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_FUSED_REMAT_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_FUSED_REMAT_H_

#include <cstdint>
#include <type_traits>

#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/fused_slices.h"
#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

inline constexpr int kPanelColumns = kFusedHeadDim;
// Floats from a row of the finished product to the next: odd, so that columns
// are read as fast as rows.
inline constexpr int kPanelStride = kPanelColumns + 1;

// Each warp has 32 rows and half of the panel's columns.
inline constexpr int kWarpRowTiles = 2;
inline constexpr int kWarpColTiles = kPanelColumns / 2 / kMmaCols;
static_assert(kWarps == 4 && kWarpRowTiles * kMmaRows * 2 == kBlockTokens,
              "two by two warps");

struct alignas(16) FusedShared {
  struct Slice {
    uint16_t a[kBlockTokens * kOperandStride];   // [token][channel]
    uint16_t b[kPanelColumns * kOperandStride];  // [column][channel]
    float turn[kSliceChannels * kTurnStride];    // [channel][token]
  };
  union {
    Slice slice;
    float panel[kBlockTokens * kPanelStride];  // [token][column]
  };
};

// Heads of K or of V: which, and their columns in the product.
struct Panel {
  bool values = false;
  int first_head = 0;
  int num_heads = 0;
  int first_column = 0;
  int num_columns = 0;  // a multiple of 16
};
XC_HOST_DEVICE inline int PanelHeads(const KvLayout& layout) {
  return kPanelColumns / layout.head_dim;
}
// Panels of K, and as many of V.
XC_HOST_DEVICE inline int NumPanels(const KvLayout& layout) {
  return (layout.n_kv_heads + PanelHeads(layout) - 1) / PanelHeads(layout);
}
XC_HOST_DEVICE inline Panel PanelOf(const KvLayout& layout, int index) {
  Panel panel;
  panel.values = index >= NumPanels(layout);
  panel.first_head = index % NumPanels(layout) * PanelHeads(layout);
  const int left = layout.n_kv_heads - panel.first_head;
  panel.num_heads = left < PanelHeads(layout) ? left : PanelHeads(layout);
  panel.first_column =
      ((panel.values ? layout.n_kv_heads : 0) + panel.first_head) *
      layout.head_dim;
  panel.num_columns = panel.num_heads * layout.head_dim;
  return panel;
}
// Blocks of threads that a page needs: the panels, or K's panels and V's
// pieces.
XC_HOST_DEVICE inline int FusedParts(const FusedRematArgs& args) {
  const int panels = NumPanels(args.store.layout);
  return panels +
         (args.v.num_channels > 0 ? NumPieces(args.v.num_channels) : panels);
}

XC_HOST_DEVICE inline int FusedDepth(const FusedRematArgs& args) {
  if (args.sums != nullptr) return args.sums_width;
  return args.latent.entries != nullptr ? args.latent.num_channels
                                        : args.x.num_channels;
}
// First row and column of a warp's part of a panel, and its tiles of columns.
struct WarpPart {
  int row = 0;
  int col = 0;
  int col_tiles = 0;
};
XC_HOST_DEVICE inline WarpPart WarpPartOf(int warp, int num_columns) {
  const int half = num_columns / 2;
  return {warp / 2 * kWarpRowTiles * kMmaRows, warp % 2 * half,
          half / kMmaCols};
}

// Begins to copy a panel's rows of w, channels [64 slice, ..) of them, to `b`;
// beyond k there are zeros.
template <typename Block>
XC_HOST_DEVICE void LoadPanel(Block& block, const uint16_t* w, int k,
                              const Panel& panel, int slice, uint16_t* b) {
  const int first = slice * kSliceChannels;
  const int left = k - first;
  const int octets =
      PaddedChannels(left < kSliceChannels ? left : kSliceChannels) / 8;
  // Where rows of w begin at multiples of 16 bytes.
  const bool aligned = k % 8 == 0;
  block.ForThreads([&](int thread) {
    for (int unit = thread; unit < panel.num_columns * octets;
         unit += kThreads) {
      const int column = unit / octets;
      const int c = 8 * (unit % octets);
      const uint16_t* from =
          w + int64_t{panel.first_column + column} * k + first + c;
      uint16_t* to = b + column * kOperandStride + c;
      if (aligned && c < left) {
        block.CopyAsync(to, from);
        continue;
      }
      for (int i = 0; i < 8; ++i) {
        to[i] = c + i < left ? from[i] : uint16_t{0};
      }
    }
  });
}

// Rows, then biases and RoPE, and the tiles.
template <typename Block>
XC_HOST_DEVICE void StorePanel(Block& block, const StoreKvArgs& args, int index,
                               const Panel& panel, float* rows) {
  const BlockTarget& target = args.blocks[index];
  uint16_t* tiles = target.tiles + args.layer * target.layer_stride;
  const int head_dim = args.layout.head_dim;
  if (panel.values) {
    const float* bias =
        args.bv != nullptr ? args.bv + panel.first_head * head_dim : nullptr;
    block.ForThreads([&](int thread) {
      for (int e = thread; e < kBlockTokens * panel.num_columns;
           e += kThreads) {
        const int slot = e / panel.num_columns;
        const int column = e - slot * panel.num_columns;
        if (slot < target.first_row) continue;
        const int head = panel.first_head + column / head_dim;
        float value = rows[slot * kPanelStride + column];
        if (bias != nullptr) value = value + bias[column];
        tiles[VTile(args.layout, head) + slot * head_dim + column % head_dim] =
            F32ToF16(value);
      }
    });
    return;
  }
  // In place: a thread has both elements of a pair, or one that is not turned.
  const int half = args.rope_dim / 2;
  const int head_units = head_dim - half;
  const int row_units = panel.num_heads * head_units;
  block.ForThreads([&](int thread) {
    for (int e = thread; e < kBlockTokens * row_units; e += kThreads) {
      const int slot = e / row_units;
      const int unit = e - slot * row_units;
      const int head = unit / head_units;
      const int u = unit - head * head_units;
      float* row = rows + slot * kPanelStride + head * head_dim;
      const float* bias = args.bk != nullptr
                              ? args.bk + (panel.first_head + head) * head_dim
                              : nullptr;
      const int64_t angles = (int64_t{target.first_position} + slot) * half;
      const float* cos = args.cos + angles;
      const float* sin = args.sin + angles;
      if (u >= half) {
        row[half + u] = RotatedElement(args, row, bias, half + u, cos, sin);
        continue;
      }
      const bool interleaved = args.rope_order == RopeOrder::kInterleaved;
      const int i = interleaved ? 2 * u : u;
      const int j = interleaved ? 2 * u + 1 : u + half;
      const float first = RotatedElement(args, row, bias, i, cos, sin);
      const float second = RotatedElement(args, row, bias, j, cos, sin);
      row[i] = first;
      row[j] = second;
    }
  });
  block.ForThreads([&](int thread) {
    for (int e = thread; e < kBlockTokens * panel.num_columns; e += kThreads) {
      const int column = e / kBlockTokens;
      const int slot = e % kBlockTokens;
      if (slot < target.first_row) continue;
      const int head = panel.first_head + column / head_dim;
      tiles[KTile(args.layout, head) + column % head_dim * kBlockTokens +
            slot] = F32ToF16(rows[slot * kPanelStride + column]);
    }
  });
}

template <typename Block>
XC_HOST_DEVICE void RematPanel(Block& block, const FusedRematArgs& args,
                               int index, const Panel& panel,
                               FusedShared& shared) {
  struct Sums {
    MmaSums of[kWarpRowTiles][kWarpColTiles];
  };
  typename Block::template PerThread<Sums> sums;
  FusedShared::Slice& s = shared.slice;
  const int k = FusedDepth(args);
  for (int slice = 0; slice * kSliceChannels < k; ++slice) {
    LoadPanel(block, args.w, k, panel, slice, s.b);
    if (args.sums != nullptr) {
      RoundSumsSlice(block, args, index, slice, s.a);
    } else if (args.latent.entries != nullptr) {
      DecodeChannelSlice(block, args.latent, args.payloads[index],
                         args.invalid + index, slice, s.a);
    } else {
      DecodeTokenSlice(block, args.x, args.payloads[index],
                       args.invalid + index, slice, nullptr, s.turn, s.a);
    }
    block.FinishCopies();
    const int left = k - slice * kSliceChannels;
    const int depth =
        PaddedChannels(left < kSliceChannels ? left : kSliceChannels);
    block.ForWarps([&](auto& warp) {
      using Warp = std::remove_reference_t<decltype(warp)>;
      const WarpPart part = WarpPartOf(warp.index(), panel.num_columns);
      const uint16_t* a = s.a + part.row * kOperandStride;
      const uint16_t* b = s.b + part.col * kOperandStride;
      for (int at = 0; at < depth; at += kMmaDepth) {
        typename Warp::template PerLane<MmaA> left_tiles[kWarpRowTiles];
        XC_UNROLL
        for (int r = 0; r < kWarpRowTiles; ++r) {
          warp.ForLanes([&](int lane) {
            left_tiles[r](lane) = LoadMmaA(
                a + r * kMmaRows * kOperandStride + at, kOperandStride, lane);
          });
        }
        XC_UNROLL
        for (int c = 0; c < kWarpColTiles; ++c) {
          if (c >= part.col_tiles) continue;
          typename Warp::template PerLane<MmaB> right_tile;
          warp.ForLanes([&](int lane) {
            right_tile(lane) = LoadMmaB(b + c * kMmaCols * kOperandStride + at,
                                        kOperandStride, lane);
          });
          XC_UNROLL
          for (int r = 0; r < kWarpRowTiles; ++r) {
            warp.template Mma<HalfType::kF16>(
                left_tiles[r], right_tile, [&](int lane) -> MmaSums& {
                  return sums(warp.index() * kWarpLanes + lane).of[r][c];
                });
          }
        }
      }
    });
  }
  block.ForThreads([&](int thread) {
    const int lane = thread % kWarpLanes;
    const WarpPart part = WarpPartOf(thread / kWarpLanes, panel.num_columns);
    XC_UNROLL
    for (int r = 0; r < kWarpRowTiles; ++r) {
      XC_UNROLL
      for (int c = 0; c < kWarpColTiles; ++c) {
        if (c >= part.col_tiles) continue;
        XC_UNROLL
        for (int i = 0; i < 4; ++i) {
          const MmaPlace place = MmaPlaceSum(lane, i);
          shared.panel[(part.row + r * kMmaRows + place.row) * kPanelStride +
                       part.col + c * kMmaCols + place.col] =
              sums(thread).of[r][c].of[i];
        }
      }
    }
  });
  StorePanel(block, args.store, index, panel, shared.panel);
}

// 64 channels of V without a product.
template <typename Block>
XC_HOST_DEVICE void RematValues(Block& block, const FusedRematArgs& args,
                                int index, int piece, FusedShared& shared) {
  const StoreKvArgs& store = args.store;
  const int first = piece * kSliceChannels;
  const int left = args.v.num_channels - first;
  const int channels = left < kSliceChannels ? left : kSliceChannels;
  FusedShared::Slice& s = shared.slice;
  DecodeTokenSlice(block, args.v, args.payloads[index], args.invalid + index,
                   piece, store.bv, s.turn, s.a);
  const BlockTarget& target = store.blocks[index];
  uint16_t* tiles = target.tiles + store.layer * target.layer_stride;
  const int head_dim = store.layout.head_dim;
  block.ForThreads([&](int thread) {
    for (int e = thread; e < kBlockTokens * kSliceChannels; e += kThreads) {
      const int slot = e / kSliceChannels;
      const int c = e % kSliceChannels;
      if (c >= channels || slot < target.first_row) continue;
      tiles[VTile(store.layout, (first + c) / head_dim) + slot * head_dim +
            (first + c) % head_dim] = s.a[slot * kOperandStride + c];
    }
  });
}

// Part `part` of FusedParts of the page `index`.
template <typename Block>
XC_HOST_DEVICE void FusedRematPart(Block& block, const FusedRematArgs& args,
                                   int index, int part, FusedShared& shared) {
  const int values = part - NumPanels(args.store.layout);
  if (args.v.num_channels > 0 && values >= 0) {
    RematValues(block, args, index, values, shared);
  } else {
    RematPanel(block, args, index, PanelOf(args.store.layout, part), shared);
  }
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_FUSED_REMAT_H_
