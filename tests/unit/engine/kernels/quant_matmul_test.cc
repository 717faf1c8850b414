#include "engine/kernels/quant_matmul.h"

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kernels/packed.h"
#include "engine/kernels/scalar_math.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

// Every format of the header, and codes that stand for themselves.
constexpr QuantFormat kFormats[] = {
    {.bits = 4, .offset = 8},
    {.bits = 4, .has_min = true},
    {.bits = 5, .offset = 16},
    {.bits = 5, .has_min = true},
    {.bits = 8, .offset = 128},
    {.bits = 4, .has_min = true, .factors = QuantFactors::kOf32},
    {.bits = 5, .has_min = true, .factors = QuantFactors::kOf32},
    {.bits = 6, .offset = 32, .factors = QuantFactors::kOf16},
    {.bits = 6, .offset = 128, .factors = QuantFactors::kOf16},
    {.bits = 2, .has_min = true, .factors = QuantFactors::kOf16},
    {.bits = 3, .offset = 4, .factors = QuantFactors::kOf16},
    {.bits = 4, .iq4 = true},
    {.bits = 4, .factors = QuantFactors::kOf32, .iq4 = true},
    {.bits = 4},
    {.bits = 8},
};

bool HasFactors(const QuantFormat& format) {
  return format.factors != QuantFactors::kNone;
}

// Inputs as a format takes them: `k`, or 1, 2, 3, .. times 256 as k grows.
int ColsOf(const QuantFormat& format, int k) {
  return HasFactors(format) ? 256 * (k / 64 + 1) : k;
}

std::string Name(const QuantFormat& f) {
  return absl::StrCat(f.bits, " bits, offset ", f.offset,
                      f.has_min ? ", a minimum" : "", f.iq4 ? ", a table" : "",
                      ", integer scales ", static_cast<int>(f.factors));
}

WeightBlock MakeBlock(const QuantFormat& format, int row, int block) {
  const auto seed = static_cast<uint32_t>(row * 977 + 5);
  std::mt19937 bits(seed + static_cast<uint32_t>(block) * 31);
  std::mt19937 shared(seed + static_cast<uint32_t>(block / kSuperBlocks) * 37);
  WeightBlock result;
  for (uint8_t& code : result.codes) {
    code = static_cast<uint8_t>(bits() & ((1u << format.bits) - 1));
  }
  // The extremes, where narrow sums would saturate.
  const bool high = row % 5 == 0, low = row % 5 == 1;
  if (high) std::fill_n(result.codes, 32, (1 << format.bits) - 1);
  if (low) std::fill_n(result.codes, 32, uint8_t{0});
  std::mt19937& of_scales = HasFactors(format) ? shared : bits;
  const auto random = [&] {
    const float x = static_cast<float>(of_scales() % 2048) / 1024.0f - 1.0f;
    return F16ToF32(F32ToF16(x));
  };
  result.d = random();
  if (format.has_min) result.m = random();
  if (HasFactors(format)) {
    // In [-128, 127], or of as many bits as the format has beside minima.
    const bool halves = format.factors == QuantFactors::kOf16;
    const int least = format.has_min ? 0 : -128;
    const int most = !format.has_min ? 127 : halves ? 15 : 63;
    for (size_t h = 0; h < (halves ? 2 : 1); ++h) {
      const auto factor = [&] {
        if (high && row % 2 == 0) return format.has_min ? most : least;
        if (low && row % 2 == 0) return format.has_min ? least : most;
        return least + static_cast<int>(bits() % 256) % (most - least + 1);
      };
      result.scales[h] = factor();
      if (format.has_min) result.mins[h] = factor();
    }
  }
  return result;
}

PackedMatrix Pack(const QuantFormat& format, int rows, int cols) {
  auto packed = PackedMatrix::Pack(rows, cols, format,
                                   [&](int row, int block, WeightBlock* out) {
                                     *out = MakeBlock(format, row, block);
                                   });
  EXPECT_TRUE(packed.ok()) << packed.status();
  return *std::move(packed);
}

// Activation rows with their storage.
struct Activations {
  AlignedBytes bytes;
  QuantRows rows;
};

Activations MakeActivations(int num_rows, int cols) {
  Activations result;
  result.rows.stride = QuantRowBytes(cols) + 64;
  result.rows.cols = cols;
  result.bytes =
      AlignedBytes(static_cast<size_t>(result.rows.stride * num_rows));
  std::memset(result.bytes.data(), 0, result.bytes.size());
  result.rows.data = result.bytes.data();
  return result;
}

