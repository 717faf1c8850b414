#include "engine/kernels/float_matmul.h"

#include <vector>

#include "engine/kernels/packed.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

class FloatMatmulTest : public KernelTest {
 protected:
  // Rows [first_row, first_row + num_rows) of `a`, into `out` of all rows.
  static void Multiply(const Kernels& kernels, const std::vector<float>& a,
                       int first_row, int num_rows, const PackedFloat& b,
                       Epilogue epilogue, float* out, int split = 0) {
    FloatMatmulArgs args;
    args.a = a.data() + first_row * b.k();
    args.a_stride = b.k();
    args.num_rows = num_rows;
    args.b = b.view();
    args.out = out;
    args.out_stride = b.n() + 5;
    args.epilogue = epilogue;
    kernels.float_matmul(args, 0, split);
    kernels.float_matmul(args, split, b.num_panels());
  }

  static PackedFloat Pack(FloatType type, int k, int n, Values kind) {
    const std::vector<float> w =
        MakeValues(kind, static_cast<size_t>(k) * static_cast<size_t>(n), 11);
    auto packed = PackedFloat::FromWeightRows(
        n, k, type,
        [&](int row, float* out) { std::copy_n(w.data() + row * k, k, out); });
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *std::move(packed);
  }

  static size_t OutSize(int m, int n) {
    return static_cast<size_t>(m) * static_cast<size_t>(n + 5);
  }
};
XCACHE_FOR_EVERY_ISA(FloatMatmulTest);

TEST_P(FloatMatmulTest, EqualsReferenceForEveryShape) {
  for (const FloatType type :
       {FloatType::kF32, FloatType::kF16, FloatType::kBF16}) {
    for (const int n : {1, 15, 16, 17, 31, 33, 48, 50, 63, 64, 65, 130}) {
      for (const int k : {1, 2, 7, 64}) {
        const PackedFloat b = Pack(type, k, n, Values::kNormal);
        for (int m = 1; m <= 14; ++m) {
          const std::vector<float> a =
              MakeValues(Values::kOutlier, static_cast<size_t>(m * k), 12);
          for (const Epilogue e : {Epilogue::kStore, Epilogue::kAdd}) {
            Guarded want(OutSize(m, n), 0, 0.25f);
            Guarded out(OutSize(m, n), static_cast<size_t>(n % 3), 0.25f);
            Multiply(ref(), a, 0, m, b, e, want.data());
            Multiply(kernels(), a, 0, m, b, e, out.data());
            ASSERT_TRUE(SameBits(want.Get(), out.Get()))
                << "m " << m << " n " << n << " k " << k;
            ASSERT_TRUE(out.intact());
          }
        }
      }
    }
  }
}

TEST_P(FloatMatmulTest, AwkwardValuesEqualReference) {
  for (const Values kind : kAllValues) {
    const PackedFloat b = Pack(FloatType::kF32, 33, 70, kind);
    const std::vector<float> a = MakeValues(kind, 7 * 33, 13);
    std::vector<float> want(OutSize(7, 70)), out(OutSize(7, 70));
    Multiply(ref(), a, 0, 7, b, Epilogue::kStore, want.data());
    Multiply(kernels(), a, 0, 7, b, Epilogue::kStore, out.data());
    EXPECT_TRUE(SameBits(want, out));
  }
}

TEST_P(FloatMatmulTest, RowsDependNeitherOnOtherRowsNorOnPanelSplits) {
  const int m = 17;
  const PackedFloat b = Pack(FloatType::kF32, 40, 150, Values::kNormal);
  const std::vector<float> a = MakeValues(Values::kNormal, m * 40, 14);
  std::vector<float> whole(OutSize(m, 150));
  Multiply(kernels(), a, 0, m, b, Epilogue::kStore, whole.data());
  for (int rows = 1; rows <= m; ++rows) {
    for (int first = 0; first + rows <= m; first += 3) {
      std::vector<float> part = whole;
      std::fill_n(part.begin() + first * 155, rows * 155, 0.0f);
      Multiply(kernels(), a, first, rows, b, Epilogue::kStore,
               part.data() + first * 155, rows % 4);
      for (int r = first; r < first + rows; ++r) {
        std::fill_n(part.begin() + r * 155 + 150, 5, 0.0f);
      }
      ASSERT_TRUE(SameBits(whole, part)) << rows << " from " << first;
    }
  }
}

TEST(FloatMatmulRefTest, MatchesDoubleWithinTheRoundingBound) {
  const int m = 3, k = 576, n = 20;
  const std::vector<float> a = MakeValues(Values::kOutlier, m * k, 15);
  const std::vector<float> w = MakeValues(Values::kNormal, n * k, 16);
  // B[k][n] = w[n][k], by strides.
  const auto b = PackedFloat::FromMatrix(w.data(), k, n, 1, k);
  ASSERT_TRUE(b.ok()) << b.status();
  std::vector<float> out(m * n);
  FloatMatmulArgs args;
  args.a = a.data();
  args.a_stride = k;
  args.num_rows = m;
  args.b = b->view();
  args.out = out.data();
  args.out_stride = n;
  GetKernels(Isa::kRef).float_matmul(args, 0, b->num_panels());
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double exact = 0.0, magnitude = 0.0;
      for (int x = 0; x < k; ++x) {
        const double term =
            static_cast<double>(a[static_cast<size_t>(i * k + x)]) *
            w[static_cast<size_t>(j * k + x)];
        exact += term;
        magnitude += std::fabs(term);
      }
      EXPECT_NEAR(out[static_cast<size_t>(i * n + j)], exact,
                  magnitude * k * kUlp);
    }
  }
}

TEST(PackedFloatTest, EmptyShapesAreInvalidArgument) {
  EXPECT_EQ(PackedFloat::FromMatrix(nullptr, 0, 4, 1, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedFloat::FromMatrix(nullptr, 4, 0, 1, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace xcache
