#include "engine/kernels/quantize_groups.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

// A quantized tile and the rows that come back.
struct Quantized {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> steps, centres;
  std::vector<float> x;
  std::vector<float> step;  // decoded
};

struct Config {
  int num_values = 64;
  int num_groups = 16;
  int bits = 4;
  bool search = true;
  ScaleFormat format = ScaleFormat::kF16;
};

float Decode(const Config& config, uint16_t bits, float multiplier) {
  if (config.format == ScaleFormat::kF8) {
    return E4m3ToFloat(static_cast<uint8_t>(bits)) * multiplier;
  }
  float x;
  GetKernels(Isa::kRef).from_f16(&bits, 1, &x);
  return x;
}

Quantized RunTile(Isa isa, const Config& c, const std::vector<float>& x,
                  int64_t stride, float step_multiplier = 1.0f,
                  float centre_multiplier = 1.0f) {
  const auto groups = static_cast<size_t>(c.num_groups);
  const auto values = static_cast<size_t>(c.num_values);
  Quantized out;
  out.codes.assign(values * groups, 0xee);
  out.steps.assign(groups, 0xeeee);
  out.centres.assign(groups, 0xeeee);
  QuantizeTileArgs args;
  args.x = x.data();
  args.x_stride = stride;
  args.num_values = c.num_values;
  args.num_groups = c.num_groups;
  args.bits = c.bits;
  args.search = c.search;
  args.format = c.format;
  args.step_multiplier = step_multiplier;
  args.centre_multiplier = centre_multiplier;
  args.codes = out.codes.data();
  args.codes_stride = c.num_groups;
  args.steps = out.steps.data();
  args.centres = out.centres.data();
  GetCodecKernels(isa).quantize_tile(args);
  out.x.resize(values * groups);
  out.step.resize(groups);
  for (size_t g = 0; g < groups; ++g) {
    const float step = Decode(c, out.steps[g], step_multiplier);
    const float centre = Decode(c, out.centres[g], centre_multiplier);
    const float base =
        centre - step * (0.5f * static_cast<float>((1 << c.bits) - 1));
    out.step[g] = step;
    for (size_t i = 0; i < values; ++i) {
      out.x[i * groups + g] =
          base + step * static_cast<float>(out.codes[i * groups + g]);
    }
  }
  return out;
}

double SquaredError(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    sum += d * d;
  }
  return sum;
}

class QuantizeGroupsTest : public KernelTest {};
XCACHE_FOR_EVERY_ISA(QuantizeGroupsTest);

TEST_P(QuantizeGroupsTest, EqualsTheReferenceBitForBit) {
  uint32_t seed = 1;
  for (Values kind : kAllValues) {
    for (int num_groups : {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40}) {
      for (int num_values : {1, 2, 5, 28, 60, 64, 128, 256}) {
        for (int bits = 1; bits <= 8; ++bits) {
          const auto stride = num_groups + static_cast<int>(seed % 3);
          const std::vector<float> x = MakeValues(
              kind, static_cast<size_t>(stride * num_values), seed++);
          for (ScaleFormat format : {ScaleFormat::kF16, ScaleFormat::kF8}) {
            for (bool search : {false, true}) {
              const Config c{num_values, num_groups, bits, search, format};
              const float m = kind == Values::kHuge ? 1e13f : 0.01f;
              const Quantized expected = RunTile(Isa::kRef, c, x, stride, m, m);
              const Quantized found = RunTile(GetParam(), c, x, stride, m, m);
              ASSERT_EQ(found.codes, expected.codes)
                  << num_groups << " groups of " << num_values << ", " << bits
                  << " bits";
              ASSERT_EQ(found.steps, expected.steps);
              ASSERT_EQ(found.centres, expected.centres);
            }
          }
        }
      }
    }
  }
}

// Without a search a value is off by at most half a step, plus what rounding
// adds: the centre's (2^-11 of it, or half the smallest number), and where the
// step was rounded down, its share (2^-11) times half the levels at the ends.
TEST_P(QuantizeGroupsTest, MinMaxErrorIsAtMostHalfAStep) {
  for (Values kind :
       {Values::kNormal, Values::kZero, Values::kDenormal, Values::kOutlier}) {
    for (int bits = 1; bits <= 8; ++bits) {
      const Config c{64, 19, bits, false, ScaleFormat::kF16};
      const std::vector<float> x = MakeValues(kind, 64 * 19, 77);
      const Quantized q = RunTile(GetParam(), c, x, 19);
      for (size_t g = 0; g < 19; ++g) {
        float min = x[g], max = x[g];
        for (size_t i = 0; i < 64; ++i) {
          min = std::min(min, x[i * 19 + g]);
          max = std::max(max, x[i * 19 + g]);
        }
        const float levels = static_cast<float>((1 << bits) - 1);
        const float step = (max - min) / levels;
        const float centre = std::max(std::fabs(min), std::fabs(max));
        const float bound =
            step / 2 + (centre + step * levels) * 0x1p-11f + levels * 0x1p-25f;
        for (size_t i = 0; i < 64; ++i) {
          ASSERT_LE(std::fabs(q.x[i * 19 + g] - x[i * 19 + g]), bound)
              << "bits " << bits << " group " << g << " value " << i;
        }
      }
    }
  }
}

