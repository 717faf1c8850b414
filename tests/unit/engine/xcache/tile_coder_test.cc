#include "engine/xcache/tile_coder.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/xcache/codec_test_util.h"

namespace xcache {
namespace {

using ::testing::Each;

TEST(TilesTest, CoverTheMatrixOnce) {
  const std::vector<int> widths = {4, 4, 4, 2, 2, 1, 1, 1, 1};
  for (int group : {16, 32, 64, 128}) {
    const std::vector<Tile> tiles = PerChannelTiles(widths, 64, group);
    std::vector<int> seen(64 * widths.size());
    for (const Tile& t : tiles) {
      EXPECT_LE(t.num_rows, group);
      for (int r = t.first_row; r < t.first_row + t.num_rows; ++r) {
        for (int c = t.first_col; c < t.first_col + t.num_cols; ++c) {
          const auto col = static_cast<size_t>(c);
          seen[static_cast<size_t>(r) * widths.size() + col] += 1;
          EXPECT_EQ(t.bits, widths[col]);
        }
      }
    }
    EXPECT_THAT(seen, Each(1));
  }
}

TEST(RotationTest, InvertUndoesApplyAndKeepsNorms) {
  for (int n : {1, 2, 3, 7, 33, 64, 80, 192, 200}) {
    const Rotation rotation(n, Isa::kRef);
    const std::vector<float> x = Numbers(5).Vector(static_cast<size_t>(n) * 64);
    std::vector<float> y = x;
    rotation.Apply(y.data(), 64, 64);
    rotation.Invert(y.data(), 64, 64);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-5) << n;
  }
}

TEST(RotationTest, SpreadsAnOutlierOverItsPiece) {
  const Rotation rotation(80, Isa::kRef);
  std::vector<float> x(80 * 64, 0.0f);
  x[10 * 64 + 3] = 5.0f;  // in the piece of 64
  x[70 * 64 + 4] = 5.0f;  // in the piece of 16
  rotation.Apply(x.data(), 64, 64);
  for (size_t c = 0; c < 80; ++c) {
    EXPECT_EQ(std::fabs(x[c * 64 + 3]), c < 64 ? 5.0f : 0.0f);
    EXPECT_EQ(std::fabs(x[c * 64 + 4]), c < 64 ? 0.0f : 5.0f);
  }
}

TEST(TileCoderTest, BytesAreAsDocumented) {
  // 64 tokens of 20 channels at 4 bits: a step and a centre each, 8 bytes a
  // plane, and two multipliers for FP8.
  const std::vector<int> widths(20, 4);
  const std::vector<Tile> tiles = PerChannelTiles(widths, 64, 64);
  const TileCoder half(ScaleFormat::kF16, true, Isa::kRef);
  EXPECT_EQ(half.Bytes(tiles), 20u * (4 + 8 * 4));
  const TileCoder small(ScaleFormat::kF8, true, Isa::kRef);
  EXPECT_EQ(small.Bytes(tiles), 4u + 20u * (2 + 8 * 4));
}

// E4M3 has few bits: a matrix whose groups differ by up to 10^4 in size must
// not lose the small ones.
TEST(TileCoderTest, Fp8ScalesServeGroupsOfDifferentSize) {
  const std::vector<int> widths(32, 4);
  const std::vector<Tile> tiles = PerChannelTiles(widths, 64, 64);
  const TileCoder coder(ScaleFormat::kF8, true, Isa::kRef);
  std::vector<float> x = Numbers(9).Vector(64 * 32), y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] *= std::pow(10.0f, -static_cast<float>(i % 32) / 8.0f);
  }
  std::vector<uint8_t> bytes(coder.Bytes(tiles));
  coder.Encode(tiles, x.data(), 32, 0, bytes.data());
  ASSERT_TRUE(coder.Decode(tiles, bytes.data(), y.data(), 32).ok());
  for (size_t c = 0; c < 32; ++c) {
    double error = 0.0, sum = 0.0;
    for (size_t t = 0; t < 64; ++t) {
      const double d = static_cast<double>(x[t * 32 + c]) - y[t * 32 + c];
      error += d * d;
      sum += static_cast<double>(x[t * 32 + c]) * x[t * 32 + c];
    }
    EXPECT_LT(std::sqrt(error / sum), 0.13) << c;
  }
}

}  // namespace
}  // namespace xcache
