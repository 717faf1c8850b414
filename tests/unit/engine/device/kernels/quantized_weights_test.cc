// Weights that stay quantized: what device and host make of GGUF blocks against
// DequantizeRow bit for bit, and the product that reads blocks against the one
// of unpacked weights. One suite for every device, as in device_ops_test.cc.
#include "engine/device/kernels/quantized_weights.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/device/kernels/weight_blocks.h"
#include "engine/device/weight_product.h"
#include "engine/device/weights.h"
#include "engine/kernels/scalar_math.h"
#include "engine/model/model.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

constexpr GgufType kTypes[] = {
    GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0, GgufType::kQ5_1,
    GgufType::kQ8_0, GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K};

std::string NameOf(GgufType type) { return std::string(InfoOf(type)->name); }

TensorView View(GgufType type, int64_t rows, int64_t cols,
                const std::string& bytes) {
  TensorView tensor;
  tensor.name = "t";
  tensor.type = type;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.bytes = {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  return tensor;
}

TEST(WeightBlocksTest, BytesAreThoseOfTheFormat) {
  for (GgufType type : kTypes) {
    const WeightType held = WeightTypeOf(type);
    const GgufTypeInfo info = *InfoOf(type);
    EXPECT_EQ(WeightBytes(held, info.block_elements), info.block_bytes)
        << info.name;
    EXPECT_EQ(QuantizedRowBytes(held, 1024) % 16, 0) << info.name;
    EXPECT_GE(QuantizedRowBytes(held, 1024), WeightBytes(held, 1024));
    // Units, and what of the units before shares their first 16 bytes.
    EXPECT_LE(UnitBytes(held) + (UnitBytes(held) % 16 == 0 ? 0 : 14),
              kUnitStride)
        << info.name;
    EXPECT_EQ(UnitBytes(held) % 2, 0) << info.name;
  }
  for (GgufType type : {GgufType::kF32, GgufType::kF16, GgufType::kBF16}) {
    EXPECT_EQ(WeightTypeOf(type), WeightType::kBf16);
  }
}

// Of all bytes there are, so every code, scale and minimum, also those that no
// quantizer writes.
TEST(WeightBlocksTest, WeightsAreTheDequantizedOnesBitForBit) {
  std::mt19937 rng(5);
  for (GgufType type : kTypes) {
    const GgufTypeInfo info = *InfoOf(type);
    constexpr int kCols = 256 * 600;
    std::string bytes(
        static_cast<size_t>(kCols / info.block_elements * info.block_bytes),
        '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng());
    const TensorView tensor = View(type, 1, kCols, bytes);
    std::vector<float> expected(kCols);
    DequantizeRow(tensor, 0, expected.data());
    int finite = 0;
    for (int octet = 0; octet < kCols / 8; ++octet) {
      float found[8];
      WeightsOfRow(WeightTypeOf(type), tensor.bytes.data(), octet, found);
      for (int i = 0; i < 8; ++i) {
        const float want = expected[static_cast<size_t>(8 * octet + i)];
        finite += IsFinite(want) ? 1 : 0;
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(found[i])) << info.name << ": " << octet;
        } else {
          ASSERT_EQ(BitsOf(found[i]), BitsOf(want))
              << info.name << ": weight " << 8 * octet + i;
        }
      }
    }
    EXPECT_GT(finite, kCols / 2) << info.name;
  }
}

// Each warp has columns and octets of its own, and together they have all.
TEST(QuantizedShapesTest, WarpsCoverEveryColumnAndRowOnce) {
  std::vector<int> seen(kWeightColumns * kGemmRows);
  for (int warp = 0; warp < kWarps; ++warp) {
    for (int i = 0; i < kWarpOctets; ++i) {
      for (int column = 0; column < kMmaRows; ++column) {
        for (int row = 0; row < kMmaCols; ++row) {
          ++seen[static_cast<size_t>((WarpColumn(warp) + column) * kGemmRows +
                                     WarpOctet(warp, i) * kMmaCols + row)];
        }
      }
    }
  }
  for (int n : seen) EXPECT_EQ(n, 1);
}

