// Blocks read for packing must mean the same weights as DequantizeRow.
#include "engine/cpu/gguf_blocks.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"

namespace xcache {
namespace {

class GgufBlocksTest : public ::testing::TestWithParam<GgufType> {};

TEST_P(GgufBlocksTest, BlocksAreTheDequantizedWeights) {
  const GgufType type = GetParam();
  constexpr int kCols = 512, kRows = 3;
  std::mt19937 gen(7);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  std::vector<float> values(kCols * kRows);
  for (float& v : values) v = normal(gen);
  const std::string bytes = testing::Quantize(type, values);
  TensorView tensor;
  tensor.name = "t";
  tensor.type = type;
  tensor.rows = kRows;
  tensor.cols = kCols;
  tensor.bytes = {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  const std::optional<QuantFormat> format = PackedFormatOf(type);
  ASSERT_TRUE(format.has_value());
  const size_t row_bytes = bytes.size() / kRows;
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
        if (format->k_scales) {
          const int factor = w.scales[format->has_min ? 0 : i / 16];
          d *= static_cast<float>(factor);
          m *= static_cast<float>(w.scales[1]);
        }
        const float actual =
            d * static_cast<float>(w.codes[i] - format->offset) + m;
        const float want = expected[static_cast<size_t>(32 * block + i)];
        // Exact, in one rounding or another of the same terms.
        const float tolerance = 2e-7f * (std::fabs(want) + 2 * std::fabs(m));
        ASSERT_NEAR(actual, want, tolerance)
            << "row " << row << " block " << block << " element " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GgufBlocksTest,
                         ::testing::Values(GgufType::kQ4_0, GgufType::kQ4_1,
                                           GgufType::kQ5_0, GgufType::kQ5_1,
                                           GgufType::kQ8_0, GgufType::kQ4_K,
                                           GgufType::kQ5_K, GgufType::kQ6_K),
                         [](const ::testing::TestParamInfo<GgufType>& c) {
                           return std::string(InfoOf(c.param)->name);
                         });

TEST(GgufBlocksTest, FloatTypesHaveNoBlocks) {
  for (GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16}) {
    EXPECT_FALSE(PackedFormatOf(type).has_value());
  }
}

}  // namespace
}  // namespace xcache
