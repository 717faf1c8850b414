#include "engine/kernels/row_ops.h"

#include <vector>

#include "engine/kernels/scalar_math.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

constexpr int kMaxLength = 35;  // 2 * 16 + 3

class RowOpsTest : public KernelTest {};
XCACHE_FOR_EVERY_ISA(RowOpsTest);

TEST_P(RowOpsTest, RmsNormEqualsReferenceAndFormula) {
  for (const Values kind : kAllValues) {
    for (int n = 1; n <= 576; n = n < kMaxLength ? n + 1 : n + 541) {
      const size_t offset = static_cast<size_t>(n) % 5;
      const auto size = static_cast<size_t>(n);
      const std::vector<float> x = MakeValues(kind, size, 1);
      const std::vector<float> gain = MakeValues(Values::kNormal, size, 2);
      const float eps = 1e-5f;
      std::vector<float> want(size), want_unit(size);
      const float want_rms = ref().rms_norm(x.data(), gain.data(), n, eps,
                                            want.data(), want_unit.data());
      Guarded in(size, offset);
      std::copy(x.begin(), x.end(), in.data());
      Guarded out(size, offset), unit(size, offset);
      const float rms = kernels().rms_norm(in.data(), gain.data(), n, eps,
                                           out.data(), unit.data());
      EXPECT_EQ(want_rms, rms);
      EXPECT_TRUE(SameBits(want, out.Get())) << n;
      EXPECT_TRUE(SameBits(want_unit, unit.Get())) << n;
      EXPECT_TRUE(out.intact() && unit.intact());
      // In place, the unit form.
      kernels().rms_norm(in.data(), nullptr, n, eps, in.data(), nullptr);
      EXPECT_TRUE(SameBits(want_unit, in.Get())) << n;

      double sum = 0.0;
      for (const float v : x) sum += static_cast<double>(v) * v;
      const double exact = std::sqrt(sum / n + static_cast<double>(eps));
      // n / 16 additions and the tree, then 4 roundings; the root halves.
      EXPECT_NEAR(rms, exact, exact * (n / 16 + 10) * 2.0 * kUlp);
    }
  }
}

TEST_P(RowOpsTest, GatesEqualReferenceAndFormula) {
  for (int n = 0; n <= kMaxLength; ++n) {
    for (const Values kind : kAllValues) {
      const auto size = static_cast<size_t>(n);
      std::vector<float> gate = MakeValues(kind, size, 3);
      if (kind == Values::kNormal) {
        for (float& g : gate) g *= 40.0f;  // through the exponential's range
      }
      const std::vector<float> up = MakeValues(Values::kNormal, size, 4);
      for (const bool gelu : {false, true}) {
        const auto multiply = [&](const Kernels& k, float* out) {
          (gelu ? k.gelu_mul : k.silu_mul)(gate.data(), up.data(), n, out);
        };
        std::vector<float> want(size);
        multiply(ref(), want.data());
        Guarded out(size, static_cast<size_t>(n) % 7);
        multiply(kernels(), out.data());
        EXPECT_TRUE(SameBits(want, out.Get())) << n;
        EXPECT_TRUE(out.intact());
        for (size_t i = 0; i < size; ++i) {
          const double g = gate[i];
          const double y =
              gelu ? 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g) : g;
          const double exact = g / (1.0 + std::exp(-y)) * up[i];
          // Beyond e^88 the exponential is held: the value is then below 1e-36
          // of the input. Its argument is rounded: that counts where it is
          // large.
          const double tolerance =
              std::fabs(exact) * (1e-6 + (gelu ? std::fabs(y) * 3 * kUlp : 0)) +
              std::fabs(g * up[i]) * 1e-36 + 1e-40;
          EXPECT_NEAR(want[i], exact, tolerance) << g;
        }
      }
    }
  }
}

