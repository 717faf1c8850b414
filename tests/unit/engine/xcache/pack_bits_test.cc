#include "engine/kernels/pack_bits.h"

#include <cmath>
#include <random>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

class PackBitsTest : public KernelTest {
 protected:
  const CodecKernels& codec_kernels() const {
    return GetCodecKernels(GetParam());
  }
  static const CodecKernels& codec_ref() { return GetCodecKernels(Isa::kRef); }
};
XCACHE_FOR_EVERY_ISA(PackBitsTest);

std::vector<uint8_t> RandomCodes(size_t n, int bits, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> codes(n);
  for (uint8_t& code : codes) {
    code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
  }
  return codes;
}

// Sizes around every register width, and a guard after the packed bytes.
TEST_P(PackBitsTest, PacksLikeTheReferenceAndComesBack) {
  uint32_t seed = 1;
  for (int num_groups : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65}) {
    for (int num_values : {1, 7, 8, 9, 16, 60, 64, 80}) {
      for (int bits = 1; bits <= 8; ++bits) {
        const auto n = static_cast<size_t>(num_groups * num_values);
        const std::vector<uint8_t> codes = RandomCodes(n, bits, seed++);
        const size_t bytes = PackedTileBytes(num_values, num_groups, bits);
        std::vector<uint8_t> packed(bytes + 1, 0xa5), expected(bytes + 1, 0xa5);
        PackTileArgs pack{codes.data(), num_groups, num_values,
                          num_groups,   bits,       packed.data()};
        codec_kernels().pack_tile(pack);
        pack.packed = expected.data();
        codec_ref().pack_tile(pack);
        ASSERT_EQ(packed, expected);
        packed.resize(bytes);  // a sanitizer sees a read past it
        packed.shrink_to_fit();

        const std::vector<float> steps = MakeValues(
            Values::kNormal, static_cast<size_t>(num_groups), seed++);
        const std::vector<float> bases = MakeValues(
            Values::kNormal, static_cast<size_t>(num_groups), seed++);
        const int64_t stride = num_groups + 3;
        std::vector<float> x(static_cast<size_t>(stride * num_values), -7.0f);
        codec_kernels().unpack_tile({packed.data(), num_values, num_groups,
                                     bits, steps.data(), bases.data(), x.data(),
                                     stride});
        for (int i = 0; i < num_values; ++i) {
          for (int g = 0; g < stride; ++g) {
            const float found = x[static_cast<size_t>(i * stride + g)];
            if (g >= num_groups) {
              ASSERT_EQ(found, -7.0f);
              continue;
            }
            const auto at = static_cast<size_t>(g);
            const uint8_t code = codes[static_cast<size_t>(i * num_groups + g)];
            ASSERT_EQ(found, bases[at] + steps[at] * static_cast<float>(code));
          }
        }
      }
    }
  }
}

TEST_P(PackBitsTest, TransposeIsExact) {
  for (int rows : {1, 3, 7, 8, 9, 17, 60, 64}) {
    for (int cols : {1, 5, 8, 15, 16, 33, 64}) {
      const int64_t in_stride = cols + 2, out_stride = rows + 1;
      const std::vector<float> in =
          MakeValues(Values::kNormal, static_cast<size_t>(in_stride * rows), 4);
      std::vector<float> out(static_cast<size_t>(out_stride * cols), -7.0f);
      codec_kernels().transpose(in.data(), in_stride, rows, cols, out.data(),
                                out_stride);
      for (int c = 0; c < cols; ++c) {
        for (int r = 0; r < out_stride; ++r) {
          ASSERT_EQ(
              out[static_cast<size_t>(c * out_stride + r)],
              r < rows ? in[static_cast<size_t>(r * in_stride + c)] : -7.0f);
        }
      }
    }
  }
}

TEST_P(PackBitsTest, HadamardEqualsTheReference) {
  for (int rows = 1; rows <= 128; rows *= 2) {
    for (int cols : {1, 7, 8, 16, 17, 33, 64}) {
      const int64_t stride = cols + 1;
      const std::vector<float> x =
          MakeValues(Values::kNormal, static_cast<size_t>(stride * rows), 6);
      std::vector<float> found = x, expected = x;
      codec_kernels().hadamard(found.data(), stride, rows, cols, nullptr);
      codec_ref().hadamard(expected.data(), stride, rows, cols, nullptr);
      ASSERT_EQ(found, expected) << rows << " x " << cols;

      const std::vector<float> factors =
          MakeValues(Values::kNormal, static_cast<size_t>(rows), 7);
      found = x;
      codec_kernels().hadamard(found.data(), stride, rows, cols,
                               factors.data());
      codec_ref().scale_rows(expected.data(), stride, rows, cols,
                             factors.data());
      ASSERT_EQ(found, expected) << rows << " x " << cols;
    }
  }
}

// Row i, column j of Sylvester's matrix is -1 to the number of ones in i & j.
TEST_P(PackBitsTest, HadamardIsSylvesters) {
  for (int column = 0; column < 64; ++column) {
    std::vector<float> x(64 * 8, 0.0f);
    for (int c = 0; c < 8; ++c) x[static_cast<size_t>(column * 8 + c)] = 1.0f;
    codec_kernels().hadamard(x.data(), 8, 64, 8, nullptr);
    for (int row = 0; row < 64; ++row) {
      const float expected =
          __builtin_popcount(static_cast<unsigned>(row & column)) % 2 != 0
              ? -1.0f
              : 1.0f;
      for (int c = 0; c < 8; ++c) {
        ASSERT_EQ(x[static_cast<size_t>(row * 8 + c)], expected);
      }
    }
  }
}

TEST_P(PackBitsTest, ScaleRowsScalesRows) {
  std::vector<float> x = MakeValues(Values::kNormal, 5 * 23, 8);
  const std::vector<float> before = x;
  const std::vector<float> factors = {1.0f, -1.0f, 0.5f, 0.0f, 3.0f};
  codec_kernels().scale_rows(x.data(), 23, 5, 21, factors.data());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i], i % 23 < 21 ? before[i] * factors[i / 23] : before[i]);
  }
}

}  // namespace
}  // namespace xcache
