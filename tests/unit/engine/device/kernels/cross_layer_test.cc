// The kernels of cross-layer codecs, and the exact products that sealing needs,
// against what the CPU computes: bit for bit, on every device.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/kernels/packed.h"
#include "engine/types.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/ops_fixture.h"

namespace xcache::cuda {
namespace {

using CrossLayerOpsTest = DeviceOpsTest;

INSTANTIATE_TEST_SUITE_P(Devices, CrossLayerOpsTest,
                         ::testing::ValuesIn(testing::TestDevices()),
                         [](const auto& param) { return param.param.name; });

TEST_P(CrossLayerOpsTest, SumsAreScaledAndRounded) {
  const int width = 136;
  const auto n = static_cast<size_t>(kBlockTokens * width);
  std::vector<float> x = Random(2 * n, 3.0f);
  std::vector<uint8_t> payload(7 + kBlockTokens);
  for (uint8_t& byte : payload) byte = static_cast<uint8_t>(rng_());
  Array<float> sums(*ops_, x);
  Array<uint8_t> first(*ops_, std::vector<uint8_t>(payload.size(), 128)),
      second(*ops_, payload);
  Array<const uint8_t*> table(*ops_, {first.get(), second.get()});
  ScaleSumsArgs scale;
  scale.payloads = table.get();
  scale.offset = 7;
  scale.sums = sums.get();
  scale.num_blocks = 2;
  scale.width = width;
  ops_->ScaleSums(scale);
  for (size_t i = n; i < 2 * n; ++i) {
    const size_t token = (i - n) / static_cast<size_t>(width);
    x[i] *= static_cast<float>(payload[7 + token]) / 128.0f;
  }
  EXPECT_EQ(sums.ToHost(), x);

  x[3 * width] = FloatOf(0x7f800000u);  // a sink's
  x[n + 4] = 70000.0f;                  // finite, though not in FP16
  std::vector<BlockTarget> targets(2);
  targets[0].first_row = kSinkTokens;
  Array<BlockTarget> blocks(*ops_, targets);
  Array<uint16_t> out(*ops_, std::vector<uint16_t>(2 * n));
  Array<int32_t> invalid(*ops_, {0, 0});
  std::vector<uint16_t> expected(2 * n);
  RoundSumsArgs round;
  round.blocks = blocks.get();
  round.out = out.get();
  round.invalid = invalid.get();
  round.num_blocks = 2;
  round.width = width;
  for (const bool overflow : {false, true}) {
    if (overflow) x[2 * n - 1] = FloatOf(0xff800000u);
    Array<float> rows(*ops_, x);
    round.sums = rows.get();
    ops_->RoundSums(round);
    kernels_.to_f16(x.data(), static_cast<int64_t>(2 * n), expected.data());
    EXPECT_EQ(out.ToHost(), expected);
    EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, overflow ? 1 : 0}));
  }
}

TEST_P(CrossLayerOpsTest, ExactProductsAreTheCpusBits) {
  for (int width : {16, 96, 130, 256, 300}) {
    const auto k = static_cast<size_t>(width);
    const std::vector<float> x = Random(2 * kBlockTokens * k);
    const std::vector<float> w = Random(k * k);
    Array<float> device_x(*ops_, x), device_w(*ops_, w),
        out(*ops_, std::vector<float>(kBlockTokens * k));
    // The second layer of the source.
    SealSource source;
    source.rows = device_x.get();
    Array<SealSource> sources(*ops_, {source});
    Array<int32_t> invalid(*ops_, {0});
    ExactProductArgs args;
    args.sources = sources.get();
    args.layer_offset = static_cast<int64_t>(kBlockTokens * k);
    args.w = device_w.get();
    args.out = out.get();
    args.invalid = invalid.get();
    args.num_blocks = 1;
    args.width = width;
    args.depth = width;
    ops_->ExactProduct(args);
    const auto packed =
        PackedFloat::FromMatrix(w.data(), width, width, 1, width);
    ASSERT_TRUE(packed.ok());
    std::vector<float> expected(kBlockTokens * k);
    FloatMatmulArgs product;
    product.a = x.data() + kBlockTokens * k;
    product.a_stride = width;
    product.num_rows = kBlockTokens;
    product.b = packed->view();
    product.out = expected.data();
    product.out_stride = width;
    kernels_.float_matmul(product, 0, packed->num_panels());
    ASSERT_TRUE(out.ToHost() == expected) << width;
  }
}

