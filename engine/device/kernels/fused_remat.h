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
#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/kernels/rows.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

inline constexpr int kPanelColumns = kFusedHeadDim;
// A rotation's piece is a slice of k.
inline constexpr int kSliceChannels = kPieceChannels;
inline constexpr int kSliceOctets = kSliceChannels / 8;
// Elements from a row of an operand in shared memory to the next: with 36 words
// the lanes of a fragment, 8 rows of 4 words, are in 32 different banks.
inline constexpr int kOperandStride = kSliceChannels + 8;
// Floats from a channel to the next where rows are turned: neighbouring tokens
// are in different banks, and so are 8 channels of 4 tokens each.
inline constexpr int kTurnStride = kBlockTokens + 4;
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
// Channels of a slice, rounded up to steps of the product.
XC_HOST_DEVICE inline int PaddedChannels(int channels) {
  return (channels + kMmaDepth - 1) / kMmaDepth * kMmaDepth;
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

// One stage of the Hadamard transform at distance step * stride among 8 values,
// value j of which is channel first + j * stride of `channels`.
XC_HOST_DEVICE inline void ButterflyStage(int step, int first, int stride,
                                          int channels, float* values) {
  const bool whole = channels == kSliceChannels;  // one piece
  XC_UNROLL
  for (int j = 0; j < 8; ++j) {
    if ((j & step) != 0) continue;
    const int c = first + j * stride;
    if (!whole &&
        (c >= channels || step * stride >= PieceOf(c, channels).size)) {
      continue;
    }
    const float a = values[j], b = values[j + step];
    values[j] = a + b;
    values[j + step] = a - b;
  }
}

// Channels [64 slice, ..) of all tokens of a matrix with scales per token, what
// DecodeTokenPiece gives, plus `bias` where it is not null ([num_channels]), as
// FP16 to `out` [token][channel in the slice], and zeros up to PaddedChannels.
// A rotation's piece begins at a multiple of its size, so the stages at
// distances 1, 2 and 4 stay in an octet, and the others among the channels of
// equal remainder: two passes of three stages each in registers, through
// `turn`.
template <typename Block>
XC_HOST_DEVICE void DecodeTokenSlice(Block& block, const TokenMatrix& m,
                                     const uint8_t* payload, int32_t* invalid,
                                     int slice, const float* bias, float* turn,
                                     uint16_t* out) {
  const uint8_t* in = payload + m.offset;
  const int first = slice * kSliceChannels;
  const int left = m.num_channels - first;
  const int channels = left < kSliceChannels ? left : kSliceChannels;
  const int padded = PaddedChannels(channels);
  const int scale_bytes = m.fp8 ? 1 : 2;
  const ScaleCodes scale_codes = LoadScaleCodes(in, m.fp8);
  if (m.fp8) in += 4;
  const int64_t tile_bytes =
      int64_t{kBlockTokens} * (2 * scale_bytes + (m.group + 7) / 8 * m.bits);
  block.ForThreads([&](int thread) {
    // All of a thread's octets are of one token, and most of one group.
    const int token = thread % kBlockTokens;
    int grid_tile = -1;
    Grid grid;
    for (int octet = thread / kBlockTokens; octet < padded / 8;
         octet += kThreads / kBlockTokens) {
      float values[8] = {};
      if (8 * octet < channels) {
        const int channel = first + 8 * octet;
        const int tile = channel / m.group;
        const int tile_first = tile * m.group;
        const int tile_left = m.num_channels - tile_first;
        const TileShape shape{tile_left < m.group ? tile_left : m.group,
                              kBlockTokens, m.bits};
        const uint8_t* scales = in + tile * tile_bytes;
        if (tile != grid_tile) {
          grid = LoadGrid(scales, kBlockTokens, token, m.bits, scale_codes);
          if (!grid.valid) *invalid = 1;
          grid_tile = tile;
        }
        const uint64_t codes =
            CodesOfOctet(scales + 2 * scale_bytes * kBlockTokens, shape,
                         (channel - tile_first) / 8, token);
        XC_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (8 * octet + i >= channels) continue;
          values[i] = grid.base + grid.step * CodeAsFloat(codes, i);
        }
      }
      if (m.rotated) {
        XC_UNROLL
        for (int step = 1; step < 8; step *= 2) {
          ButterflyStage(step, 8 * octet, 1, channels, values);
        }
        XC_UNROLL
        for (int i = 0; i < 8; ++i) {
          turn[(8 * octet + i) * kTurnStride + token] = values[i];
        }
        continue;
      }
      if (bias != nullptr) {
        XC_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (8 * octet + i >= channels) continue;
          values[i] = values[i] + bias[first + 8 * octet + i];
        }
      }
      StoreOctet(out + token * kOperandStride + 8 * octet, values);
    }
  });
  if (!m.rotated) return;
  block.ForThreads([&](int thread) {
    // And all of these have the same remainder.
    const int rest = thread % 8;
    float factors[kSliceOctets], biases[kSliceOctets];
    XC_UNROLL
    for (int j = 0; j < kSliceOctets; ++j) {
      const int c = rest + 8 * j;
      factors[j] = 0.0f;
      biases[j] = 0.0f;
      if (c >= channels) continue;
      const float sign = RotationNegates(first + c) ? -1.0f : 1.0f;
      factors[j] = sign / static_cast<float>(PieceOf(c, channels).size);
      if (bias != nullptr) biases[j] = bias[first + c];
    }
    for (int token = thread / 8; token < kBlockTokens; token += kThreads / 8) {
      float values[kSliceOctets];
      XC_UNROLL
      for (int j = 0; j < kSliceOctets; ++j) {
        const int c = rest + 8 * j;
        values[j] = c < padded ? turn[c * kTurnStride + token] : 0.0f;
      }
      XC_UNROLL
      for (int step = 1; step < 8; step *= 2) {
        ButterflyStage(step, rest, 8, channels, values);
      }
      XC_UNROLL
      for (int j = 0; j < kSliceOctets; ++j) {
        const int c = rest + 8 * j;
        if (c >= padded) continue;
        float value = c < channels ? values[j] * factors[j] : 0.0f;
        if (bias != nullptr) value = value + biases[j];
        out[token * kOperandStride + c] = F32ToF16(value);
      }
    }
  });
}