TEST(QuantizedShapesTest, SharedMemoryFitsAndIsAligned) {
  EXPECT_LE(sizeof(QuantizedShared), 48u * 1024);
  EXPECT_EQ(offsetof(QuantizedShared, w) % 16, 0u);
  EXPECT_EQ(offsetof(QuantizedShared, a) % 16, 0u);
  EXPECT_EQ(kHalfUnitStride * sizeof(uint16_t) % 16, 0u);
  // What is in 32 different banks: a fragment's lanes, 8 rows of 4 words, and
  // 16 bytes of 8 columns.
  std::set<int> words;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    words.insert((lane / 4 * kHalfUnitStride / 2 + lane % 4) % 32);
  }
  EXPECT_EQ(words.size(), 32u);
}

class QuantizedWeightsTest : public DeviceOpsTest {
 protected:
  // Weights on the device, and as BF16 on the host.
  struct Matrix {
    std::unique_ptr<DeviceMemory> memory;
    QuantizedMatrix quantized;
    std::vector<uint16_t> bf16;
  };

  Matrix Upload(GgufType type, int rows, int k) {
    const std::string bytes =
        testing::Quantize(type, Random(static_cast<size_t>(rows * k)));
    const TensorView tensor = View(type, rows, k, bytes);
    const WeightType held = WeightTypeOf(type);
    Matrix m;
    m.memory = std::make_unique<DeviceMemory>(*ops_);
    const int64_t row_bytes = QuantizedRowBytes(held, k);
    EXPECT_TRUE(m.memory->Reserve(static_cast<size_t>(rows * row_bytes)).ok());
    // A row and a half: uploaded one by one.
    PinnedMemory staging(*ops_);
    EXPECT_TRUE(
        staging.Reserve(static_cast<size_t>(row_bytes + row_bytes / 2)).ok());
    ThreadPool pool(2);
    UploadBlocks(*ops_, pool, staging, tensor, m.memory->as<uint8_t>());
    m.quantized = {m.memory->as<uint8_t>(), row_bytes, held};
    std::vector<float> row(static_cast<size_t>(k));
    for (int r = 0; r < rows; ++r) {
      DequantizeRow(tensor, r, row.data());
      for (float x : row) m.bf16.push_back(xcache::F32ToBf16(x));
    }
    return m;
  }

  bool HasKernel() const { return ops_->info().has_quantized_gemm; }

  // Rows of `a` from `first` on.
  std::vector<float> Multiply(const Array<uint16_t>& a, const Matrix& w, int n,
                              int k, int first, int num_rows, bool add,
                              int64_t out_stride, size_t out_rows) {
    Array<float> out(
        *ops_, std::vector<float>(out_rows * static_cast<size_t>(out_stride),
                                  kUntouched));
    QuantizedGemmArgs args;
    args.a = a.get() + int64_t{first} * k;
    args.w = w.quantized;
    args.out = out.get();
    args.out_stride = out_stride;
    args.num_rows = num_rows;
    args.n = n;
    args.k = k;
    args.add = add;
    ops_->QuantizedGemm(args);
    return out.ToHost();
  }

  static constexpr float kUntouched = 3.0f;
};

// Widths with every part of a unit at the end, and units at every offset from
// 16 bytes.
std::vector<int> WidthsOf(GgufType type) {
  if (IsSuperBlock(WeightTypeOf(type))) return {256, 512, 256 * 9};
  return {32, 64, 96, 128, 160, 256, 288, 416, 512, 544};
}

