// The device's codec kernels against the CPU's coders: decoding gives the CPU's
// values and sealing the CPU's bytes, bit for bit, on every device.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/device/codecs/codec.h"
#include "engine/device/codecs/matrices.h"
#include "engine/device/kernels/dequantize.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/tile_coder.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

using DeviceCodecOpsTest = DeviceOpsTest;

std::vector<Tile> TilesOf(const TokenMatrix& m) {
  return PerTokenTiles(m.num_channels, kBlockTokens, m.group, m.bits);
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceCodecOpsTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

// Encodes random rows by the CPU's coder, decodes on the device and on the CPU.
TEST_P(DeviceCodecOpsTest, MatricesPerTokenDecodeToTheCpusBits) {
  for (int channels : {16, 64, 72, 80, 192, 576}) {
    for (int bits : {2, 3, 4, 8}) {
      for (int group : {16, 32, 64, 128}) {
        for (ScaleFormat scales : {ScaleFormat::kF16, ScaleFormat::kF8}) {
          for (bool rotate : {false, true}) {
            QuantOptions quant;
            quant.bits = bits;
            quant.group = group;
            quant.scales = scales;
            quant.search = false;
            const BlockCoder coder(
                PerTokenMatrix(channels, quant, quant.bits, rotate), quant,
                Isa::kRef);
            const auto n = static_cast<size_t>(kBlockTokens * channels);
            TokenMatrix matrix;
            matrix.offset = 3;  // payloads have no alignment
            matrix.num_channels = channels;
            matrix.group = group;
            matrix.bits = bits;
            matrix.fp8 = scales == ScaleFormat::kF8;
            matrix.rotated = rotate;
            ASSERT_EQ(MakeTileUnits(TilesOf(matrix), matrix.fp8).bytes,
                      coder.bytes());
            std::vector<std::vector<uint8_t>> payloads;
            std::vector<float> expected;
            for (int first_row : {4, 0}) {
              payloads.emplace_back(3 + coder.bytes());
              coder.Encode(Random(n).data(), first_row,
                           payloads.back().data() + 3);
              std::vector<float> rows(n);
              ASSERT_TRUE(
                  coder.Decode(payloads.back().data() + 3, rows.data()).ok());
              expected.insert(expected.end(), rows.begin(), rows.end());
            }
            Array<uint8_t> first(*ops_, payloads[0]),
                second(*ops_, payloads[1]);
            Array<const uint8_t*> table(*ops_, {first.get(), second.get()});
            Array<int32_t> invalid(*ops_, {0, 0});
            Array<float> out(*ops_, std::vector<float>(2 * n));
            DecodeArgs args;
            args.payloads = table.get();
            args.out = out.get();
            args.out_stride = channels;
            args.invalid = invalid.get();
            args.num_blocks = 2;
            ops_->DecodeTokens(matrix, args);
            ASSERT_EQ(out.ToHost(), expected)
                << channels << " channels, " << bits << " bits, group " << group
                << ", rotate " << rotate;
            EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 0}));
          }
        }
      }
    }
  }
}

TEST_P(DeviceCodecOpsTest, AScaleThatIsNoneIsReported) {
  const int channels = 64;
  QuantOptions quant;
  quant.scales = ScaleFormat::kF16;
  const BlockCoder coder(PerTokenMatrix(channels, quant, quant.bits, false),
                         quant, Isa::kRef);
  TokenMatrix matrix;
  matrix.num_channels = channels;
  matrix.group = quant.group;
  matrix.bits = quant.bits;
  std::vector<uint8_t> good(coder.bytes());
  coder.Encode(Random(kBlockTokens * channels).data(), 0, good.data());
  // Step 5 negative; centre 9 infinite; step 63 not a number.
  const std::vector<std::pair<size_t, uint16_t>> faults = {
      {5, 0xbc00}, {64 + 9, 0x7c00}, {63, 0x7e01}};
  for (const auto& [at, bits] : faults) {
    std::vector<uint8_t> bad = good;
    bad[2 * at] = static_cast<uint8_t>(bits);
    bad[2 * at + 1] = static_cast<uint8_t>(bits >> 8);
    std::vector<float> rows(kBlockTokens * channels);
    EXPECT_FALSE(coder.Decode(bad.data(), rows.data()).ok());
    Array<uint8_t> first(*ops_, good), second(*ops_, bad);
    Array<const uint8_t*> table(*ops_, {first.get(), second.get()});
    Array<int32_t> invalid(*ops_, {0, 0});
    Array<uint16_t> out(*ops_,
                        std::vector<uint16_t>(2 * kBlockTokens * channels));
    DecodeArgs args;
    args.payloads = table.get();
    args.out_f16 = out.get();
    args.out_stride = channels;
    args.invalid = invalid.get();
    args.num_blocks = 2;
    ops_->DecodeTokens(matrix, args);
    EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 1}));
  }
}

