#include "engine/kernels/int_matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/packed.h"
#include "tests/unit/engine/kernels/kernel_test_util.h"

namespace xcache {
namespace {

class IntMatmulTest : public KernelTest {
 protected:
  // Up to the largest: sums of 16 bits wrap.
  static std::vector<int16_t> Integers(IntType type, size_t n, uint32_t seed) {
    std::mt19937 bits(seed);
    std::vector<int16_t> values(n);
    for (int16_t& v : values) {
      v = type == IntType::kI16
              ? static_cast<int16_t>(bits())
              : static_cast<int16_t>(static_cast<int>(bits() % 255) - 127);
    }
    const int16_t least = type == IntType::kI16 ? -32768 : -127;
    std::fill_n(values.begin(), std::min<size_t>(n, 4), least);
    return values;
  }
  static PackedInt Pack(IntType type, const std::vector<int16_t>& b, int k,
                        int n) {
    auto packed = PackedInt::FromRows(k, n, type, [&](int row, int16_t* out) {
      std::copy_n(b.data() + row * n, n, out);
    });
    EXPECT_TRUE(packed.ok()) << packed.status();
    return *std::move(packed);
  }
  // A [m, k] as the kernel takes it, with what it does not look at set.
  static std::vector<uint8_t> RowsOf(IntType type,
                                     const std::vector<int16_t>& a, int m,
                                     int k, int64_t row_bytes) {
    std::vector<uint8_t> out(static_cast<size_t>(m * row_bytes), 0x81);
    for (int r = 0; r < m; ++r) {
      uint8_t* row = out.data() + r * row_bytes;
      for (int i = 0; i < k; ++i) {
        const int16_t value = a[static_cast<size_t>(r * k + i)];
        if (type == IntType::kI16) {
          std::memcpy(row + i * 2, &value, 2);
        } else {
          row[i] = static_cast<uint8_t>(value);
        }
      }
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
  for (const IntType type : {IntType::kI16, IntType::kI8}) {
    for (const int n : {1, 15, 16, 17, 33, 63, 64, 65, 130}) {
      for (const int k : {1, 2, 3, 4, 7, 64}) {
        const auto b = Integers(type, static_cast<size_t>(k * n), 3);
        const PackedInt packed = Pack(type, b, k, n);
        const std::vector<float> col_scales =
            MakeValues(Values::kNormal, static_cast<size_t>(n), 5);
        for (int m = 1; m <= 14; ++m) {
          const auto a = Integers(type, static_cast<size_t>(m * k), 4);
          const auto rows = RowsOf(type, a, m, k, packed.row_bytes());
          const std::vector<float> row_scales =
              MakeValues(Values::kNormal, static_cast<size_t>(m), 6);
          const int stride = n + 3;
          Guarded out(static_cast<size_t>(m * stride),
                      static_cast<size_t>(n % 3), 0.25f);
          std::vector<float> want(static_cast<size_t>(m * stride), 0.25f);
          const Epilogue epilogue =
              (m + k) % 2 == 0 ? Epilogue::kStore : Epilogue::kAdd;
          const IntMatmulArgs args = {.a = rows.data(),
                                      .a_stride = packed.row_bytes(),
                                      .num_rows = m,
                                      .b = packed.view(),
                                      .row_scales = row_scales.data(),
                                      .col_scales = col_scales.data(),
                                      .out = out.data(),
                                      .out_stride = stride,
                                      .epilogue = epilogue};
          const int split = packed.num_panels() / 2;
          codec_kernels().int_matmul(args, 0, split);
          codec_kernels().int_matmul(args, split, packed.num_panels());
          for (int r = 0; r < m; ++r) {
            for (int c = 0; c < n; ++c) {
              float& to = want[static_cast<size_t>(r * stride + c)];
              const float value =
                  static_cast<float>(Wrapped(a, b, r, c, k, n)) *
                  row_scales[static_cast<size_t>(r)] *
                  col_scales[static_cast<size_t>(c)];
              to = epilogue == Epilogue::kAdd ? to + value : value;
            }
          }
          ASSERT_TRUE(SameBits(want, out.Get())) << m << " " << n << " " << k;
          ASSERT_TRUE(out.intact());
        }
      }
    }
  }
}

TEST_P(IntMatmulTest, ColumnsPackAsRowsDo) {
  constexpr int kK = 7, kN = 70;
  for (const IntType type : {IntType::kI16, IntType::kI8}) {
    const auto b = Integers(type, size_t{kK} * kN, 3);
    const PackedInt rows = Pack(type, b, kK, kN);
    const auto columns =
        PackedInt::FromColumns(kK, kN, type, [&](int column, int16_t* out) {
          for (int row = 0; row < kK; ++row) {
            out[row] = b[static_cast<size_t>(row * kN + column)];
          }
        });
    ASSERT_TRUE(columns.ok());
    EXPECT_EQ(
        std::memcmp(rows.view().data, columns->view().data,
                    static_cast<size_t>(rows.row_bytes()) *
                        static_cast<size_t>(rows.num_panels()) * kIntPanelCols),
        0);
  }
}

TEST_P(IntMatmulTest, RowsAreRoundedToTheirLargest) {
  for (const IntType type : {IntType::kI16, IntType::kI8}) {
    const float most = type == IntType::kI16 ? 1023.0f : 127.0f;
    for (const Values kind : kAllValues) {
      for (const int n : {1, 15, 16, 17, 40}) {
        const auto size = static_cast<size_t>(n);
        const std::vector<float> values = MakeValues(kind, size, 21);
        const std::vector<float> less = MakeValues(Values::kNormal, size, 22);
        const std::vector<float> scales = MakeValues(Values::kNormal, size, 23);
        for (const bool plain : {true, false}) {
          const float* of_less = plain ? nullptr : less.data();
          const float* of_scales = plain ? nullptr : scales.data();
          std::vector<int16_t> out(size + 1, 77);
          const RoundRowArgs args = {values.data(), of_less, of_scales, n,
                                     most,          type,    out.data()};
          const float scale = codec_kernels().round_row(args);
          std::vector<float> x = values;
          float largest = 0.0f;
          for (size_t i = 0; i < size; ++i) {
            if (!plain) x[i] = (x[i] - less[i]) * scales[i];
            largest = std::max(largest, std::abs(x[i]));
          }
          const bool some = largest > kLeastRounded;
          ASSERT_EQ(scale, some ? largest / most : 0.0f);
          for (size_t i = 0; i < size; ++i) {
            const float want =
                some ? std::nearbyint(x[i] * (most / largest)) : 0.0f;
            const auto* bytes = reinterpret_cast<const int8_t*>(out.data());
            ASSERT_EQ(type == IntType::kI16 ? out[i] : bytes[i], want);
          }
          ASSERT_EQ(out[size], 77);
        }
      }
    }
  }
}

TEST_P(IntMatmulTest, RowsBeyondAllMeasureAreZero) {
  for (const float odd : {std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 0x1p100f}) {
    for (size_t at = 0; at < 20; ++at) {
      std::vector<float> values = MakeValues(Values::kNormal, 20, 24);
      values[at] = odd;
      std::vector<int16_t> out(20, 77);
      RoundRowArgs args;
      args.values = values.data();
      args.n = 20;
      args.most = 1023.0f;
      args.out = out.data();
      ASSERT_EQ(codec_kernels().round_row(args), 0.0f) << odd << " " << at;
      ASSERT_EQ(out, std::vector<int16_t>(20, 0));
    }
  }
}

TEST(PackedIntTest, EmptyShapesAreInvalidArgument) {
  const auto fill = [](int, int16_t*) {};
  EXPECT_EQ(PackedInt::FromRows(0, 4, IntType::kI16, fill).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PackedInt::FromColumns(4, 0, IntType::kI8, fill).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace xcache