INSTANTIATE_TEST_SUITE_P(Devices, QuantizedWeightsTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

TEST_P(QuantizedWeightsTest, UnpackedRowsAreTheUploadedBf16BitForBit) {
  for (GgufType type : kTypes) {
    for (int k : WidthsOf(type)) {
      const int rows = 5;
      const Matrix m = Upload(type, rows, k);
      Array<uint16_t> out(*ops_, std::vector<uint16_t>(m.bf16.size()));
      UnpackArgs args;
      args.w = m.quantized;
      args.out = out.get();
      args.num_rows = rows;
      args.k = k;
      ops_->Unpack(args);
      ASSERT_TRUE(out.ToHost() == m.bf16) << NameOf(type) << ", " << k;
    }
  }
}

TEST_P(QuantizedWeightsTest, EmbeddedRowsAreTheBf16Ones) {
  for (GgufType type : kTypes) {
    const int k = 512;
    const Matrix m = Upload(type, 7, k);
    std::vector<RowInfo> rows(2);
    rows[0].token = 6;
    rows[1].token = 3;
    Array<RowInfo> device_rows(*ops_, rows);
    Array<float> out(*ops_, std::vector<float>(size_t{2} * k));
    EmbedArgs args;
    args.rows = device_rows.get();
    args.quantized = m.quantized;
    args.out = out.get();
    args.num_rows = 2;
    args.width = k;
    ops_->Embed(args);
    const std::vector<float> found = out.ToHost();
    for (size_t r = 0; r < 2; ++r) {
      for (size_t i = 0; i < size_t{k}; ++i) {
        const size_t at = static_cast<size_t>(rows[r].token) * k + i;
        ASSERT_EQ(BitsOf(found[r * k + i]),
                  BitsOf(xcache::Bf16ToF32(m.bf16[at])))
            << NameOf(type) << ": row " << r << ", " << i;
      }
    }
  }
}

// Rows that select a channel give the weights themselves, whatever the order of
// sums: every place that the kernel computes, of bytes, in shared memory, in
// fragments and in the output.
TEST_P(QuantizedWeightsTest, ASelectionOfChannelsIsWhatIsUnpacked) {
  if (!HasKernel()) GTEST_SKIP() << "the device has no such kernel";
  for (GgufType type : kTypes) {
    for (int k : WidthsOf(type)) {
      for (int n : {1, 31, 33, 80}) {
        if (n != 33 && k != 288 && k != 512) continue;
        const Matrix m = Upload(type, n, k);
        // All channels, in another order than that of rows.
        const int step = 7;
        std::vector<uint16_t> a(
            static_cast<size_t>((k + kGemmRows - 1) / kGemmRows * kGemmRows) *
            static_cast<size_t>(k));
        const auto channel_of = [&](int row) { return (step * row + 5) % k; };
        for (int row = 0; row < k; ++row) {
          a[static_cast<size_t>(row * k + channel_of(row))] = F32ToBf16(1.0f);
        }
        const Array<uint16_t> device_a(*ops_, a);
        // Several tiles at a time, until every channel was selected.
        for (int first = 0; first < k; first += 296) {
          const int rows = std::min(296, k - first);
          const int out_rows = rows + kGemmRows;
          const std::vector<float> found =
              Multiply(device_a, m, n, k, first, rows, false, n + 3,
                       static_cast<size_t>(out_rows));
          for (int row = 0; row < out_rows; ++row) {
            for (int c = 0; c < n + 3; ++c) {
              const float value = found[static_cast<size_t>(row * (n + 3) + c)];
              if (row >= rows || c >= n) {
                ASSERT_EQ(value, kUntouched) << row << ", " << c;
                continue;
              }
              const auto at =
                  static_cast<size_t>(c * k + channel_of(first + row));
              // As values: a sum makes 0 of -0.
              ASSERT_EQ(value, xcache::Bf16ToF32(m.bf16[at]))
                  << NameOf(type) << ", k " << k << ", n " << n << ": row "
                  << first + row << ", column " << c;
            }
          }
        }
      }
    }
  }
}

TEST_P(QuantizedWeightsTest, ProductsAreCloseToThoseOfUnpackedWeights) {
  constexpr int kAbove = 16;  // rows of another part
  for (GgufType type : kTypes) {
    for (int k : WidthsOf(type)) {
      const int n = 152, num_rows = 11, stride = kAbove + n + 8;
      const Matrix m = Upload(type, n, k);
      std::vector<uint16_t> a(static_cast<size_t>(kGemmRows * k));
      for (uint16_t& x : a) x = F32ToBf16(Random(1)[0]);
      const Array<uint16_t> device_a(*ops_, a);
      DeviceMatrix matrix;
      matrix.cols = k;
      matrix.parts.push_back({kAbove, n, nullptr, m.quantized});
      std::vector<std::vector<float>> found;
      for (WeightKernel kernel :
           {WeightKernel::kFused, WeightKernel::kTwoStep}) {
        // In two steps 64 rows of W at a time.
        WeightProduct product(*ops_, kernel, 1);
        const DeviceMatrix* const all[] = {&matrix};
        ASSERT_TRUE(product.Reserve(all).ok());
        Array<float> out(*ops_, std::vector<float>(kGemmRows * stride, 0.5f));
        product.Run(device_a.get(), matrix, out.get(), stride, true, num_rows);
        found.push_back(out.ToHost());
      }
      for (int row = 0; row < num_rows; ++row) {
        for (int c = 0; c < n; ++c) {
          double sum = 0.5, sizes = 0.5;
          for (int i = 0; i < k; ++i) {
            const double product =
                static_cast<double>(
                    xcache::Bf16ToF32(a[static_cast<size_t>(row * k + i)])) *
                static_cast<double>(
                    xcache::Bf16ToF32(m.bf16[static_cast<size_t>(c * k + i)]));
            sum += product;
            sizes += std::fabs(product);
          }
          // k additions, each wrong by at most 2^-23 (a tensor core may
          // truncate) of the sum of absolute values.
          const auto at = static_cast<size_t>(row * stride + kAbove + c);
          for (const std::vector<float>& way : found) {
            ASSERT_NEAR(way[at], sum, k * 0x1p-23 * sizes)
                << NameOf(type) << ", k " << k << ": row " << row << ", column "
                << c;
          }
        }
      }
    }
  }
}

// Rule R1: the bits of a row do not depend on how many rows there are, on where
// it is among them, nor on what the others hold.
TEST_P(QuantizedWeightsTest, ARowHasTheSameBitsAloneAndAmongOthers) {
  if (!HasKernel()) GTEST_SKIP() << "the device has no such kernel";
  for (GgufType type : kTypes) {
    const int n = 80, k = 512;
    const Matrix m = Upload(type, n, k);
    const int max_rows = 130;
    std::vector<uint16_t> a(size_t{256} * k);
    for (uint16_t& x : a) x = F32ToBf16(Random(1)[0]);
    const Array<uint16_t> device_a(*ops_, a);
    const std::vector<float> all =
        Multiply(device_a, m, n, k, 0, max_rows, false, n, max_rows);
    for (int rows : {1, 2, 7, 8, 9, 63, 64, 65, 129}) {
      const std::vector<float> some = Multiply(
          device_a, m, n, k, 0, rows, false, n, static_cast<size_t>(rows));
      ASSERT_TRUE(std::equal(some.begin(), some.end(), all.begin()))
          << NameOf(type) << ": " << rows << " rows";
    }
    for (int first : {1, 8, 13, 64, 127}) {
      const std::vector<float> moved =
          Multiply(device_a, m, n, k, first, 3, false, n, 3);
      ASSERT_TRUE(std::equal(moved.begin(), moved.end(),
                             all.begin() + static_cast<ptrdiff_t>(first) * n))
          << NameOf(type) << ": from row " << first;
    }
    // NaNs in every row but one.
    std::vector<uint16_t> alone(a.size(), 0x7fc0);
    std::copy_n(a.begin() + 11 * k, k, alone.begin() + 11 * k);
    const Array<uint16_t> device_alone(*ops_, alone);
    const std::vector<float> one =
        Multiply(device_alone, m, n, k, 0, max_rows, false, n, max_rows);
    ASSERT_TRUE(std::equal(one.begin() + 11 * n, one.begin() + 12 * n,
                           all.begin() + 11 * n))
        << NameOf(type);
    const std::vector<float> sums =
        Multiply(device_a, m, n, k, 0, 3, true, n, 3);
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(sums[i], kUntouched + all[i]) << NameOf(type) << ": " << i;
    }
  }
}

}  // namespace
}  // namespace xcache::cuda