Activations Quantize(const Kernels& kernels, const std::vector<float>& x,
                     int num_rows, int cols) {
  Activations result = MakeActivations(num_rows, cols);
  kernels.quantize_rows(x.data(), cols, num_rows, result.rows);
  return result;
}

class QuantMatmulTest : public KernelTest {
 protected:
  static constexpr int kGap = 3;  // between output rows

  static void Multiply(const Kernels& kernels, const QuantRows& a,
                       int first_row, int num_rows, const PackedMatrix& w,
                       Epilogue epilogue, float* out, int split = 0) {
    QuantMatmulArgs args;
    args.a = a;
    args.a.data += first_row * a.stride;
    args.num_rows = num_rows;
    args.w = w.view();
    args.out = out;
    args.out_stride = w.rows() + kGap;
    args.epilogue = epilogue;
    kernels.quant_matmul(args, 0, split);
    kernels.quant_matmul(args, split, w.num_panels());
  }
  static size_t OutSize(int m, int n) {
    return static_cast<size_t>(m) * static_cast<size_t>(n + kGap);
  }
};
XCACHE_FOR_EVERY_ISA(QuantMatmulTest);

TEST_P(QuantMatmulTest, QuantizedRowsEqualReference) {
  for (const Values kind : kAllValues) {
    for (int cols = 32; cols <= 160; cols += 32) {
      const int rows = 3;
      const std::vector<float> x =
          MakeValues(kind, static_cast<size_t>(rows * cols), 21);
      const Activations want = Quantize(ref(), x, rows, cols);
      const Activations found = Quantize(kernels(), x, rows, cols);
      EXPECT_EQ(
          std::memcmp(want.bytes.data(), found.bytes.data(), want.bytes.size()),
          0)
          << cols;
    }
  }
}

TEST_P(QuantMatmulTest, QuantizedRowsAreWithinHalfAStep) {
  const int cols = 96;
  std::vector<float> x = MakeValues(Values::kOutlier, 96, 22);
  x[5] = 1000.0f;
  const Activations a = Quantize(kernels(), x, 1, cols);
  const auto* codes = reinterpret_cast<const int8_t*>(a.rows.data);
  const auto* scales = reinterpret_cast<const float*>(a.rows.data + cols);
  for (int i = 0; i < cols; ++i) {
    const float s = scales[i / 32];
    EXPECT_NEAR(x[static_cast<size_t>(i)], s * static_cast<float>(codes[i]),
                s * 0.5001f);
  }
  EXPECT_EQ(codes[5], 127);
  for (int b = 0; b < 3; ++b) {
    int16_t sums[2], found[2];
    for (int half = 0; half < 2; ++half) {
      const int8_t* first = codes + b * 32 + half * 16;
      sums[half] = static_cast<int16_t>(std::accumulate(first, first + 16, 0));
    }
    EXPECT_EQ(scales[3 + b], scales[b] * static_cast<float>(sums[0] + sums[1]));
    std::memcpy(found, a.rows.data + cols + 24 + b * 4, 4);
    EXPECT_EQ(found[0], sums[0]);
    EXPECT_EQ(found[1], sums[1]);
  }
}

TEST_P(QuantMatmulTest, ValuesThatAreNotFiniteStayInRange) {
  std::vector<float> x(64, 1.0f);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[40] = -std::numeric_limits<float>::infinity();
  const Activations a = Quantize(kernels(), x, 1, 64);
  for (int i = 0; i < 64; ++i) {
    EXPECT_GE(reinterpret_cast<const int8_t*>(a.rows.data)[i], -127);
  }
}

TEST_P(QuantMatmulTest, EqualsReferenceForEveryFormatAndShape) {
  for (const QuantFormat& format : kFormats) {
    for (const int n : {1, 15, 16, 17, 40}) {
      for (const int least : {32, 64, 160}) {
        const int k = ColsOf(format, least);
        const PackedMatrix w = Pack(format, n, k);
        for (int m = 1; m <= 17; ++m) {
          const std::vector<float> x =
              MakeValues(Values::kOutlier, static_cast<size_t>(m * k), 23);
          const Activations a = Quantize(ref(), x, m, k);
          for (const Epilogue e : {Epilogue::kStore, Epilogue::kAdd}) {
            Guarded want(OutSize(m, n), 0, 0.5f);
            Guarded out(OutSize(m, n), static_cast<size_t>(m % 5), 0.5f);
            Multiply(ref(), a.rows, 0, m, w, e, want.data());
            Multiply(kernels(), a.rows, 0, m, w, e, out.data());
            ASSERT_TRUE(SameBits(want.Get(), out.Get()))
                << Name(format) << " m " << m << " n " << n << " k " << k;
            ASSERT_TRUE(out.intact());
          }
        }
      }
    }
  }
}