// The same of a matrix with scales per channel, what DecodeChannelPart gives.
template <typename Block>
XC_HOST_DEVICE void DecodeChannelSlice(Block& block, const ChannelMatrix& m,
                                       const uint8_t* payload, int32_t* invalid,
                                       int slice, uint16_t* out) {
  static_assert(kThreads % kSliceChannels == 0, "a thread has one channel");
  const uint8_t* in = payload + m.offset;
  const int first = slice * kSliceChannels;
  const int left = m.num_channels - first;
  const int channels = left < kSliceChannels ? left : kSliceChannels;
  const int padded = PaddedChannels(channels);
  const int scale_bytes = m.fp8 ? 1 : 2;
  const ScaleCodes scale_codes = LoadScaleCodes(in, m.fp8);
  block.ForThreads([&](int thread) {
    const int c = thread % kSliceChannels;
    if (c >= padded) return;
    int grid_group = -1;
    ChannelEntry entry;
    Grid grid;
    for (int octet = thread / kSliceChannels; octet < kOctets;
         octet += kThreads / kSliceChannels) {
      float values[8] = {};
      if (c < channels) {
        const int row_group = 8 * octet / m.group;
        const int group_first = row_group * m.group;
        const int group_left = kBlockTokens - group_first;
        if (row_group != grid_group) {
          entry = m.entries[int64_t{row_group} * m.num_channels + first + c];
          grid = LoadGrid(in + entry.tile_offset, entry.tile_cols, entry.col,
                          entry.bits, scale_codes);
          if (!grid.valid) *invalid = 1;
          grid_group = row_group;
        }
        const TileShape shape{group_left < m.group ? group_left : m.group,
                              entry.tile_cols, entry.bits};
        const uint64_t codes = CodesOfOctet(
            in + entry.tile_offset + 2 * scale_bytes * entry.tile_cols, shape,
            (8 * octet - group_first) / 8, entry.col);
        XC_UNROLL
        for (int i = 0; i < 8; ++i) {
          values[i] = grid.base + grid.step * CodeAsFloat(codes, i);
        }
      }
      uint16_t* to = out + 8 * octet * kOperandStride + c;
      XC_UNROLL
      for (int i = 0; i < 8; i += 2) {
        const uint32_t pair = PackHalves(values[i], values[i + 1]);
        to[i * kOperandStride] = static_cast<uint16_t>(pair & 0xffffu);
        to[(i + 1) * kOperandStride] = static_cast<uint16_t>(pair >> 16);
      }
    }
  });
}

// The same of a page's sums, what RoundSumsRow gives.
template <typename Block>
XC_HOST_DEVICE void RoundSumsSlice(Block& block, const FusedRematArgs& args,
                                   int index, int slice, uint16_t* out) {
  static_assert(kThreads % kSliceChannels == 0, "a thread has one channel");
  const int first = slice * kSliceChannels;
  const int left = args.sums_width - first;
  const int channels = left < kSliceChannels ? left : kSliceChannels;
  const int padded = PaddedChannels(channels);
  const float* sums =
      args.sums + int64_t{index} * kBlockTokens * args.sums_width + first;
  const int first_row = args.store.blocks[index].first_row;
  block.ForThreads([&](int thread) {
    const int c = thread % kSliceChannels;
    if (c >= padded) return;
    for (int token = thread / kSliceChannels; token < kBlockTokens;
         token += kThreads / kSliceChannels) {
      const float sum =
          c < channels ? sums[int64_t{token} * args.sums_width + c] : 0.0f;
      if (token >= first_row && !IsFinite(sum)) args.invalid[index] = 1;
      out[token * kOperandStride + c] = F32ToF16(sum);
    }
  });
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
      const bool interleaved = args.pairing == RopePairing::kInterleaved;
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