TEST(ScalarMathTest, ExponentialsAreAccurateOverTheirRange) {
  for (double x = -125.0; x <= 126.9; x += 0.0137) {
    const auto f = static_cast<float>(x);
    EXPECT_NEAR(Exp2(f) / std::exp2(static_cast<double>(f)), 1.0, 2.5e-7) << x;
  }
  for (double x = -86.4; x <= 87.9; x += 0.0137) {
    const auto f = static_cast<float>(x);
    EXPECT_NEAR(Exp(f) / std::exp(static_cast<double>(f)), 1.0, 2.5e-7) << x;
  }
  EXPECT_EQ(Exp2(0.0f), 1.0f);
  EXPECT_EQ(Exp2(-0.0f), 1.0f);
  EXPECT_EQ(Exp2(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(Exp(-1e30f), 0.0f);
  EXPECT_TRUE(std::isfinite(Exp(1e30f)));
}

TEST_P(RowOpsTest, AddEqualsReference) {
  for (int n = 0; n <= kMaxLength; ++n) {
    const auto size = static_cast<size_t>(n);
    const std::vector<float> a = MakeValues(Values::kOutlier, size, 5);
    const std::vector<float> b = MakeValues(Values::kNormal, size, 6);
    std::vector<float> want(size);
    for (size_t i = 0; i < size; ++i) want[i] = a[i] + b[i];
    Guarded out(size, static_cast<size_t>(n) % 3);
    kernels().add(a.data(), b.data(), n, out.data());
    EXPECT_TRUE(SameBits(want, out.Get())) << n;
    EXPECT_TRUE(out.intact());
    std::vector<float> in_place = a;
    kernels().add(in_place.data(), b.data(), n, in_place.data());
    EXPECT_TRUE(SameBits(want, in_place)) << n;
  }
}

TEST_P(RowOpsTest, RopeTurnsPairsAndLeavesTheRest) {
  const int num_heads = 3;
  for (const RopeOrder order : {RopeOrder::kInterleaved, RopeOrder::kHalves}) {
    for (int head_dim = 16; head_dim <= 128; head_dim += 16) {
      for (int rope_dim : {2, head_dim / 2 + 2, head_dim}) {
        const int half = rope_dim / 2;
        std::vector<float> cos(static_cast<size_t>(half));
        std::vector<float> sin(static_cast<size_t>(half));
        for (int i = 0; i < half; ++i) {
          cos[static_cast<size_t>(i)] = std::cos(0.1f * static_cast<float>(i));
          sin[static_cast<size_t>(i)] = std::sin(0.1f * static_cast<float>(i));
        }
        const auto size = static_cast<size_t>(num_heads * head_dim);
        const std::vector<float> x = MakeValues(Values::kNormal, size, 7);
        std::vector<float> want = x;
        ref().rope(want.data(), num_heads, head_dim, rope_dim, cos.data(),
                   sin.data(), order);
        Guarded out(size, 3);
        std::copy(x.begin(), x.end(), out.data());
        kernels().rope(out.data(), num_heads, head_dim, rope_dim, cos.data(),
                       sin.data(), order);
        EXPECT_TRUE(SameBits(want, out.Get())) << head_dim << " " << rope_dim;
        EXPECT_TRUE(out.intact());
        const bool interleaved = order == RopeOrder::kInterleaved;
        for (int h = 0; h < num_heads; ++h) {
          for (int i = 0; i < half; ++i) {
            const int base = h * head_dim;
            const auto a =
                static_cast<size_t>(base + (interleaved ? 2 * i : i));
            const auto b = static_cast<size_t>(
                base + (interleaved ? 2 * i + 1 : i + half));
            const double c = cos[static_cast<size_t>(i)];
            const double s = sin[static_cast<size_t>(i)];
            EXPECT_NEAR(want[a], x[a] * c - x[b] * s, 1e-6);
            EXPECT_NEAR(want[b], x[b] * c + x[a] * s, 1e-6);
          }
          for (int d = rope_dim; d < head_dim; ++d) {
            const auto at = static_cast<size_t>(h * head_dim + d);
            EXPECT_EQ(want[at], x[at]);
          }
        }
      }
    }
  }
}

TEST_P(RowOpsTest, EveryHalfWidensExactlyAndComesBack) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) {
    halves[i] = static_cast<uint16_t>(i);
  }
  std::vector<float> want(halves.size()), wide(halves.size());
  ref().from_f16(halves.data(), 65536, want.data());
  kernels().from_f16(halves.data(), 65536, wide.data());
  EXPECT_TRUE(SameBits(want, wide));
  EXPECT_EQ(wide[0x3c00], 1.0f);
  EXPECT_EQ(wide[0x0001], 0x1p-24f);
  EXPECT_EQ(wide[0x7bff], 65504.0f);
  std::vector<uint16_t> back(halves.size());
  kernels().to_f16(wide.data(), 65536, back.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    if (std::isnan(wide[i])) {
      EXPECT_EQ(back[i], halves[i] | 0x200) << i;
    } else {
      EXPECT_EQ(back[i], halves[i]) << i;
    }
  }
}

TEST_P(RowOpsTest, ToF16RoundsHalfToEven) {
  std::vector<float> x;
  // The values between neighbouring halves, and next to them.
  for (int i = 0; i < 0x7c00; ++i) {
    const float low = F16ToF32(static_cast<uint16_t>(i));
    const float high =
        i == 0x7bff ? 65536.0f : F16ToF32(static_cast<uint16_t>(i + 1));
    const float middle = low + (high - low) / 2;
    for (const float v : {middle, std::nextafter(middle, 0.0f),
                          std::nextafter(middle, 1e30f)}) {
      x.push_back(v);
      x.push_back(-v);
    }
  }
  x.insert(x.end(), {1e30f, -1e30f, 1e-30f, 0x1p-149f,
                     std::numeric_limits<float>::infinity(),
                     std::numeric_limits<float>::quiet_NaN()});
  const auto n = static_cast<int>(x.size());
  std::vector<uint16_t> want(x.size()), out(x.size());
  ref().to_f16(x.data(), n, want.data());
  kernels().to_f16(x.data(), n, out.data());
  EXPECT_EQ(want, out);
  for (int i = 0; i < 0x7c00; ++i) {  // ties go to the even one of the two
    EXPECT_EQ(want[static_cast<size_t>(i) * 6] % 2, 0) << i;
  }
}

TEST_P(RowOpsTest, ConversionsHandleEveryLength) {
  for (int n = 0; n <= kMaxLength; ++n) {
    const auto size = static_cast<size_t>(n);
    const std::vector<float> x = MakeValues(Values::kNormal, size, 8);
    std::vector<uint16_t> halves(size + 1, 77);
    kernels().to_f16(x.data(), n, halves.data());
    EXPECT_EQ(halves[size], 77);
    Guarded out(size, static_cast<size_t>(n) % 4);
    kernels().from_f16(halves.data(), n, out.data());
    EXPECT_TRUE(out.intact());
    for (size_t i = 0; i < size; ++i) {
      EXPECT_EQ(halves[i], F32ToF16(x[i]));
      EXPECT_EQ(out.data()[i], F16ToF32(halves[i]));
    }
  }
}

}  // namespace
}  // namespace xcache
