// The engine on the first GPU: the conformance suite under both policies, and
// closeness to the CPU's engine on a real model (XCACHE_TEST_MODEL). Skipped,
// saying why, where there is no GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "engine/cuda/plugin.h"
#include "engine/engine_factory.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/engine_conformance.h"

namespace xcache::testing {
namespace {

absl::Status GpuAvailable() { return cuda::OpenCudaDevice(0).status(); }

EngineOptions GpuOptions(const std::string& remat) {
  EngineOptions options;
  options.device = "cuda";
  options.num_threads = 4;
  options.remat = remat;
  // Each case makes an engine of its own; what is left of the GPU is others'.
  options.device_memory_bytes = uint64_t{256} << 20;
  return options;
}

EngineCase GpuCase(const std::string& remat) {
  EngineCase engine_case;
  engine_case.name = remat;
  engine_case.make = [remat](std::shared_ptr<const Model> model) {
    return CreateEngine(std::move(model), GpuOptions(remat), {});
  };
  engine_case.available = &GpuAvailable;
  return engine_case;
}

INSTANTIATE_TEST_SUITE_P(Gpu, EngineConformanceTest,
                         ::testing::Values(GpuCase("resume"), GpuCase("step")),
                         [](const ::testing::TestParamInfo<EngineCase>& c) {
                           return c.param.name;
                         });

// On a real model: how close the logits are to the CPU's, and how often the
// likeliest token is the same, over a text that the CPU's engine writes.
TEST(GpuEngineTest, AgreesWithTheCpuOnARealModel) {
  if (const absl::Status status = GpuAvailable(); !status.ok()) {
    GTEST_SKIP() << status.message();
  }
  const char* path = std::getenv("XCACHE_TEST_MODEL");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "XCACHE_TEST_MODEL names no model";
  }
  auto model = Model::Load(path);
  ASSERT_TRUE(model.ok()) << model.status();
  EngineOptions cpu_options;
  cpu_options.device = "cpu";
  cpu_options.profile_dir = ::testing::TempDir();
  EngineOptions gpu_options = GpuOptions("resume");
  gpu_options.profile_dir = ::testing::TempDir();
  gpu_options.device_memory_bytes = 0;
  const auto cpu = CreateEngine(*model, cpu_options, {});
  const auto gpu = CreateEngine(*model, gpu_options, {});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  for (const char* spec : {"kv-fp16", "xquant-gqa:bits=4", "xquant:bits=4"}) {
    const auto cpu_codec = (*cpu)->OpenCodec(spec, {});
    const auto gpu_codec = (*gpu)->OpenCodec(spec, {});
    ASSERT_TRUE(cpu_codec.ok()) << cpu_codec.status();
    ASSERT_TRUE(gpu_codec.ok()) << gpu_codec.status();
    // The likeliest continuation of a few tokens.
    auto writer = *(*cpu)->NewSequence(**cpu_codec, {}, {});
    std::vector<TokenId> tokens = RandomTokens(4, 1000, 1);
    for (size_t at = 0; tokens.size() < 200;) {
      StepItem item;
      item.sequence = writer.get();
      item.tokens = std::span(tokens).subspan(at, tokens.size() - at);
      item.logits_mode = LogitsMode::kLast;
      ASSERT_TRUE((*cpu)->Step({&item, 1}).ok());
      at = tokens.size();
      tokens.push_back(static_cast<TokenId>(
          std::max_element(item.logits.begin(), item.logits.end()) -
          item.logits.begin()));
    }
    const Reference a = ComputeReference(**cpu, **cpu_codec, tokens);
    const Reference b = ComputeReference(**gpu, **gpu_codec, tokens);
    double error = 0.0, power = 0.0;
    int same = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto likeliest = [](const std::vector<float>& row) {
        return std::max_element(row.begin(), row.end()) - row.begin();
      };
      same += likeliest(a.logits[i]) == likeliest(b.logits[i]) ? 1 : 0;
      for (size_t t = 0; t < a.logits[i].size(); ++t) {
        const double d = static_cast<double>(b.logits[i][t]) -
                         static_cast<double>(a.logits[i][t]);
        error += d * d;
        power += static_cast<double>(a.logits[i][t]) *
                 static_cast<double>(a.logits[i][t]);
      }
    }
    const double relative = std::sqrt(error / power);
    const double agreement = same / static_cast<double>(tokens.size());
    RecordProperty(std::string("relative_error_") + spec,
                   std::to_string(relative));
    RecordProperty(std::string("top1_agreement_") + spec,
                   std::to_string(agreement));
    std::printf("%s: relative error %.4f, top-1 agreement %.3f\n", spec,
                relative, agreement);
    // BF16 through 30 layers: a few per cent.
    EXPECT_LT(relative, 0.1) << spec;
    EXPECT_GT(agreement, 0.9) << spec;
  }
}

}  // namespace
}  // namespace xcache::testing