// FP16 weights, either way around, of rows that are no source's, added to what
// is there.
TEST_P(CrossLayerOpsTest, ExactProductsOfHalvesAreTheCpusBits) {
  for (const auto& [width, depth] :
       {std::pair{16, 130}, std::pair{130, 16}, std::pair{300, 256}}) {
    for (const bool transposed : {false, true}) {
      for (const bool add : {false, true}) {
        const auto n = static_cast<size_t>(width);
        const auto k = static_cast<size_t>(depth);
        const std::vector<float> x = Random(2 * kBlockTokens * k);
        const std::vector<float> w = Random(n * k);
        std::vector<uint16_t> halves(n * k);
        for (size_t row = 0; row < n; ++row) {
          for (size_t i = 0; i < k; ++i) {
            halves[transposed ? i * n + row : row * k + i] =
                F32ToF16(w[row * k + i]);
          }
        }
        std::vector<float> expected = Random(2 * kBlockTokens * n);
        Array<float> device_x(*ops_, x), out(*ops_, expected);
        Array<uint16_t> device_w(*ops_, halves);
        std::vector<SealSource> sources(2);
        sources[0].first_row = kSinkTokens;
        Array<SealSource> device_sources(*ops_, sources);
        Array<int32_t> invalid(*ops_, {0, 0});
        ExactProductArgs args;
        args.sources = device_sources.get();
        args.x = device_x.get();
        args.w_f16 = device_w.get();
        args.transposed = transposed;
        args.out = out.get();
        args.invalid = invalid.get();
        args.num_blocks = 2;
        args.width = width;
        args.depth = depth;
        args.add = add;
        ops_->ExactProduct(args);

        const auto packed = PackedFloat::FromWeightRows(
            width, depth, FloatType::kF16, [&](int row, float* to) {
              std::copy_n(w.data() + static_cast<size_t>(row) * k, k, to);
            });
        ASSERT_TRUE(packed.ok());
        // The sinks' rows are as zeros are.
        std::vector<float> read = x;
        std::fill_n(read.begin(), kSinkTokens * k, 0.0f);
        FloatMatmulArgs product;
        product.a = read.data();
        product.a_stride = depth;
        product.num_rows = 2 * kBlockTokens;
        product.b = packed->view();
        product.out = expected.data();
        product.out_stride = width;
        product.epilogue = add ? Epilogue::kAdd : Epilogue::kStore;
        kernels_.float_matmul(product, 0, packed->num_panels());
        EXPECT_TRUE(out.ToHost() == expected)
            << width << ", " << depth << ", " << transposed << ", " << add;
        EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 0}));
      }
    }
  }
}

// The dot product of engine/xcache/cross_layer.cc, whose order decides a code.
float DotInSixteenSums(const float* a, const float* b, size_t n) {
  float sums[16] = {};
  for (size_t i = 0; i < n; ++i) sums[i % 16] += a[i] * b[i];
  float sum = 0.0f;
  for (float s : sums) sum += s;
  return sum;
}

