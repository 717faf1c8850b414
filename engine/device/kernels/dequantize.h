// Bodies of the kernels that turn codes of pages (PAGE_FORMAT.md) back into
// rows: unpack, dequantize and, for matrices with scales per token, the inverse
// rotation and the transposition. The same bits as the CPU's codecs give.
#ifndef XCACHE_ENGINE_DEVICE_KERNELS_DEQUANTIZE_H_
#define XCACHE_ENGINE_DEVICE_KERNELS_DEQUANTIZE_H_

#include <cstdint>

#include "engine/device/kernels/math.h"
#include "engine/device/kernels/packed_tile.h"
#include "engine/device/kernels/thread_block.h"
#include "engine/device/ops.h"
#include "engine/types.h"

namespace xcache::cuda {

// Channels that one block of threads decodes: the largest piece of a rotation.
inline constexpr int kPieceChannels = 64;
// Rows of 64 tokens with one float of padding, so that a column's elements lie
// in different banks.
inline constexpr int kPieceStride = kBlockTokens + 1;
inline constexpr int kPieceFloats = kPieceChannels * kPieceStride;
inline constexpr int kOctets = kBlockTokens / 8;

XC_HOST_DEVICE inline uint16_t LoadHalf(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}

// How a matrix keeps its scales: as FP16, or as E4M3 times the multipliers that
// it begins with.
struct ScaleCodes {
  bool fp8 = false;
  float step_multiplier = 1.0f;
  float centre_multiplier = 1.0f;
};
XC_HOST_DEVICE inline ScaleCodes LoadScaleCodes(const uint8_t* matrix,
                                                bool fp8) {
  ScaleCodes codes;
  codes.fp8 = fp8;
  if (fp8) {
    codes.step_multiplier = F16ToF32(LoadHalf(matrix));
    codes.centre_multiplier = F16ToF32(LoadHalf(matrix + 2));
  }
  return codes;
}

// Step and base of one group of a tile whose scales start at `scales`.
struct Grid {
  float step = 0.0f;
  float base = 0.0f;
  bool valid = false;
};
XC_HOST_DEVICE inline Grid LoadGrid(const uint8_t* scales, int num_cols,
                                    int col, int bits,
                                    const ScaleCodes& codes) {
  float step, centre;
  if (codes.fp8) {
    step = E4m3ToF32(scales[col]) * codes.step_multiplier;
    centre = E4m3ToF32(scales[num_cols + col]) * codes.centre_multiplier;
  } else {
    step = F16ToF32(LoadHalf(scales + 2 * col));
    centre = F16ToF32(LoadHalf(scales + 2 * (num_cols + col)));
  }
  const float half_levels = 0.5f * static_cast<float>((1 << bits) - 1);
  Grid grid;
  grid.valid = step >= 0.0f && IsFinite(step) && IsFinite(centre);
  grid.step = step;
  grid.base = centre - step * half_levels;
  return grid;
}

XC_HOST_DEVICE inline void StoreRow(const DecodeArgs& args, int64_t row,
                                    int channel, float value) {
  const int64_t at = row * args.out_stride + channel;
  if (args.out != nullptr) {
    args.out[at] = args.add ? args.out[at] + value : value;
  }
  if (args.out_f16 != nullptr) args.out_f16[at] = F32ToF16(value);
}

// Bit 0 of SplitMix64's finalizer: whether a rotation turns the channel's sign.
XC_HOST_DEVICE inline bool RotationNegates(int channel) {
  uint64_t z = static_cast<uint64_t>(channel) + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return ((z ^ (z >> 31)) & 1) != 0;
}

// Of the channels from a multiple of 64 on, `left` of them at most 64: where
// the rotation's piece that channel `c` is in begins, and how long it is.
struct Piece {
  int first = 0;
  int size = 0;
};
XC_HOST_DEVICE inline Piece PieceOf(int c, int left) {
  Piece piece;
  piece.size = kPieceChannels;
  while (true) {
    while (piece.size > left - piece.first) piece.size /= 2;
    if (c < piece.first + piece.size) return piece;
    piece.first += piece.size;
  }
}

XC_HOST_DEVICE inline int NumPieces(int num_channels) {
  return (num_channels + kPieceChannels - 1) / kPieceChannels;
}

// One stage of the Hadamard transform, at distance `half`, of each piece of
// `channels` channels (at most 64) that lie in `shared`.
template <typename Block>
XC_HOST_DEVICE void HadamardStage(Block& block, int half, int channels,
                                  float* shared) {
  block.ForThreads([&](int thread) {
    for (int e = thread; e < channels * kBlockTokens; e += kThreads) {
      const int c = e / kBlockTokens;
      const int token = e % kBlockTokens;
      const Piece p = PieceOf(c, channels);
      if (half >= p.size || ((c - p.first) & half) != 0) continue;
      float& a = shared[c * kPieceStride + token];
      float& b = shared[(c + half) * kPieceStride + token];
      const float sum = a + b;
      b = a - b;
      a = sum;
    }
  });
}

// 64 channels (or what is left of them) of all tokens of one block. `shared`:
// kPieceFloats.
template <typename Block>
XC_HOST_DEVICE void DecodeTokenPiece(Block& block, const TokenMatrix& m,
                                     const DecodeArgs& args, int index,
                                     int piece, float* shared) {
  const uint8_t* in = args.payloads[index] + m.offset;
  const int first = piece * kPieceChannels;
  const int left = m.num_channels - first;
  const int channels = left < kPieceChannels ? left : kPieceChannels;
  const int scale_bytes = m.fp8 ? 1 : 2;
  const ScaleCodes scale_codes = LoadScaleCodes(in, m.fp8);
  if (m.fp8) in += 4;
  // Every tile before the last has `group` channels.
  const int64_t tile_bytes =
      int64_t{kBlockTokens} * (2 * scale_bytes + (m.group + 7) / 8 * m.bits);
  const int num_octets = (channels + 7) / 8;
  block.ForThreads([&](int thread) {
    for (int unit = thread; unit < num_octets * kBlockTokens;
         unit += kThreads) {
      const int octet = unit / kBlockTokens;
      const int token = unit % kBlockTokens;
      const int channel = first + 8 * octet;
      const int tile = channel / m.group;
      const int tile_first = tile * m.group;
      const int tile_left = m.num_channels - tile_first;
      const TileShape shape{tile_left < m.group ? tile_left : m.group,
                            kBlockTokens, m.bits};
      const uint8_t* scales = in + tile * tile_bytes;
      const Grid grid =
          LoadGrid(scales, kBlockTokens, token, m.bits, scale_codes);
      if (!grid.valid) args.invalid[index] = 1;
      const uint64_t codes =
          CodesOfOctet(scales + 2 * scale_bytes * kBlockTokens, shape,
                       (channel - tile_first) / 8, token);
      for (int i = 0; i < 8 && 8 * octet + i < channels; ++i) {
        shared[(8 * octet + i) * kPieceStride + token] =
            grid.base + grid.step * static_cast<float>(CodeOf(codes, i));
      }
    }
  });
  if (m.rotated) {
    for (int half = 1; half < kPieceChannels; half *= 2) {
      HadamardStage(block, half, channels, shared);
    }
  }
  block.ForThreads([&](int thread) {
    for (int e = thread; e < channels * kBlockTokens; e += kThreads) {
      const int token = e / channels;
      const int c = e - token * channels;
      float value = shared[c * kPieceStride + token];
      if (m.rotated) {
        const float sign = RotationNegates(first + c) ? -1.0f : 1.0f;
        value = value * (sign / static_cast<float>(PieceOf(c, channels).size));
      }
      StoreRow(args, int64_t{index} * kBlockTokens + token, first + c, value);
    }
  });
}

// kThreads channels of eight tokens of one block.
template <typename Block>
XC_HOST_DEVICE void DecodeChannelPart(Block& block, const ChannelMatrix& m,
                                      const DecodeArgs& args, int index,
                                      int octet, int part) {
  const uint8_t* in = args.payloads[index] + m.offset;
  const int scale_bytes = m.fp8 ? 1 : 2;
  const ScaleCodes scale_codes = LoadScaleCodes(in, m.fp8);
  const int row_group = 8 * octet / m.group;
  const int group_first = row_group * m.group;
  const int group_left = kBlockTokens - group_first;
  block.ForThreads([&](int thread) {
    const int channel = part * kThreads + thread;
    if (channel >= m.num_channels) return;
    const ChannelEntry entry =
        m.entries[int64_t{row_group} * m.num_channels + channel];
    const TileShape shape{group_left < m.group ? group_left : m.group,
                          entry.tile_cols, entry.bits};
    const uint8_t* scales = in + entry.tile_offset;
    const Grid grid =
        LoadGrid(scales, entry.tile_cols, entry.col, entry.bits, scale_codes);
    if (!grid.valid) args.invalid[index] = 1;
    const uint64_t codes =
        CodesOfOctet(scales + 2 * scale_bytes * entry.tile_cols, shape,
                     (8 * octet - group_first) / 8, entry.col);
    for (int i = 0; i < 8; ++i) {
      StoreRow(args, int64_t{index} * kBlockTokens + 8 * octet + i, channel,
               grid.base + grid.step * static_cast<float>(CodeOf(codes, i)));
    }
  });
}

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_DEVICE_KERNELS_DEQUANTIZE_H_