// The search starts from the range, so it can only do better; and on normal
// values it must do clearly better where bits are few.
TEST_P(QuantizeGroupsTest, SearchLowersTheSquaredError) {
  const std::vector<float> x = MakeValues(Values::kNormal, 64 * 32, 5);
  for (int bits = 1; bits <= 8; ++bits) {
    Config c{64, 32, bits, false, ScaleFormat::kF16};
    const double range = SquaredError(RunTile(GetParam(), c, x, 32).x, x);
    c.search = true;
    const double searched = SquaredError(RunTile(GetParam(), c, x, 32).x, x);
    EXPECT_LE(searched, range) << bits;
    if (bits == 2) {
      EXPECT_LT(searched, 0.6 * range);
    }
    if (bits == 3) {
      EXPECT_LT(searched, 0.85 * range);
    }
  }
}

// At 2 bits the reference's error comes near that of the best uniform quantizer
// of a normal distribution, 0.1188 (Max, 1960); a group of 64 fits better.
TEST_P(QuantizeGroupsTest, TwoBitsOfANormalSourceComeNearTheBest) {
  const std::vector<float> x = MakeValues(Values::kNormal, 64 * 512, 9);
  const Config c{64, 512, 2, true, ScaleFormat::kF16};
  const double mse =
      SquaredError(RunTile(GetParam(), c, x, 512).x, x) / (64.0 * 512.0);
  EXPECT_LT(mse, 0.1188);
  EXPECT_GT(mse, 0.08);
}

TEST_P(QuantizeGroupsTest, ConstantGroupIsExact) {
  for (float value : {0.0f, 1.0f, -2.75f, 0x1p-24f, 65504.0f, -65504.0f}) {
    for (int bits : {1, 2, 3, 4, 8}) {
      for (bool search : {false, true}) {
        const Config c{60, 5, bits, search, ScaleFormat::kF16};
        const std::vector<float> x(60 * 5, value);
        const Quantized q = RunTile(GetParam(), c, x, 5);
        EXPECT_EQ(q.x, x) << value;
        EXPECT_EQ(q.codes, std::vector<uint8_t>(300, 0));
      }
    }
  }
}

// Beyond binary16 nothing is accurate, but everything stays finite.
TEST_P(QuantizeGroupsTest, HugeValuesStayFinite) {
  const float max = std::numeric_limits<float>::max();
  for (ScaleFormat format : {ScaleFormat::kF16, ScaleFormat::kF8}) {
    std::vector<float> x = MakeValues(Values::kNormal, 64 * 17, 3);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 3 == 0 ? max / 8 : 1.0f;
    x[5] = max;
    x[5 + 17] = -max;
    const Config c{64, 17, 4, true, format};
    const Quantized q = RunTile(GetParam(), c, x, 17, 65504.0f, 65504.0f);
    for (float v : q.x) ASSERT_TRUE(std::isfinite(v));
  }
}

TEST_P(QuantizeGroupsTest, RangesEqualTheReference) {
  for (int n : {1, 7, 8, 16, 17, 40}) {
    for (Values kind : kAllValues) {
      const std::vector<float> x =
          MakeValues(kind, static_cast<size_t>(64 * n), 11);
      float step[2] = {}, centre[2] = {};
      const TileRangesArgs args{x.data(), n, 64, n, 3};
      GetCodecKernels(Isa::kRef).tile_ranges(args, &step[0], &centre[0]);
      GetCodecKernels(GetParam()).tile_ranges(args, &step[1], &centre[1]);
      EXPECT_EQ(step[0], step[1]);
      EXPECT_EQ(centre[0], centre[1]);
      EXPECT_GE(step[0], 0.0f);
    }
  }
}

TEST_P(QuantizeGroupsTest, FindsWhatIsNotFinite) {
  const auto all_finite = GetCodecKernels(GetParam()).all_finite;
  for (size_t n = 0; n < 70; ++n) {
    std::vector<float> x(n, std::numeric_limits<float>::max());
    EXPECT_TRUE(all_finite(x.data(), static_cast<int64_t>(n)));
    for (size_t i = 0; i < n; ++i) {
      for (float bad : {std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity(),
                        std::numeric_limits<float>::quiet_NaN()}) {
        const float good = std::exchange(x[i], bad);
        EXPECT_FALSE(all_finite(x.data(), static_cast<int64_t>(n)));
        x[i] = good;
      }
    }
  }
}

// Scales cover every E4M3 number: each must come back as itself.
TEST_P(QuantizeGroupsTest, EveryE4m3NumberIsReached) {
  std::vector<float> x;
  std::vector<uint8_t> expected;
  for (int bits = 0; bits < 256; ++bits) {
    const float v = E4m3ToFloat(static_cast<uint8_t>(bits));
    if (std::isnan(v)) continue;
    x.push_back(v * 0.25f);
    expected.push_back(static_cast<uint8_t>(bits == 0x80 ? 0 : bits));
  }
  const auto n = static_cast<int>(x.size());
  const Config c{1, n, 4, true, ScaleFormat::kF8};
  const Quantized q = RunTile(GetParam(), c, x, n, 1.0f, 0.25f);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(q.centres[i], expected[i]) << x[i];
    EXPECT_EQ(q.x[i], x[i]);
  }
}

TEST(E4m3Test, KnownValues) {
  EXPECT_EQ(E4m3ToFloat(0x00), 0.0f);
  EXPECT_EQ(E4m3ToFloat(0x01), 0x1p-9f);
  EXPECT_EQ(E4m3ToFloat(0x08), 0x1p-6f);
  EXPECT_EQ(E4m3ToFloat(0x38), 1.0f);
  EXPECT_EQ(E4m3ToFloat(0xb9), -1.125f);
  EXPECT_EQ(E4m3ToFloat(0x7e), 448.0f);
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0x7f)));
  EXPECT_TRUE(std::isnan(E4m3ToFloat(0xff)));
}

}  // namespace
}  // namespace xcache