TEST_P(CrossLayerOpsTest, PredictionsAreTheCpusBits) {
  const size_t width = 136, layer = 2;
  const size_t n = kBlockTokens * width;
  const std::vector<float> sums = Random(2 * n);
  std::vector<float> x(2 * 3 * n);
  std::vector<float> rms(2 * 3 * kBlockTokens);
  for (float& r : rms) r = std::exp(Random(1)[0]);
  for (size_t row = 0; row < 2 * kBlockTokens; ++row) {
    const float* of = sums.data() + row * width;
    float* to = x.data() + (row / kBlockTokens * 3 + layer) * n +
                row % kBlockTokens * width;
    // Products that cancel out, so that every order has a sum of its own.
    for (size_t i = 0; i + 1 < width; i += 2) {
      const float large = 0x1p22f * Random(1)[0];
      to[i] = large / of[i];
      to[i + 1] = of[i + 1] - large / of[i + 1];
    }
  }
  Array<float> device_x(*ops_, x), device_rms(*ops_, rms);
  const size_t payload_bytes = 5 + kBlockTokens;
  for (const PredictionKind kind :
       {PredictionKind::kUnit, PredictionKind::kResidual,
        PredictionKind::kFit}) {
    Array<uint8_t> payloads(*ops_,
                            std::vector<uint8_t>(2 * payload_bytes, 0xee));
    std::vector<uint8_t> expected_codes(2 * payload_bytes, 0xee);
    std::vector<float> expected_sums(2 * n), expected_out(2 * n);
    std::vector<SealSource> sources(2), rms_sources(2);
    for (size_t b = 0; b < 2; ++b) {
      sources[b].rows = device_x.get() + b * 3 * n;
      sources[b].payload = payloads.get() + b * payload_bytes;
      sources[b].first_row = b == 0 ? kSinkTokens : 0;
      rms_sources[b].rows = device_rms.get() + b * 3 * kBlockTokens;
      for (size_t token = 0; token < kBlockTokens; ++token) {
        uint8_t& code = expected_codes[b * payload_bytes + 5 + token];
        const bool counts = static_cast<int>(token) >= sources[b].first_row;
        if (!counts && kind != PredictionKind::kUnit) code = 0;
        if (!counts) continue;
        const float* row = x.data() + (b * 3 + layer) * n + token * width;
        const float* of = sums.data() + (b * kBlockTokens + token) * width;
        const float* r = rms.data() + (b * 3 + layer) * kBlockTokens + token;
        const float a = kind == PredictionKind::kResidual
                            ? r[-kBlockTokens] / r[0]
                            : DotInSixteenSums(row, of, width) /
                                  DotInSixteenSums(of, of, width);
        float scale = 1.0f;
        if (kind != PredictionKind::kUnit) {
          const float steps = a > 0.0f ? std::min(a * 128.0f, 255.0f) : 0.0f;
          code = static_cast<uint8_t>(steps + 0.5f);
          scale = static_cast<float>(code) / 128.0f;
        }
        for (size_t i = 0; i < width; ++i) {
          const size_t at = (b * kBlockTokens + token) * width + i;
          expected_sums[at] = of[i] * scale;
          expected_out[at] = row[i] - expected_sums[at];
        }
      }
    }
    Array<SealSource> device_sources(*ops_, sources),
        device_rms_sources(*ops_, rms_sources);
    Array<float> device_sums(*ops_, sums), out(*ops_, sums);
    Array<int32_t> invalid(*ops_, {0, 0});
    PredictArgs args;
    args.sources = device_sources.get();
    args.layer_offset = static_cast<int64_t>(layer * n);
    args.rms = device_rms_sources.get();
    args.layer = static_cast<int>(layer);
    args.payload_offset = 5;
    args.sums = device_sums.get();
    args.out = out.get();
    args.invalid = invalid.get();
    args.num_blocks = 2;
    args.width = static_cast<int>(width);
    args.kind = kind;
    ops_->Predict(args);
    EXPECT_EQ(payloads.ToHost(), expected_codes);
    EXPECT_TRUE(device_sums.ToHost() == expected_sums);
    EXPECT_TRUE(out.ToHost() == expected_out);
    EXPECT_EQ(invalid.ToHost(), (std::vector<int32_t>{0, 0}));
  }
}

}  // namespace
}  // namespace xcache::cuda