// Both directions of a matrix with scales per channel, of every width, against
// the CPU's coder: its very bytes, its very values.
TEST_P(DeviceCodecOpsTest, MatricesPerChannelAreTheCpusBothWays) {
  for (int channels : {16, 130, 192, 300}) {
    for (int group : {16, 32, 64, 128}) {
      for (ScaleFormat format : {ScaleFormat::kF16, ScaleFormat::kF8}) {
        for (bool search : {false, true}) {
          const auto k = static_cast<size_t>(channels);
          std::vector<int> widths(k);
          for (size_t c = 0; c < k; ++c) {
            widths[c] = 1 + static_cast<int>(c / 16 % 8);
          }
          const bool fp8 = format == ScaleFormat::kF8;
          const std::vector<Tile> tiles =
              PerChannelTiles(widths, kBlockTokens, group);
          const TileCoder coder(format, search, Isa::kRef);
          const TileUnits units = MakeTileUnits(tiles, fp8);
          ASSERT_EQ(units.bytes, coder.Bytes(tiles));
          const size_t n = kBlockTokens * k;
          const std::vector<float> x = Random(2 * n, 2.0f);
          std::vector<uint8_t> expected;
          std::vector<float> rows;
          for (size_t b = 0; b < 2; ++b) {
            std::vector<uint8_t> bytes(coder.Bytes(tiles));
            coder.Encode(tiles, x.data() + b * n, channels,
                         b == 0 ? kSinkTokens : 0, bytes.data());
            expected.insert(expected.end(), bytes.begin(), bytes.end());
            rows.resize((b + 1) * n);
            ASSERT_TRUE(
                coder.Decode(tiles, bytes.data(), rows.data() + b * n, channels)
                    .ok());
          }

          Array<float> device_x(*ops_, x);
          Array<TileUnit> device_units(*ops_, units.units);
          Array<uint8_t> out(*ops_, std::vector<uint8_t>(expected.size(), 9));
          std::vector<SealSource> sources(2);
          for (size_t b = 0; b < 2; ++b) {
            sources[b].payload = out.get() + b * coder.Bytes(tiles);
            sources[b].first_row = b == 0 ? kSinkTokens : 0;
          }
          Array<SealSource> device_sources(*ops_, sources);
          Array<float> ranges(*ops_,
                              std::vector<float>(4 * units.units.size(), 1e9f));
          QuantizeArgs quantize;
          quantize.sources = device_sources.get();
          quantize.units = device_units.get();
          quantize.x = device_x.get();
          quantize.x_block = static_cast<int64_t>(n);
          quantize.x_stride = channels;
          quantize.ranges = ranges.get();
          quantize.num_blocks = 2;
          quantize.num_units = static_cast<int>(units.units.size());
          quantize.rows_are_tokens = true;
          quantize.fp8 = fp8;
          quantize.search = search;
          ops_->Quantize(quantize);
          ASSERT_TRUE(out.ToHost() == expected)
              << channels << " channels, group " << group << ", fp8 " << fp8
              << ", search " << search;

          ChannelMatrix matrix;
          matrix.num_channels = channels;
          matrix.group = std::min(group, kBlockTokens);
          matrix.fp8 = fp8;
          std::vector<ChannelEntry> entries(
              static_cast<size_t>(kBlockTokens / matrix.group) * k);
          for (const TileUnit& unit : units.units) {
            for (int c = 0; c < unit.num_cols; ++c) {
              entries[static_cast<size_t>(unit.first_row / matrix.group) * k +
                      static_cast<size_t>(unit.first_col + c)] = {
                  unit.tile_offset, unit.tile_cols, unit.col + c, unit.bits};
            }
          }
          Array<ChannelEntry> device_entries(*ops_, entries);
          matrix.entries = device_entries.get();
          Array<const uint8_t*> payloads(
              *ops_, {out.get(), out.get() + coder.Bytes(tiles)});
          Array<float> decoded(*ops_, std::vector<float>(2 * n));
          Array<int32_t> invalid(*ops_, {0, 0});
          DecodeArgs decode;
          decode.payloads = payloads.get();
          decode.out = decoded.get();
          decode.out_stride = channels;
          decode.invalid = invalid.get();
          decode.num_blocks = 2;
          ops_->DecodeChannels(matrix, decode);
          ASSERT_TRUE(decoded.ToHost() == rows) << channels << ", " << group;
          EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 0}));
        }
      }
    }
  }
}