TEST_P(QuantMatmulTest, ExtremeActivationsDoNotSaturate) {
  for (const QuantFormat& format : kFormats) {
    const int k = ColsOf(format, 64), n = 16;
    const PackedMatrix w = Pack(format, n, k);
    for (const float sign : {1.0f, -1.0f}) {
      // All codes +-127.
      const std::vector<float> x(static_cast<size_t>(k), sign * 3.0f);
      const Activations a = Quantize(ref(), x, 1, k);
      std::vector<float> want(OutSize(1, n)), out(OutSize(1, n));
      Multiply(ref(), a.rows, 0, 1, w, Epilogue::kStore, want.data());
      Multiply(kernels(), a.rows, 0, 1, w, Epilogue::kStore, out.data());
      EXPECT_TRUE(SameBits(want, out)) << Name(format);
    }
  }
}

TEST_P(QuantMatmulTest, RowsDependNeitherOnOtherRowsNorOnPanelSplits) {
  const int m = 17, n = 70;
  for (const QuantFormat& format : {kFormats[1], kFormats[4], kFormats[5],
                                    kFormats[7], kFormats[9], kFormats[12]}) {
    const int k = HasFactors(format) ? 256 : 96;
    const PackedMatrix w = Pack(format, n, k);
    const std::vector<float> x =
        MakeValues(Values::kNormal, static_cast<size_t>(m * k), 24);
    const Activations a = Quantize(kernels(), x, m, k);
    std::vector<float> whole(OutSize(m, n));
    Multiply(kernels(), a.rows, 0, m, w, Epilogue::kStore, whole.data());
    for (int rows = 1; rows <= m; ++rows) {
      for (int first = 0; first + rows <= m; ++first) {
        std::vector<float> part = whole;
        for (int r = first; r < first + rows; ++r) {
          std::fill_n(part.begin() + r * (n + kGap), n, -1.0f);
        }
        Multiply(kernels(), a.rows, first, rows, w, Epilogue::kStore,
                 part.data() + first * (n + kGap), rows % 6);
        ASSERT_TRUE(SameBits(whole, part)) << rows << " from " << first;
      }
    }
  }
}

TEST_P(QuantMatmulTest, GateUpEqualsItsParts) {
  const int k = 256, n = 40;
  for (const QuantFormat& format : kFormats) {
    const PackedMatrix gate = Pack(format, n, k);
    const PackedMatrix up = Pack(kFormats[1], n, k);
    for (int m = 1; m <= 9; ++m) {
      const std::vector<float> x =
          MakeValues(Values::kNormal, static_cast<size_t>(m * k), 25);
      const Activations a = Quantize(ref(), x, m, k);
      std::vector<float> g(OutSize(m, n)), u(OutSize(m, n)),
          want(OutSize(m, n));
      Multiply(ref(), a.rows, 0, m, gate, Epilogue::kStore, g.data());
      Multiply(ref(), a.rows, 0, m, up, Epilogue::kStore, u.data());
      const bool gelu = m % 2 == 0;
      (gelu ? ref().gelu_mul : ref().silu_mul)(
          g.data(), u.data(), static_cast<int>(g.size()), want.data());
      Guarded out(OutSize(m, n), 1);
      QuantGateUpArgs args;
      args.activation = gelu ? Activation::kGelu : Activation::kSilu;
      args.a = a.rows;
      args.num_rows = m;
      args.gate = gate.view();
      args.up = up.view();
      args.out = out.data();
      args.out_stride = n + kGap;
      kernels().quant_gate_up(args, 0, 1);
      kernels().quant_gate_up(args, 1, gate.num_panels());
      ASSERT_TRUE(SameBits(want, out.Get())) << m;
      ASSERT_TRUE(out.intact());
    }
  }
}

