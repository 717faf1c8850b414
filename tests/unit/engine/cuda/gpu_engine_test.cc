// The engine on the first GPU: the conformance suite, and
// closeness to the CPU's engine on a real model (XCACHE_TEST_MODEL). Skipped,
// saying why, where there is no GPU.
#include <memory>
#include <string>
#include <utility>

#include "engine/cuda/plugin.h"
#include "engine/engine_factory.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/agreement.h"
#include "tests/unit/engine/engine_conformance.h"

namespace xcache::testing {
namespace {

absl::Status GpuAvailable() { return cuda::OpenCudaDevice(0).status(); }

EngineOptions GpuOptions(const std::string& weights = "bf16") {
  EngineOptions options;
  options.device = "cuda";
  options.num_threads = 4;
  options.weights = weights;
  // Each case makes an engine of its own; what is left of the GPU is others'.
  options.device_memory_bytes = uint64_t{256} << 20;
  return options;
}

EngineCase GpuCase(const std::string& weights) {
  EngineCase engine_case;
  engine_case.name = weights;
  engine_case.make = [weights](std::shared_ptr<const Model> model) {
    return CreateEngine(std::move(model), GpuOptions(weights), {});
  };
  engine_case.available = &GpuAvailable;
  return engine_case;
}

INSTANTIATE_TEST_SUITE_P(Gpu, EngineConformanceTest,
                         ::testing::Values(GpuCase("bf16"),
                                           GpuCase("quantized")),
                         [](const ::testing::TestParamInfo<EngineCase>& c) {
                           return c.param.name;
                         });

TEST(GpuEngineTest, WithoutAGpuCudaIsAnErrorAndAutoIsTheCpu) {
  const absl::Status available = GpuAvailable();
  if (available.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(available.code(), absl::StatusCode::kFailedPrecondition);
  const auto engine = CreateEngine(MakeTinyModel({}), GpuOptions(), {});
  EXPECT_EQ(engine.status(), available);
  EngineOptions options;
  const auto fallback = CreateEngine(MakeTinyModel({}), options, {});
  ASSERT_TRUE(fallback.ok()) << fallback.status();
  EXPECT_EQ((*fallback)->info().device.substr(0, 4), "cpu/");
}

// On a real model: how close the logits are to the CPU's, and how often the
// likeliest token is the same, over a text that the CPU's engine writes.
TEST(GpuEngineTest, AgreesWithTheCpuOnARealModel) {
  if (const absl::Status status = GpuAvailable(); !status.ok()) {
    GTEST_SKIP() << status.message();
  }
  if (TestModelPath().empty()) {
    GTEST_SKIP() << "XCACHE_TEST_MODEL names no model";
  }
  auto model = Model::Load(TestModelPath());
  ASSERT_TRUE(model.ok()) << model.status();
  EngineOptions cpu_options;
  cpu_options.device = "cpu";
  cpu_options.profile_dir = ::testing::TempDir();
  const auto cpu = CreateEngine(*model, cpu_options, {});
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  for (const char* weights : {"bf16", "quantized"}) {
    EngineOptions gpu_options = GpuOptions(weights);
    gpu_options.profile_dir = ::testing::TempDir();
    gpu_options.device_memory_bytes = uint64_t{2} << 30;
    const auto gpu = CreateEngine(*model, gpu_options, {});
    ASSERT_TRUE(gpu.ok()) << gpu.status();
    for (RematPolicy remat : {RematPolicy::kResume, RematPolicy::kStep}) {
      for (const char* spec : {"kv-fp16", "xquant-gqa:bits=4", "xquant:bits=4",
                               "xquant-cl-gqa:bits=4", "kivi:bits=4"}) {
        if (std::string(weights) == "quantized" &&
            std::string(spec) != "xquant-gqa:bits=4") {
          continue;  // codecs know nothing of how weights are held
        }
        const Agreement found =
            MeasureAgreement(**cpu, **gpu, spec, 200, remat);
        EXPECT_LT(found.relative_error, kModelRelativeError) << spec;
        EXPECT_GT(found.top1, kModelTop1) << spec;
      }
    }
  }
}

}  // namespace
}  // namespace xcache::testing