TEST_P(DeviceCodecOpsTest, MatricesPerTokenEncodeToTheCpusBytes) {
  for (int channels : {16, 72, 192, 576}) {
    for (int group : {16, 64, 128}) {
      for (int bits : {2, 3, 4, 8}) {
        for (bool refined : {false, true}) {
          QuantOptions quant;
          quant.bits = bits;
          quant.group = group;
          quant.search = refined;
          quant.scales = refined ? ScaleFormat::kF8 : ScaleFormat::kF16;
          const BlockCoder coder(
              PerTokenMatrix(channels, quant, quant.bits, refined), quant,
              Isa::kRef);
          const auto n = static_cast<size_t>(kBlockTokens * channels);
          const std::vector<float> x = Random(2 * n, 3.0f);
          std::vector<uint8_t> expected;
          for (size_t b = 0; b < 2; ++b) {
            std::vector<uint8_t> bytes(coder.bytes());
            coder.Encode(x.data() + b * n, b == 0 ? kSinkTokens : 0,
                         bytes.data());
            expected.insert(expected.end(), bytes.begin(), bytes.end());
          }
          TokenMatrix matrix;
          matrix.num_channels = channels;
          matrix.group = group;
          matrix.bits = bits;
          matrix.fp8 = refined;
          const TileUnits units = MakeTileUnits(TilesOf(matrix), refined);
          Array<float> device_x(*ops_, x);
          Array<TileUnit> device_units(*ops_, units.units);
          Array<uint8_t> out(*ops_, std::vector<uint8_t>(expected.size()));
          std::vector<SealSource> sources(2);
          for (size_t b = 0; b < 2; ++b) {
            sources[b].rows = device_x.get() + b * n;
            sources[b].payload = out.get() + b * coder.bytes();
            sources[b].first_row = b == 0 ? kSinkTokens : 0;
          }
          Array<SealSource> device_sources(*ops_, sources);
          Array<float> columns(*ops_, std::vector<float>(2 * n));
          Array<float> ranges(*ops_,
                              std::vector<float>(4 * units.units.size()));
          Array<int32_t> invalid(*ops_, {0, 0});
          TransposeArgs transpose;
          transpose.sources = device_sources.get();
          transpose.out = columns.get();
          transpose.invalid = invalid.get();
          transpose.num_blocks = 2;
          transpose.num_channels = channels;
          transpose.rotate = refined;
          ops_->Transpose(transpose);
          QuantizeArgs quantize;
          quantize.sources = device_sources.get();
          quantize.units = device_units.get();
          quantize.x = columns.get();
          quantize.x_block = static_cast<int64_t>(n);
          quantize.x_stride = kBlockTokens;
          quantize.ranges = ranges.get();
          quantize.num_blocks = 2;
          quantize.num_units = static_cast<int>(units.units.size());
          quantize.fp8 = refined;
          quantize.search = refined;
          ops_->Quantize(quantize);
          ASSERT_TRUE(out.ToHost() == expected)
              << channels << " channels, " << bits << " bits, group " << group;
          EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 0}));
        }
      }
    }
  }
}

TEST_P(DeviceCodecOpsTest, WhatIsNotFiniteIsReportedButForSinks) {
  const int channels = 80;
  const auto n = static_cast<size_t>(kBlockTokens * channels);
  std::vector<float> x = Random(3 * n);
  const float bad[] = {FloatOf(0x7fc00000u), FloatOf(0x7f800000u)};
  x[3 * channels + 5] = bad[0];      // a sink's: not read
  x[n + 3 * channels + 5] = bad[1];  // of a later block: read
  x[2 * n + 63 * channels + 79] = bad[0];
  Array<float> device_x(*ops_, x);
  std::vector<SealSource> sources(3);
  for (size_t b = 0; b < 3; ++b) {
    sources[b].rows = device_x.get() + b * n;
    sources[b].first_row = b == 0 ? kSinkTokens : 0;
  }
  Array<SealSource> device_sources(*ops_, sources);
  Array<float> out(*ops_, std::vector<float>(3 * n));
  const std::vector<int32_t> expected = {0, 1, 1};
  Array<int32_t> invalid(*ops_, {0, 0, 0});
  TransposeArgs transpose;
  transpose.sources = device_sources.get();
  transpose.out = out.get();
  transpose.invalid = invalid.get();
  transpose.num_blocks = 3;
  transpose.num_channels = channels;
  ops_->Transpose(transpose);
  EXPECT_EQ(invalid.ToHost(), expected);
  Array<float> w(*ops_, std::vector<float>(channels * channels, 1.0f));
  Array<int32_t> invalid_product(*ops_, {0, 0, 0});
  ExactProductArgs product;
  product.sources = device_sources.get();
  product.w = w.get();
  product.out = out.get();
  product.invalid = invalid_product.get();
  product.num_blocks = 3;
  product.width = channels;
  product.depth = channels;
  ops_->ExactProduct(product);
  EXPECT_EQ(invalid_product.ToHost(), expected);
}

}  // namespace
}  // namespace xcache::cuda
