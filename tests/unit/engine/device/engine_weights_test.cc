// How the device engine holds weights: what stays quantized gives what BF16
// would, takes less, and is chosen where memory is short.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/unit/engine/device/engine_fixture.h"

namespace xcache::testing {
namespace {

using cuda::DeviceEngineOptions;
using cuda::HostOpsOptions;
using cuda::WeightKernel;
using cuda::WeightPolicy;

// Models whose matrices are of every quantized type.
std::vector<TinyModelOptions> QuantizedModels() {
  std::vector<TinyModelOptions> models;
  for (GgufType type : {GgufType::kQ4_0, GgufType::kQ4_1, GgufType::kQ5_0,
                        GgufType::kQ5_1, GgufType::kQ8_0}) {
    TinyModelOptions options;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    options.matrix_type = type;
    options.embedding_type = type;
    models.push_back(options);
  }
  for (GgufType type : {GgufType::kQ4_K, GgufType::kQ5_K, GgufType::kQ6_K}) {
    TinyModelOptions options;
    options.d_model = 256;
    options.n_heads = 4;
    options.n_kv_heads = 2;
    options.head_dim = 64;
    options.d_ff = 256;
    options.matrix_type = type;
    options.embedding_type = type;
    options.tied = false;
    models.push_back(options);
  }
  return models;
}

// One of whose stacks, W_q, W_k, W_v and gate, up, each is of several types, as
// files of mixed quality have them; and one that is FP16.
std::shared_ptr<const Model> MakeMixedModel() {
  TinyModelOptions options;
  options.d_model = 256;
  options.n_heads = 4;
  options.n_kv_heads = 2;
  options.head_dim = 64;
  options.d_ff = 256;
  options.matrix_type = GgufType::kQ4_K;
  options.embedding_type = GgufType::kQ6_K;
  const int kv_dim = options.n_kv_heads * options.head_dim;
  GgufWriter writer = TinyModelWriter(options);
  std::mt19937 rng(8);
  std::normal_distribution<float> normal(0.0f, 0.06f);
  const auto replace = [&](const std::string& name, int rows, GgufType type) {
    std::vector<float> values(static_cast<size_t>(rows * options.d_model));
    for (float& x : values) x = normal(rng);
    writer.SetTensor(name, {options.d_model, rows}, type,
                     Quantize(type, values));
  };
  replace("blk.0.attn_k.weight", kv_dim, GgufType::kF16);
  replace("blk.0.attn_v.weight", kv_dim, GgufType::kQ6_K);
  replace("blk.1.attn_v.weight", kv_dim, GgufType::kQ8_0);
  replace("blk.1.ffn_gate.weight", options.d_ff, GgufType::kBF16);
  replace("blk.0.ffn_up.weight", options.d_ff, GgufType::kQ5_0);
  const std::string path = ::testing::TempDir() + "/mixed-types.gguf";
  std::ofstream(path, std::ios::binary) << writer.Finish();
  auto model = Model::Load(path);
  std::remove(path.c_str());
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// What stays quantized is multiplied as the BF16 that it would have become: in
// two steps with the same bits (the emulation's product knows no shapes), by
// the kernel up to the order of FP32 sums, which moves activations to the other
// BF16 neighbour here and there.
TEST(DeviceEngineWeightsTest, QuantizedWeightsGiveTheLogitsOfBf16) {
  std::vector<std::shared_ptr<const Model>> models = {MakeMixedModel()};
  for (const TinyModelOptions& options : QuantizedModels()) {
    models.push_back(MakeTinyModel(options));
  }
  DeviceEngineOptions bf16_options, fused_options, steps_options;
  bf16_options.weights = WeightPolicy::kBf16;
  fused_options.weights = WeightPolicy::kQuantized;
  steps_options.weights = WeightPolicy::kQuantized;
  steps_options.weight_kernel = WeightKernel::kTwoStep;
  HostOpsOptions plain_device;
  plain_device.quantized_gemm = false;
  for (size_t m = 0; m < models.size(); ++m) {
    const auto bf16 = MakeDeviceEngine(models[m], {}, bf16_options);
    const auto fused = MakeDeviceEngine(models[m], {}, fused_options);
    const auto steps = MakeDeviceEngine(models[m], {}, steps_options);
    const auto plain = MakeDeviceEngine(models[m], plain_device, fused_options);
    ASSERT_TRUE(bf16.ok() && fused.ok() && steps.ok() && plain.ok());
    EXPECT_NE((*fused)->info().numerics_id, (*bf16)->info().numerics_id);
    EXPECT_NE((*fused)->info().numerics_id, (*steps)->info().numerics_id);
    EXPECT_EQ((*plain)->info().numerics_id, (*steps)->info().numerics_id);
    EXPECT_LT((*fused)->info().weight_bytes,
              0.8 * static_cast<double>((*bf16)->info().weight_bytes));
    EXPECT_EQ((*fused)->info().weight_bytes, (*steps)->info().weight_bytes);
    const std::vector<TokenId> tokens =
        RandomTokens(100, (*bf16)->info().vocab_size, 31);
    const auto logits = [&](Engine& engine) {
      const auto codec = engine.OpenCodec("kv-fp16", {});
      EXPECT_TRUE(codec.ok()) << codec.status();
      return ComputeReference(engine, **codec, tokens).logits;
    };
    const auto expected = logits(**bf16);
    EXPECT_TRUE(logits(**steps) == expected) << "model " << m;
    EXPECT_TRUE(logits(**plain) == expected) << "model " << m;
    const auto found = logits(**fused);
    EXPECT_LT(RelativeError(found, expected), kKernelTolerance)
        << "model " << m;
    EXPECT_FALSE(found == expected) << "model " << m;
    size_t same = 0;
    for (size_t r = 0; r < found.size(); ++r) {
      const auto best = [](const std::vector<float>& row) {
        return std::max_element(row.begin(), row.end()) - row.begin();
      };
      same += best(found[r]) == best(expected[r]) ? 1 : 0;
    }
    EXPECT_GE(same, found.size() * 97 / 100) << "model " << m;
  }
}

// By the memory that is free at start.
TEST(DeviceEngineWeightsTest, AutoKeepsWeightsQuantizedWhereBf16TakesTooMuch) {
  const auto model = MakeTinyModel(QuantizedModels()[0]);
  const auto make = [&](size_t memory_bytes, WeightPolicy policy) {
    HostOpsOptions device;
    device.memory_bytes = memory_bytes;
    DeviceEngineOptions options;
    options.weights = policy;
    return MakeDeviceEngine(model, device, options);
  };
  const auto bytes = [&](size_t memory_bytes, WeightPolicy policy) {
    const auto engine = make(memory_bytes, policy);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return static_cast<size_t>((*engine)->info().weight_bytes);
  };
  const size_t bf16 = bytes(0, WeightPolicy::kBf16);
  const size_t quantized = bytes(0, WeightPolicy::kQuantized);
  EXPECT_LT(quantized, bf16 / 2);
  EXPECT_EQ(bytes(0, WeightPolicy::kAuto), bf16);
  EXPECT_EQ(bytes(2 * bf16, WeightPolicy::kAuto), bf16);
  EXPECT_EQ(bytes(2 * bf16 - 2, WeightPolicy::kAuto), quantized);
  EXPECT_EQ(bytes(quantized, WeightPolicy::kAuto), quantized);
  for (WeightPolicy policy : {WeightPolicy::kAuto, WeightPolicy::kQuantized}) {
    const absl::Status status = make(quantized - 256, policy).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(status.message(),
              absl::StrCat("weights need ", bf16,
                           " bytes of device memory as BF16 and ", quantized,
                           " quantized, free are ", quantized - 256,
                           "; they were to stay quantized"));
  }
  const absl::Status status = make(bf16 - 256, WeightPolicy::kBf16).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("they were to be BF16"),
            absl::string_view::npos)
      << status;
  // Nothing to keep quantized.
  const auto halves = MakeTinyModel(ModelsUnderTest(false)[1]);
  DeviceEngineOptions options;
  const auto plain = MakeDeviceEngine(halves, {}, options);
  options.weights = WeightPolicy::kQuantized;
  const auto same = MakeDeviceEngine(halves, {}, options);
  ASSERT_TRUE(plain.ok() && same.ok());
  EXPECT_EQ((*plain)->info().weight_bytes, (*same)->info().weight_bytes);
  EXPECT_EQ((*plain)->info().numerics_id, (*same)->info().numerics_id);
}

}  // namespace
}  // namespace xcache::testing
