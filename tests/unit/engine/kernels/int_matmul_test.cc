#include "engine/kernels/int_matmul.h"

#include <random>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/packed.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

class IntMatmulTest : public KernelTest {
 protected:
  // Up to the largest: sums wrap.
  static std::vector<int16_t> Integers(size_t n, uint32_t seed) {
    std::mt19937 bits(seed);
    std::vector<int16_t> values(n);
    for (int16_t& v : values) v = static_cast<int16_t>(bits());
    if (n > 1) values[0] = values[1] = -32768;
    return values;
  }
  static PackedInt Pack(const std::vector<int16_t>& b, int k, int n) {
    auto packed = PackedInt::FromRows(k, n, [&](int row, int16_t* out) {
      std::copy_n(b.data() + row * n, n, out);
    });
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *std::move(packed);
  }
  // A [m, k] with rows of 2 ceil(k / 2).
  static std::vector<int16_t> Padded(const std::vector<int16_t>& a, int m,
                                     int k, int64_t width) {
    std::vector<int16_t> out(static_cast<size_t>(m * width));
    for (int r = 0; r < m; ++r) {
      std::copy_n(a.data() + r * k, k, out.data() + r * width);
    }
    return out;
  }
  static int32_t Wrapped(const std::vector<int16_t>& a,
                         const std::vector<int16_t>& b, int row, int column,
                         int k, int n) {
    int64_t sum = 0;
    for (int i = 0; i < k; ++i) {
      sum += int64_t{a[static_cast<size_t>(row * k + i)]} *
             b[static_cast<size_t>(i * n + column)];
    }
    return static_cast<int32_t>(static_cast<uint32_t>(sum));
  }
  const CodecKernels& codec_kernels() const {
    return GetCodecKernels(GetParam());
  }
};
XCACHE_FOR_EVERY_ISA(IntMatmulTest);

TEST_P(IntMatmulTest, IsTheProductModulo2To32ForEveryShape) {
  for (const int n : {1, 15, 16, 17, 33, 63, 64, 65, 130}) {
    for (const int k : {1, 2, 7, 64}) {
      const auto b = Integers(static_cast<size_t>(k * n), 3);
      const PackedInt packed = Pack(b, k, n);
      const std::vector<float> col_scales =
          MakeValues(Values::kNormal, static_cast<size_t>(n), 5);
      for (int m = 1; m <= 14; ++m) {
        const auto a = Integers(static_cast<size_t>(m * k), 4);
        const auto rows = Padded(a, m, k, packed.row_width());
        const std::vector<float> row_scales =
            MakeValues(Values::kNormal, static_cast<size_t>(m), 6);
        const int stride = n + 3;
        Guarded out(static_cast<size_t>(m * stride), static_cast<size_t>(n % 3),
                    0.25f);
        IntMatmulArgs args;
        args.a = rows.data();
        args.a_stride = packed.row_width();
        args.num_rows = m;
        args.b = packed.view();
        args.out = {row_scales.data(), col_scales.data(), out.data(), stride};
        const int split = packed.num_panels() / 2;
        codec_kernels().int_matmul(args, 0, split);
        codec_kernels().int_matmul(args, split, packed.num_panels());
        std::vector<float> want(static_cast<size_t>(m * stride), 0.25f);
        for (int r = 0; r < m; ++r) {
          for (int c = 0; c < n; ++c) {
            want[static_cast<size_t>(r * stride + c)] =
                static_cast<float>(Wrapped(a, b, r, c, k, n)) *
                row_scales[static_cast<size_t>(r)] *
                col_scales[static_cast<size_t>(c)];
          }
        }
        ASSERT_TRUE(SameBits(want, out.Get())) << m << " " << n << " " << k;
        ASSERT_TRUE(out.intact());
      }
    }
  }
}

// Rows of which each has fewer pairs than the one before, the last none.
TEST_P(IntMatmulTest, SparseAddsTheSameProduct) {
  constexpr int kRows = 5;
  for (const int n : {1, 16, 17, 64, 130}) {
    for (const int k : {1, 2, 9, 2 * kIntBlockPairs, 4 * kIntBlockPairs + 3}) {
      const auto b = Integers(static_cast<size_t>(k * n), 7);
      const PackedInt packed = Pack(b, k, n);
      auto a = Integers(static_cast<size_t>(kRows * k), 8);
      const int pairs = NumPairs(packed.view());
      const int blocks = (pairs + kIntBlockPairs - 1) / kIntBlockPairs;
      std::vector<uint8_t> counts(static_cast<size_t>(blocks * kRows));
      std::vector<uint8_t> places(counts.size() * kIntBlockPairs, 255);
      std::vector<int32_t> values(places.size());
      for (int r = 0; r < kRows; ++r) {
        for (int p = 0; p < pairs; ++p) {
          int16_t* at = &a[static_cast<size_t>(r * k + 2 * p)];
          const bool two = 2 * p + 1 < k;
          if (r + 1 == kRows || p % (r + 1) != 0) {
            at[0] = 0;
            if (two) at[1] = 0;
            continue;
          }
          const auto list = static_cast<size_t>(p / kIntBlockPairs * kRows + r);
          const size_t entry = list * kIntBlockPairs + counts[list]++;
          places[entry] = static_cast<uint8_t>(p % kIntBlockPairs);
          values[entry] = static_cast<int32_t>(
              static_cast<uint16_t>(at[0]) |
              static_cast<uint32_t>(static_cast<uint16_t>(two ? at[1] : 0))
                  << 16);
        }
      }
      const std::vector<float> row_scales =
          MakeValues(Values::kNormal, kRows, 9);
      const std::vector<float> col_scales =
          MakeValues(Values::kNormal, static_cast<size_t>(n), 10);
      const int stride = n + 3;
      Guarded out(static_cast<size_t>(kRows * stride), 1, 0.25f);
      SparseIntMatmulArgs args;
      args.a = {counts.data(), places.data(), values.data()};
      args.num_rows = kRows;
      args.b = packed.view();
      args.out = {row_scales.data(), col_scales.data(), out.data(), stride};
      const int split = packed.num_panels() / 2;
      codec_kernels().sparse_int_matmul(args, 0, split);
      codec_kernels().sparse_int_matmul(args, split, packed.num_panels());
      std::vector<float> want(static_cast<size_t>(kRows * stride), 0.25f);
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < n; ++c) {
          want[static_cast<size_t>(r * stride + c)] +=
              static_cast<float>(Wrapped(a, b, r, c, k, n)) *
              row_scales[static_cast<size_t>(r)] *
              col_scales[static_cast<size_t>(c)];
        }
      }
      ASSERT_TRUE(SameBits(want, out.Get())) << n << " " << k;
      ASSERT_TRUE(out.intact());
    }
  }
}

TEST(PackedIntTest, EmptyShapesAreInvalidArgument) {
  const auto fill = [](int, int16_t*) {};
  EXPECT_EQ(PackedInt::FromRows(0, 4, fill).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedInt::FromRows(4, 0, fill).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace xcache
