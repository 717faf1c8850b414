// The left operand of the fused kernel's product (fused_remat.h), a slice of 64
// channels at a time: codes, or the sums of a cross-layer codec, to FP16 in
// shared memory.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_FUSED_SLICES_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_FUSED_SLICES_H_

#include <cstdint>

#include "engine/device/kernels/dequantize.h"
#include "engine/device/kernels/math.h"
#include "engine/device/kernels/mma_fragments.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

// A rotation's piece is a slice of k.
inline constexpr int kSliceChannels = kPieceChannels;
inline constexpr int kSliceOctets = kSliceChannels / 8;
// Elements from a row of an operand in shared memory to the next: with 36 words
// the lanes of a fragment, 8 rows of 4 words, are in 32 different banks.
inline constexpr int kOperandStride = kSliceChannels + 8;
// Floats from a channel to the next where rows are turned: neighbouring tokens
// are in different banks, and so are 8 channels of 4 tokens each.
inline constexpr int kTurnStride = kBlockTokens + 4;

// Channels of a slice, rounded up to steps of the product.
XC_HOST_DEVICE inline int PaddedChannels(int channels) {
  return (channels + kMmaDepth - 1) / kMmaDepth * kMmaDepth;
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

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_FUSED_SLICES_H_