TEST(QuantMatmulRefTest, MatchesDoubleWithinTheRoundingBound) {
  const int m = 2, k = 768, n = 33;
  const Kernels& ref = GetKernels(Isa::kRef);
  for (const QuantFormat& format : kFormats) {
    const PackedMatrix w = Pack(format, n, k);
    const std::vector<float> x = MakeValues(Values::kOutlier, m * k, 26);
    const Activations a = Quantize(ref, x, m, k);
    std::vector<float> out(m * n);
    QuantMatmulArgs args{.a = a.rows,
                         .num_rows = m,
                         .w = w.view(),
                         .out = out.data(),
                         .out_stride = n};
    ref.quant_matmul(args, 0, w.num_panels());
    for (int i = 0; i < m; ++i) {
      const uint8_t* row = a.rows.data + i * a.rows.stride;
      const auto* scales = reinterpret_cast<const float*>(row + k);
      for (int j = 0; j < n; ++j) {
        double exact = 0.0, magnitude = 0.0;
        for (int b = 0; b < k / 32; ++b) {
          const WeightBlock block = MakeBlock(format, j, b);
          double dot = 0.0, sum = 0.0;
          for (int e = 0; e < 32; ++e) {
            const int h = format.factors == QuantFactors::kOf16 ? e / 16 : 0;
            const double code = static_cast<int8_t>(row[b * 32 + e]);
            const int value = QuantValue(format, block.codes[e]);
            dot += code * value * (HasFactors(format) ? block.scales[h] : 1);
            sum += code * (HasFactors(format) ? block.mins[h] : 1);
          }
          const double s = scales[b];
          exact += s * block.d * dot + s * block.m * sum;
          magnitude +=
              std::fabs(s * block.d * dot) + std::fabs(s * block.m * sum);
        }
        // Two roundings a block in the sum, two more in each term.
        EXPECT_NEAR(out[static_cast<size_t>(i * n + j)], exact,
                    magnitude * (2 * k / 32 + 2) * kUlp);
      }
    }
  }
}

TEST(PackedMatrixTest, RefusesWhatItCannotHold) {
  const auto code = [](int rows, int cols, QuantFormat format,
                       const WeightBlock& block) {
    return PackedMatrix::Pack(rows, cols, format,
                              [&](int, int, WeightBlock* out) { *out = block; })
        .status()
        .code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto ok = absl::StatusCode::kOk;
  WeightBlock good;
  good.d = 0.5f;
  EXPECT_EQ(code(3, 64, {.bits = 4}, good), ok);
  EXPECT_EQ(code(0, 64, {.bits = 4}, good), invalid);
  EXPECT_EQ(code(3, 0, {.bits = 4}, good), invalid);
  EXPECT_EQ(code(3, 48, {.bits = 4}, good), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 7}, good), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 8, .offset = 129}, good), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 8, .has_min = true}, good), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 4, .offset = 8, .has_min = true}, good),
            invalid);
  EXPECT_EQ(code(3, 256, {.bits = 4, .factors = QuantFactors::kOf16}, good),
            invalid);
  EXPECT_EQ(code(3, 256, {.bits = 4, .offset = 8, .iq4 = true}, good), invalid);

  WeightBlock big_code = good;
  big_code.codes[31] = 16;
  EXPECT_EQ(code(3, 64, {.bits = 4}, big_code), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 5}, big_code), ok);

  WeightBlock inexact = good;
  inexact.d = 0.1f;
  EXPECT_EQ(code(3, 64, {.bits = 4}, inexact), invalid);
  inexact.d = std::numeric_limits<float>::infinity();
  EXPECT_EQ(code(3, 64, {.bits = 4}, inexact), invalid);

  WeightBlock with_min = good;
  with_min.m = 1.0f;
  EXPECT_EQ(code(3, 64, {.bits = 4}, with_min), invalid);
  EXPECT_EQ(code(3, 64, {.bits = 4, .has_min = true}, with_min), ok);
}

