// Blocks read for packing must mean the same weights as DequantizeRow.
#include "engine/cpu/gguf_blocks.h"

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/cpu/weights.h"
#include "engine/model/model.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"

namespace xcache {
namespace {

constexpr int kCols = 512;

struct Tensor {
  std::string bytes;
  TensorView view;
};

Tensor MakeTensor(GgufType type, int rows) {
  std::mt19937 gen(7);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  std::vector<float> values(static_cast<size_t>(kCols * rows));
  for (float& v : values) v = normal(gen);
  Tensor result;
  result.bytes = testing::Quantize(type, values);
  result.view.name = "t";
  result.view.type = type;
  result.view.rows = rows;
  result.view.cols = kCols;
  result.view.bytes = {reinterpret_cast<const uint8_t*>(result.bytes.data()),
                       result.bytes.size()};
  return result;
}

class GgufBlocksTest : public ::testing::TestWithParam<GgufType> {};

TEST(CpuMatrixTest, ReleasesItsTensorInPartsThatTouch) {
  constexpr int kRows = 12000;  // 6.5 MB of Q8_0, 24.6 MB of F32
  for (GgufType type : {GgufType::kQ8_0, GgufType::kF32}) {
    Tensor t;
    t.bytes.resize(static_cast<size_t>(kRows) *
                   (type == GgufType::kF32 ? kCols * 4 : kCols / 32 * 34));
    t.view = {
        "t",
        type,
        kRows,
        kCols,
        {reinterpret_cast<const uint8_t*>(t.bytes.data()), t.bytes.size()}};
    WeightArena arena;
    size_t end = 0;
    int parts = 0;
    const auto packed =
        CpuMatrix::Pack(t.view, &arena, [&](std::span<const uint8_t> bytes) {
          EXPECT_EQ(bytes.data(), t.view.bytes.data() + end);
          end += bytes.size();
          ++parts;
        });
    ASSERT_TRUE(packed.ok()) << packed.status();
    EXPECT_EQ(end, t.bytes.size());
    EXPECT_GT(parts, 1);
  }
}

class PackedRowsTest : public ::testing::TestWithParam<GgufType> {};

TEST_P(GgufBlocksTest, BlocksAreTheDequantizedWeights) {
  const GgufType type = GetParam();
  const std::optional<QuantFormat> format = PackedFormatOf(type);
  ASSERT_TRUE(format.has_value());
  constexpr int kRows = 3;
  const Tensor t = MakeTensor(type, kRows);
  const TensorView& tensor = t.view;
  const size_t row_bytes = t.bytes.size() / kRows;
  for (int row = 0; row < kRows; ++row) {
    std::vector<float> expected(kCols);
    DequantizeRow(tensor, row, expected.data());
    for (int block = 0; block < kCols / 32; ++block) {
      WeightBlock w;
      ReadWeightBlock(
          type, tensor.bytes.data() + static_cast<size_t>(row) * row_bytes,
          block, &w);
      for (int i = 0; i < 32; ++i) {
        ASSERT_LT(w.codes[i], 1 << format->bits);
        float d = w.d, m = w.m;
        if (format->factors != QuantFactors::kNone) {
          const int h = format->factors == QuantFactors::kOf16 ? i / 16 : 0;
          d *= static_cast<float>(w.scales[h]);
          m *= static_cast<float>(w.mins[h]);
        }
        const float actual =
            d * static_cast<float>(QuantValue(*format, w.codes[i])) + m;
        const float want = expected[static_cast<size_t>(32 * block + i)];
        // Exact, in one rounding or another of the same terms.
        const float tolerance = 2e-7f * (std::fabs(want) + 2 * std::fabs(m));
        ASSERT_NEAR(actual, want, tolerance)
            << "row " << row << " block " << block << " element " << i;
      }
    }
  }
}

// The embedding of a model whose output has the same weights is read so.
TEST_P(PackedRowsTest, AreTheDequantizedOnesBitForBit) {
  const Tensor t = MakeTensor(GetParam(), 19);
  WeightArena arena;
  const auto packed = CpuMatrix::Pack(t.view, &arena);
  ASSERT_TRUE(packed.ok()) << packed.status();
  std::vector<float> want(kCols), found(kCols);
  for (int row = 0; row < 19; ++row) {
    DequantizeRow(t.view, row, want.data());
    packed->Row(row, found.data());
    ASSERT_EQ(std::memcmp(want.data(), found.data(), kCols * sizeof(float)), 0)
        << row;
  }
}

constexpr GgufType kQuantized[] = {
    GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0,   GgufType::kQ5_1,
    GgufType::kQ8_0, GgufType::kQ2_K, GgufType::kQ3_K,   GgufType::kQ4_K,
    GgufType::kQ5_K, GgufType::kQ6_K, GgufType::kIQ4_NL, GgufType::kIQ4_XS};
constexpr GgufType kFloats[] = {GgufType::kF32, GgufType::kF16,
                                GgufType::kBF16};

std::string TypeName(const ::testing::TestParamInfo<GgufType>& c) {
  return std::string(InfoOf(c.param)->name);
}
INSTANTIATE_TEST_SUITE_P(Types, GgufBlocksTest, ::testing::ValuesIn(kQuantized),
                         TypeName);
INSTANTIATE_TEST_SUITE_P(Types, PackedRowsTest, ::testing::ValuesIn(kQuantized),
                         TypeName);
INSTANTIATE_TEST_SUITE_P(FloatTypes, PackedRowsTest,
                         ::testing::ValuesIn(kFloats), TypeName);

TEST(PackedFormatTest, FloatTypesHaveNoBlocks) {
  for (GgufType type : kFloats) {
    EXPECT_FALSE(PackedFormatOf(type).has_value());
  }
}

}  // namespace
}  // namespace xcache
