// The device engine, emulated on the host, against the CPU's engine on a real
// model (XCACHE_TEST_MODEL): the whole forward pass of the GPU's code, with
// real weights, but for the GPU.
#include <memory>
#include <vector>

#include "engine/device/engine.h"
#include "engine/emulation/host_ops.h"
#include "engine/engine_factory.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/agreement.h"

namespace xcache::testing {
namespace {

TEST(DeviceEngineModelTest, AgreesWithTheCpu) {
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
  cuda::DeviceEngineOptions options;
  options.isa = *ChooseIsa("");
  options.profile_dir = ::testing::TempDir();
  options.num_threads = 2;
  struct Case {
    cuda::WeightPolicy weights;
    std::vector<const char*> specs;
  };
  for (const Case& c :
       {Case{cuda::WeightPolicy::kBf16,
             {"kv-fp16", "xquant-gqa:bits=4", "xquant:bits=4",
              "xquant-cl-gqa:bits=4"}},
        Case{cuda::WeightPolicy::kQuantized, {"xquant-gqa:bits=4"}}}) {
    options.weights = c.weights;
    const auto device =
        cuda::DeviceEngine::Create(*model, cuda::MakeHostOps({}), options, {});
    ASSERT_TRUE(device.ok()) << device.status();
    // Past the first block, so that codes are read.
    for (const char* spec : c.specs) {
      const Agreement found = MeasureAgreement(**cpu, **device, spec, 90);
      EXPECT_LT(found.relative_error, kModelRelativeError) << spec;
      EXPECT_GT(found.top1, kModelTop1) << spec;
    }
  }
}

}  // namespace
}  // namespace xcache::testing
