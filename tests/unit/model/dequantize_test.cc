#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"

namespace xcache {
namespace {

constexpr GgufType kTypes[] = {
    GgufType::kF32,  GgufType::kF16,    GgufType::kBF16,  GgufType::kQ4_0,
    GgufType::kQ4_1, GgufType::kQ5_0,   GgufType::kQ5_1,  GgufType::kQ8_0,
    GgufType::kQ4_K, GgufType::kQ5_K,   GgufType::kQ6_K,  GgufType::kQ2_K,
    GgufType::kQ3_K, GgufType::kIQ4_NL, GgufType::kIQ4_XS};

std::vector<uint8_t> FromHex(const std::string& hex) {
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(
        static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

TEST(DequantizeTest, RowsAreThoseOfTheGgufPackage) {
  const char* source = std::getenv("XCACHE_SOURCE_DIR");
  std::ifstream in(std::string(source != nullptr ? source : ".") +
                   "/tests/golden/blocks.txt");
  std::map<std::string, int> rows_of;
  std::string name, bytes_hex, floats_hex;
  while (in >> name >> bytes_hex >> floats_hex) {
    ++rows_of[name];
    TensorView tensor;
    for (GgufType type : kTypes) {
      if (InfoOf(type)->name == name) tensor.type = type;
    }
    ASSERT_EQ(InfoOf(tensor.type)->name, name);
    const std::vector<uint8_t> bytes = FromHex(bytes_hex);
    tensor.bytes = bytes;
    tensor.rows = 1;
    tensor.cols = static_cast<int64_t>(floats_hex.size() / 8);
    std::vector<float> row(floats_hex.size() / 8);
    DequantizeRow(tensor, 0, row.data());
    for (size_t i = 0; i < row.size(); ++i) {
      const auto bits = static_cast<uint32_t>(
          std::stoul(floats_hex.substr(8 * i, 8), nullptr, 16));
      const float expected = std::bit_cast<float>(bits);
      // Zeros may differ in sign: 0 * -1 is written in either order.
      ASSERT_EQ(row[i], expected) << name << " element " << i;
    }
  }
  for (GgufType type : kTypes) {
    EXPECT_GE(rows_of[std::string(InfoOf(type)->name)], 2)
        << InfoOf(type)->name;
  }
}

TEST(DequantizeTest, RowsAreFoundByTheirIndex) {
  for (GgufType type : kTypes) {
    std::vector<float> values(3 * 256);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = std::sin(static_cast<float>(i)) *
                  static_cast<float>(1 + i / 256);  // rows of scale 1, 2, 3
    }
    const std::string bytes = testing::Quantize(type, values);
    const TensorView tensor{
        "t",
        type,
        3,
        256,
        {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}};
    std::vector<float> row(256);
    for (int64_t r = 0; r < 3; ++r) {
      DequantizeRow(tensor, r, row.data());
      double error = 0, power = 0;
      for (size_t i = 0; i < 256; ++i) {
        const double x = values[static_cast<size_t>(r) * 256 + i];
        error += (row[i] - x) * (row[i] - x);
        power += x * x;
      }
      // A 4-bit code of a sine: steps of 2/15, error of rms step/sqrt(12).
      const bool coarse = type == GgufType::kQ2_K || type == GgufType::kQ3_K;
      EXPECT_LT(error / power, coarse ? 0.1 : 0.02)
          << InfoOf(type)->name << " row " << r;
    }
  }
}

}  // namespace
}  // namespace xcache