TEST(PackedMatrixTest, RefusesFactorsThatItCannotHold) {
  const QuantFormat with_min = {
      .bits = 4, .has_min = true, .factors = QuantFactors::kOf32};
  const QuantFormat halves = {
      .bits = 6, .offset = 32, .factors = QuantFactors::kOf16};
  const auto ok = [](const QuantFormat& format, int cols, int factor,
                     float last_d) {
    const auto packed = PackedMatrix::Pack(
        2, cols, format, [&](int, int block, WeightBlock* out) {
          out->d = block == cols / kQuantBlock - 1 ? last_d : 0.5f;
          out->scales[0] = factor;
        });
    return packed.ok();
  };
  EXPECT_TRUE(ok(with_min, 512, 63, 0.5f));
  EXPECT_FALSE(ok(with_min, 512, 64, 0.5f));
  EXPECT_FALSE(ok(with_min, 512, -1, 0.5f));
  EXPECT_TRUE(ok(halves, 512, -128, 0.5f));
  EXPECT_FALSE(ok(halves, 512, 128, 0.5f));
  EXPECT_FALSE(ok(halves, 512, 1, 0.25f));  // not that of its eight blocks
  EXPECT_FALSE(ok(halves, 320, 1, 0.5f));
  const QuantFormat nibbles = {
      .bits = 2, .has_min = true, .factors = QuantFactors::kOf16};
  EXPECT_TRUE(ok(nibbles, 512, 15, 0.5f));
  EXPECT_FALSE(ok(nibbles, 512, 16, 0.5f));
}

TEST(PackedMatrixTest, TakesItsOwnBits) {
  const size_t weights = 32 * 512;
  const auto bits = [&](const QuantFormat& format) {
    return 8.0 * static_cast<double>(Pack(format, 32, 512).bytes()) / weights;
  };
  EXPECT_EQ(bits({.bits = 4, .offset = 8}), 4.5);
  EXPECT_EQ(bits({.bits = 4, .has_min = true}), 5.0);
  EXPECT_EQ(bits({.bits = 5, .offset = 16}), 5.5);
  EXPECT_EQ(bits({.bits = 5, .has_min = true}), 6.0);
  EXPECT_EQ(bits({.bits = 8, .offset = 128}), 8.5);
  EXPECT_EQ(bits({.bits = 4, .has_min = true, .factors = QuantFactors::kOf32}),
            4.5);
  EXPECT_EQ(bits({.bits = 5, .has_min = true, .factors = QuantFactors::kOf32}),
            5.5);
  EXPECT_EQ(bits({.bits = 6, .offset = 32, .factors = QuantFactors::kOf16}),
            6.5625);
  EXPECT_EQ(bits({.bits = 2, .has_min = true, .factors = QuantFactors::kOf16}),
            2.625);
  // 6-bit scales are kept in 8 bits: the file has 3.4375 and 4.25.
  EXPECT_EQ(bits({.bits = 3, .offset = 4, .factors = QuantFactors::kOf16}),
            3.5625);
  EXPECT_EQ(bits({.bits = 4, .iq4 = true}), 4.5);
  EXPECT_EQ(bits({.bits = 4, .factors = QuantFactors::kOf32, .iq4 = true}),
            4.3125);
}

TEST(WeightArenaTest, HoldsManyMatricesApart) {
  WeightArena arena;
  std::vector<PackedMatrix> in_arena;
  const int shapes[][2] = {{40, 256}, {1, 256}, {17, 1280}, {200, 768}};
  for (const auto& [rows, cols] : shapes) {
    for (const QuantFormat& format : kFormats) {
      auto packed = PackedMatrix::Pack(
          rows, cols, format,
          [&](int row, int block, WeightBlock* out) {
            *out = MakeBlock(format, row, block);
          },
          &arena);
      ASSERT_TRUE(packed.ok()) << packed.status();
      EXPECT_EQ(reinterpret_cast<uintptr_t>(packed->view().data) % 64, 0u);
      in_arena.push_back(*std::move(packed));
    }
  }
  size_t i = 0, total = 0;
  for (const auto& [rows, cols] : shapes) {
    for (const QuantFormat& format : kFormats) {
      const PackedMatrix own = Pack(format, rows, cols);
      ASSERT_EQ(own.bytes(), in_arena[i].bytes());
      EXPECT_EQ(
          std::memcmp(own.view().data, in_arena[i].view().data, own.bytes()),
          0);
      total += own.bytes();
      ++i;
    }
  }
  EXPECT_GE(arena.bytes(), total);
  // One that is larger than what is left, and than a slab.
  uint8_t* big = arena.Allocate(size_t{40} << 20);
  big[0] = 1;
  big[(size_t{40} << 20) - 1] = 2;
  EXPECT_GE(arena.bytes(), total + (size_t{40} << 20));
}

}  // namespace
}  // namespace xcache
