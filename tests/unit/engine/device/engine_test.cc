// The device engine on a device that is emulated on the host: the conformance
// suite that every engine passes, in the orders of threads, streams and memory
// that are allowed, and what this engine promises beside. What runs here is
// what runs on a GPU but for the launches and the vendor's products.
#include "engine/device/engine.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine_factory.h"
#include "engine/xcache/page.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/engine_fixture.h"

namespace xcache::testing {
namespace {

using cuda::DeviceEngineOptions;
using cuda::HostOpsOptions;
using cuda::RematKernel;
using cuda::ThreadOrder;
using cuda::WeightPolicy;

EngineCase HostCase(std::string name, HostOpsOptions device,
                    DeviceEngineOptions options) {
  return {std::move(name),
          [device, options](std::shared_ptr<const Model> model) {
            return MakeDeviceEngine(std::move(model), device, options);
          },
          0.0f,
          {}};
}

std::vector<EngineCase> HostCases() {
  std::vector<EngineCase> cases;
  cases.push_back(HostCase("plain", {}, {}));
  HostOpsOptions scattered;
  scattered.order = ThreadOrder::kScattered;
  scattered.seed = 2;
  DeviceEngineOptions threads;
  threads.num_threads = 2;
  cases.push_back(HostCase("scattered", scattered, threads));
  DeviceEngineOptions two_step;
  two_step.remat_kernel = RematKernel::kTwoStep;
  cases.push_back(HostCase("two_step", scattered, two_step));
  DeviceEngineOptions host_codecs;
  host_codecs.host_codecs = true;
  cases.push_back(HostCase("host_codecs", {}, host_codecs));
  DeviceEngineOptions quantized = threads;
  quantized.weights = WeightPolicy::kQuantized;
  cases.push_back(HostCase("quantized", scattered, quantized));
  return cases;
}

INSTANTIATE_TEST_SUITE_P(HostEmulation, EngineConformanceTest,
                         ::testing::ValuesIn(HostCases()),
                         [](const ::testing::TestParamInfo<EngineCase>& c) {
                           return c.param.name;
                         });

// Also widths that end a rotation in smaller pieces, heads that do not divide a
// panel, and heads that are too wide for the fused kernel.
std::vector<TinyModelOptions> ShapesUnderTest() {
  std::vector<TinyModelOptions> models = ModelsUnderTest(false);
  TinyModelOptions odd;
  odd.d_model = 96;
  odd.n_heads = 4;
  odd.n_kv_heads = 4;
  odd.head_dim = 80;
  models.push_back(odd);
  TinyModelOptions wide;
  wide.n_kv_heads = 2;
  wide.head_dim = 144;
  wide.matrix_type = GgufType::kF16;
  models.push_back(wide);
  return models;
}

constexpr int kTexts = 2;

std::vector<Reference> References(Engine& engine, const CodecHandle& codec) {
  std::vector<Reference> texts;
  for (int i = 0; i < kTexts; ++i) {
    texts.push_back(
        ComputeReference(engine, codec,
                         RandomTokens(150, engine.info().vocab_size,
                                      static_cast<uint32_t>(40 + i))));
  }
  return texts;
}

// Threads' order, streams' order, the host's threads and the policy change
// nothing: every run has the first one's bits.
TEST(DeviceEngineTest, OrdersAndPoliciesAgreeBitForBit) {
  for (const TinyModelOptions& options : ModelsUnderTest(false)) {
    const auto model = MakeTinyModel(options);
    const auto first = MakeDeviceEngine(model, {}, {});
    ASSERT_TRUE(first.ok()) << first.status();
    for (const std::string& spec : CodecSpecsUnderTest(false)) {
      const auto codec = (*first)->OpenCodec(spec, {});
      ASSERT_TRUE(codec.ok()) << codec.status();
      const std::vector<Reference> texts = References(**first, **codec);
      for (ThreadOrder order : {ThreadOrder::kForward, ThreadOrder::kBackward,
                                ThreadOrder::kScattered}) {
        HostOpsOptions device;
        device.order = order;
        device.seed = 9;
        DeviceEngineOptions engine_options;
        engine_options.num_threads = 2;
        const auto engine = MakeDeviceEngine(model, device, engine_options);
        ASSERT_TRUE(engine.ok()) << engine.status();
        const auto same = (*engine)->OpenCodec(spec, {});
        ASSERT_TRUE(same.ok()) << same.status();
        RunRandomActions(**engine, **same, texts, 12, 5, 0.0f);
        ASSERT_FALSE(HasFailure()) << spec;
      }
    }
  }
}

std::unique_ptr<Engine> MakeCpuEngine(std::shared_ptr<const Model> model) {
  EngineOptions options;
  options.device = "cpu";
  options.num_threads = 1;
  auto engine = CreateEngine(std::move(model), options, {});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

// BF16 weights and activations here; on the CPU, activations of 8 bits wherever
// weights are quantized. Through the few layers of these models they differ by
// up to 3.7 %; a model of FP16 weights, which the CPU multiplies as they are,
// by 1 % and less.
constexpr double kTolerance = 0.05;
constexpr double kFloatTolerance = 0.015;

TEST(DeviceEngineTest, LogitsAreCloseToTheCpus) {
  for (const TinyModelOptions& options : ModelsUnderTest(false)) {
    const auto model = MakeTinyModel(options);
    const auto cpu = MakeCpuEngine(model);
    const auto device = MakeDeviceEngine(model, {}, {});
    ASSERT_TRUE(device.ok()) << device.status();
    for (const std::string& spec : CodecSpecsUnderTest(false)) {
      const auto cpu_codec = cpu->OpenCodec(spec, {});
      const auto device_codec = (*device)->OpenCodec(spec, {});
      ASSERT_TRUE(cpu_codec.ok() && device_codec.ok());
      const std::vector<Reference> a = References(*cpu, **cpu_codec);
      const std::vector<Reference> b = References(**device, **device_codec);
      for (size_t i = 0; i < a.size(); ++i) {
        // From the second block on codes are read, which are chosen from rows
        // that differ: a code more or less is a step of error.
        EXPECT_LT(RelativeError(
                      {b[i].logits.begin(), b[i].logits.begin() + kBlockTokens},
                      std::span(a[i].logits).first(kBlockTokens)),
                  options.matrix_type == GgufType::kF16 ? kFloatTolerance
                                                        : kTolerance)
            << spec;
        EXPECT_LT(RelativeError(b[i].logits, a[i].logits), 4 * kTolerance)
            << spec;
      }
    }
  }
}

// Pages are portable: what one engine sealed the other one resumes, and both
// read it alike.
TEST(DeviceEngineTest, PagesOfTheCpuAndOfTheDeviceAreResumedByTheOther) {
  size_t pair = 0;
  for (const TinyModelOptions& options : ShapesUnderTest()) {
    const auto model = MakeTinyModel(options);
    const auto cpu = MakeCpuEngine(model);
    for (const std::string& spec : CodecSpecsUnderTest(false)) {
      // Every second pair: each shape and each codec several times.
      if (pair++ % 2 != 0) continue;
      const auto cpu_codec = cpu->OpenCodec(spec, {});
      ASSERT_TRUE(cpu_codec.ok()) << cpu_codec.status();
      for (const auto& [remat, kernel] :
           {std::pair{RematPolicy::kResume, RematKernel::kFused},
            {RematPolicy::kStep, RematKernel::kFused},
            {RematPolicy::kResume, RematKernel::kTwoStep}}) {
        DeviceEngineOptions engine_options;
        engine_options.remat_kernel = kernel;
        const auto device = MakeDeviceEngine(model, {}, engine_options);
        ASSERT_TRUE(device.ok()) << device.status();
        const auto device_codec = (*device)->OpenCodec(spec, {});
        ASSERT_TRUE(device_codec.ok()) << device_codec.status();
        ASSERT_EQ((*device_codec)->cache_fp(), (*cpu_codec)->cache_fp());
        const std::vector<TokenId> tokens =
            RandomTokens(140, cpu->info().vocab_size, 3);
        for (const Reference& text :
             {ComputeReference(*cpu, **cpu_codec, tokens),
              ComputeReference(**device, **device_codec, tokens)}) {
          std::vector<std::vector<std::vector<float>>> both;
          for (const auto& [engine, codec] :
               {std::pair<Engine*, const CodecHandle*>(cpu.get(), *cpu_codec),
                {device->get(), *device_codec}}) {
            both.push_back(Resume(*engine, *codec, text, remat));
          }
          EXPECT_LT(RelativeError(both[1], both[0]), kTolerance) << spec;
        }
      }
    }
  }
}

TEST(DeviceEngineTest, FusedAndTwoStepRematAgree) {
  HostOpsOptions plain_device;
  plain_device.fused_remat = false;
  DeviceEngineOptions two_step;
  two_step.remat_kernel = RematKernel::kTwoStep;
  for (const TinyModelOptions& options : ShapesUnderTest()) {
    const auto model = MakeTinyModel(options);
    const auto fused = MakeDeviceEngine(model, {}, {});
    const auto steps = MakeDeviceEngine(model, {}, two_step);
    const auto plain = MakeDeviceEngine(model, plain_device, {});
    ASSERT_TRUE(fused.ok() && steps.ok() && plain.ok());
    EXPECT_NE((*fused)->info().numerics_id, (*steps)->info().numerics_id);
    int different = 0;
    for (const char* spec :
         {"xquant:bits=2", "xquant:bits=4", "xquant:bits=8,group=32,rotate=off",
          "xquant:bits=4,axis=channel,rotate=off", "xquant-gqa:bits=2",
          "xquant-gqa:bits=4", "xquant-gqa:bits=8,group=16,scales=fp16"}) {
      const auto fused_codec = (*fused)->OpenCodec(spec, {});
      const auto steps_codec = (*steps)->OpenCodec(spec, {});
      const auto plain_codec = (*plain)->OpenCodec(spec, {});
      ASSERT_TRUE(fused_codec.ok() && steps_codec.ok() && plain_codec.ok());
      const Reference text = ComputeReference(
          **fused, **fused_codec, RandomTokens(150, options.vocab_size, 21));
      const auto a = Resume(**fused, **fused_codec, text);
      const auto b = Resume(**steps, **steps_codec, text);
      EXPECT_LT(RelativeError(a, b), kKernelTolerance) << spec;
      different += a == b ? 0 : 1;
      // Where the device has no such kernel the codecs do without.
      EXPECT_TRUE(Resume(**plain, **plain_codec, text) == b) << spec;
    }
    EXPECT_EQ(different > 0, options.head_dim <= cuda::kFusedHeadDim);
  }
}

// Sealing on the device and on the CPU, of the same rows, gives the same bytes:
// pages, and so everything after them.
TEST(DeviceEngineTest, SealsTheBytesThatTheCpusCodecSeals) {
  for (const TinyModelOptions& options : ModelsUnderTest(false)) {
    const auto model = MakeTinyModel(options);
    DeviceEngineOptions host_codecs;
    host_codecs.host_codecs = true;
    HostOpsOptions scattered;
    scattered.order = ThreadOrder::kScattered;
    const auto host = MakeDeviceEngine(model, {}, host_codecs);
    const auto device = MakeDeviceEngine(model, scattered, {});
    ASSERT_TRUE(host.ok() && device.ok());
    std::vector<std::string> specs = CodecSpecsUnderTest(false);
    for (const char* name : {"xquant", "xquant-gqa", "kivi"}) {
      for (const char* more :
           {":preset=plain", ":bits=2,group=16", ":bits=8,group=128",
            ":scales=fp16,rotate=off", ":clip=minmax,group=32"}) {
        specs.push_back(std::string(name) + more);
      }
    }
    for (const char* name : {"xquant-cl", "xquant-cl-gqa"}) {
      for (const char* more :
           {"preset=plain", "bits=2,group=16", "x=residual,group=128",
            "axis=token,scales=fp16", "axis=channel,rotate=off"}) {
        specs.push_back(std::string(name) + ":base_layers=1," + more);
      }
    }
    specs.push_back("xquant-gqa:alloc=uniform,bits=3");
    for (const std::string& spec : specs) {
      const auto host_codec = (*host)->OpenCodec(spec, {});
      const auto device_codec = (*device)->OpenCodec(spec, {});
      ASSERT_TRUE(host_codec.ok() && device_codec.ok()) << spec;
      // The first block is made of the same rows in both; later ones attend to
      // K and V that the two decode with different rounding.
      const std::vector<TokenId> tokens =
          RandomTokens(64, options.vocab_size, 77);
      const Reference a = ComputeReference(**host, **host_codec, tokens);
      const Reference b = ComputeReference(**device, **device_codec, tokens);
      EXPECT_TRUE(a.pages == b.pages) << spec;
    }
  }
}

// A payload whose checksum is right and whose scales are none.
TEST(DeviceEngineTest, InvalidScalesAreDataLoss) {
  const auto model = MakeTinyModel({});
  for (const RematPolicy remat : {RematPolicy::kResume, RematPolicy::kStep}) {
    for (const bool host_codecs : {false, true}) {
      DeviceEngineOptions options;
      options.host_codecs = host_codecs;
      const auto engine = MakeDeviceEngine(model, {}, options);
      ASSERT_TRUE(engine.ok()) << engine.status();
      const auto codec = (*engine)->OpenCodec("xquant-gqa:scales=fp16", {});
      ASSERT_TRUE(codec.ok()) << codec.status();
      const Reference text =
          ComputeReference(**engine, **codec,
                           RandomTokens(128, (*engine)->info().vocab_size, 1));
      for (size_t block : {size_t{0}, size_t{1}}) {
        std::string page = text.pages[block];
        // The first step of the first layer: infinite.
        PagePayload(page)[0] = 0x00;
        PagePayload(page)[1] = 0x7c;
        FinishPage(page);
        std::vector<RematJob> jobs(2);
        for (size_t i = 0; i < 2; ++i) {
          jobs[i] = {static_cast<int64_t>(i), i == block ? page : text.pages[i],
                     std::span(text.tokens).subspan(i * 64, 64), remat};
        }
        const auto results = (*engine)->Remat(**codec, jobs);
        EXPECT_EQ(results[block].status().code(), absl::StatusCode::kDataLoss)
            << results[block].status();
        EXPECT_TRUE(results[1 - block].ok()) << results[1 - block].status();
      }
    }
  }
}

}  // namespace
}  // namespace xcache::testing
