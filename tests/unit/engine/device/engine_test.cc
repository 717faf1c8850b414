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

using cuda::DeviceEngine;
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
  std::vector<TinyModelOptions> models = ModelsUnderTest();
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
  for (const TinyModelOptions& options : ModelsUnderTest()) {
    const auto model = MakeTinyModel(options);
    const auto first = MakeDeviceEngine(model, {}, {});
    ASSERT_TRUE(first.ok()) << first.status();
    for (const std::string& spec : CodecSpecsUnderTest()) {
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
  for (const TinyModelOptions& options : ModelsUnderTest()) {
    const auto model = MakeTinyModel(options);
    const auto cpu = MakeCpuEngine(model);
    const auto device = MakeDeviceEngine(model, {}, {});
    ASSERT_TRUE(device.ok()) << device.status();
    for (const std::string& spec : CodecSpecsUnderTest()) {
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
  for (const TinyModelOptions& options : ShapesUnderTest()) {
    const auto model = MakeTinyModel(options);
    const auto cpu = MakeCpuEngine(model);
    for (const std::string& spec : CodecSpecsUnderTest()) {
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
  for (const TinyModelOptions& options : ModelsUnderTest()) {
    const auto model = MakeTinyModel(options);
    DeviceEngineOptions host_codecs;
    host_codecs.host_codecs = true;
    HostOpsOptions scattered;
    scattered.order = ThreadOrder::kScattered;
    const auto host = MakeDeviceEngine(model, {}, host_codecs);
    const auto device = MakeDeviceEngine(model, scattered, {});
    ASSERT_TRUE(host.ok() && device.ok());
    std::vector<std::string> specs = CodecSpecsUnderTest();
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

TEST(DeviceEngineTest, APoolAtItsCapRefusesAndChangesNothing) {
  const auto model = MakeTinyModel({});
  DeviceEngineOptions options;
  const size_t block = [&] {
    return (*MakeDeviceEngine(model, {}, {}))->kv_block_bytes();
  }();
  options.pool_bytes = 3 * block;
  const auto made = MakeDeviceEngine(model, {}, options);
  ASSERT_TRUE(made.ok()) << made.status();
  Engine& engine = **made;
  const CodecHandle* codec = *engine.OpenCodec("kv-fp16", {});
  const std::vector<TokenId> tokens =
      RandomTokens(256, engine.info().vocab_size, 1);
  auto sequence = *engine.NewSequence(*codec, {}, {});
  const auto step = [&](size_t n) {
    StepItem item;
    item.sequence = sequence.get();
    item.tokens = std::span(tokens).subspan(sequence->tokens().size(), n);
    return engine.Step({&item, 1});
  };
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(step(64).ok());
  const absl::Status status = step(64);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(sequence->tokens().size(), 192u);
  const std::vector<SealedBlock> sealed = sequence->TakeSealed();
  ASSERT_EQ(sealed.size(), 3u);
  RematJob job{0, sealed[0].page, std::span(tokens).first(64)};
  EXPECT_EQ(engine.Remat(*codec, {&job, 1})[0].status().code(),
            absl::StatusCode::kResourceExhausted);
  // Somebody lets a block go.
  EXPECT_EQ(sequence->Truncate(128), 128);
  EXPECT_FALSE(step(1).ok()) << "the page of block 2 still holds it";
  sequence = *engine.NewSequence(*codec, std::span(tokens).first(64),
                                 std::vector<KvBlockRef>{sealed[0].kv});
  EXPECT_FALSE(step(1).ok());
  const_cast<std::vector<SealedBlock>&>(sealed).resize(1);
  EXPECT_TRUE(step(64).ok());
}

// A text of `num_blocks` blocks and a few tokens; its pages are of two payloads
// in turn, but for the first one. No logits.
Reference LongText(Engine& engine, const CodecHandle& codec, int num_blocks) {
  const int vocab = engine.info().vocab_size;
  Reference sealed =
      ComputeReference(engine, codec, RandomTokens(3 * kBlockTokens, vocab, 7));
  Reference text;
  text.tokens = RandomTokens(num_blocks * kBlockTokens + 5, vocab, 8);
  for (int b = 0; b < num_blocks; ++b) {
    const std::span<const uint8_t> payload =
        PagePayload(sealed.pages[b == 0 ? 0 : 1 + static_cast<size_t>(b % 2)]);
    std::string page = BeginPage(
        codec.cache_fp(), b,
        std::span(text.tokens)
            .subspan(static_cast<size_t>(b) * kBlockTokens, kBlockTokens),
        payload.size());
    std::copy(payload.begin(), payload.end(), PagePayload(page).begin());
    FinishPage(page);
    text.pages.push_back(std::move(page));
  }
  return text;
}

std::vector<RematJob> JobsOf(const std::vector<std::string>& pages,
                             std::span<const TokenId> tokens,
                             RematPolicy remat) {
  std::vector<RematJob> jobs(pages.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i] = {static_cast<int64_t>(i), pages[i],
               tokens.subspan(i * kBlockTokens, kBlockTokens), remat};
  }
  return jobs;
}

// What was staged is not copied again, whatever is sealed meanwhile; and only
// what was staged is taken for it.
TEST(DeviceEngineTest, StagedPagesAreNotCopiedAgain) {
  constexpr int kBlocks = 40;
  TinyModelOptions model_options;
  model_options.context_length = 4096;
  const auto model = MakeTinyModel(model_options);
  int64_t copied = 0;
  HostOpsOptions device;
  device.order = ThreadOrder::kScattered;
  device.copied_bytes = &copied;
  const auto engine = MakeDeviceEngine(model, device, {});
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto codec = (*engine)->OpenCodec("xquant-gqa:bits=4", {});
  ASSERT_TRUE(codec.ok()) << codec.status();
  const Reference text = LongText(**engine, **codec, kBlocks);
  const auto expected = Resume(**engine, **codec, text);
  std::string some_page = text.pages[1];
  const auto payload = static_cast<int64_t>(PagePayload(some_page).size());

  std::vector<std::string> pages = text.pages;
  const std::vector<RematJob> jobs =
      JobsOf(pages, text.tokens, RematPolicy::kResume);
  const auto stage = [&](size_t n) {
    return (*engine)->StagePages(**codec, std::span(jobs).first(n));
  };
  // Payloads that a Remat of all copies. Its blocks give the logits of `what`.
  const auto remat = [&](const std::vector<std::vector<float>>& what) {
    copied = 0;
    std::vector<KvBlockRef> blocks;
    for (auto& block : (*engine)->Remat(**codec, jobs)) {
      EXPECT_TRUE(block.ok()) << block.status();
      if (block.ok()) blocks.push_back(*std::move(block));
    }
    const int64_t payloads = copied / payload;
    EXPECT_TRUE(Continue(**engine, **codec, text, blocks) == what);
    return payloads;
  };
  const auto seal = [&] {
    auto sequence = (*engine)->NewSequence(**codec, {}, {});
    StepItem item;
    item.sequence = sequence->get();
    item.tokens = std::span(text.tokens).first(kBlockTokens);
    EXPECT_TRUE((*engine)->Step({&item, 1}).ok());
  };
  EXPECT_EQ(stage(6), 6);
  EXPECT_EQ(remat(expected), kBlocks - 6);
  EXPECT_EQ(remat(expected), kBlocks);
  EXPECT_EQ(stage(kBlocks), cuda::kRematBlocks);
  seal();
  EXPECT_EQ(remat(expected), kBlocks - cuda::kRematBlocks);
  stage(6);
  EXPECT_EQ(stage(3), 3);
  EXPECT_EQ(remat(expected), kBlocks - 3);

  // Another page where one was that is staged: it and those after it are not.
  Reference other = text;
  std::copy_n(PagePayload(some_page).begin(), payload,
              PagePayload(other.pages[2]).begin());
  FinishPage(other.pages[2]);
  ASSERT_NE(other.pages[2], text.pages[2]);
  const auto changed = Resume(**engine, **codec, other);
  ASSERT_FALSE(changed == expected);
  EXPECT_EQ(stage(6), 6);
  std::copy(other.pages[2].begin(), other.pages[2].end(), pages[2].begin());
  EXPECT_EQ(remat(changed), kBlocks - 2);
  std::copy(text.pages[2].begin(), text.pages[2].end(), pages[2].begin());

  // Of another codec; damaged; kept as payloads.
  EXPECT_EQ(stage(6), 6);
  const auto kv = (*engine)->OpenCodec("xquant:bits=8", {});
  ASSERT_TRUE(kv.ok()) << kv.status();
  const Reference kv_text = LongText(**engine, **kv, 3);
  EXPECT_EQ((*engine)->StagePages(**kv, jobs), 0);
  EXPECT_TRUE(Resume(**engine, **kv, kv_text) ==
              Resume(**engine, **kv, kv_text));
  EXPECT_EQ(remat(expected), kBlocks);
  pages[3].back() = static_cast<char>(pages[3].back() ^ 1);
  EXPECT_EQ(stage(6), 3);
  pages[3] = text.pages[3];
  const std::vector<RematJob> kept =
      JobsOf(pages, text.tokens, RematPolicy::kStep);
  EXPECT_EQ((*engine)->StagePages(**codec, kept), 1);
}

// Sums of cross-layer codecs, of more blocks than go through the scratch at
// once: all kept for the step, some, none, or no room for them in the pool.
TEST(DeviceEngineTest, SumsThatAStepHasNoRoomForChangeNoBit) {
  TinyModelOptions tiny;
  tiny.num_layers = 3;
  tiny.context_length = 4096;
  const auto model = MakeTinyModel(tiny);
  constexpr int kBlocks = cuda::kRematBlocks + 3;
  static_assert((kBlocks - 1) % cuda::kRematBlocks > 0);
  const size_t run_bytes = size_t{cuda::kRematBlocks} * kBlockTokens *
                           static_cast<size_t>(tiny.d_model) * sizeof(float);
  for (const char* spec :
       {"xquant-cl:base_layers=1", "xquant-cl:base_layers=2,x=residual",
        "xquant-cl:base_layers=1,x=fit", "xquant-cl-gqa:bits=2"}) {
    const auto resume = MakeDeviceEngine(model, {}, {});
    ASSERT_TRUE(resume.ok()) << resume.status();
    const auto codec = (*resume)->OpenCodec(spec, {});
    ASSERT_TRUE(codec.ok()) << codec.status();
    const Reference text = LongText(**resume, **codec, kBlocks);
    const auto expected = Resume(**resume, **codec, text);

    const auto held_bytes = [&](std::optional<size_t> sums_bytes,
                                size_t pool_bytes) {
      HostOpsOptions device;
      device.order = ThreadOrder::kScattered;
      DeviceEngineOptions options;
      options.step_sums_bytes = sums_bytes;
      options.pool_bytes = pool_bytes;
      const auto step = MakeDeviceEngine(model, device, options);
      EXPECT_TRUE(step.ok()) << step.status();
      const auto same = (*step)->OpenCodec(spec, {});
      EXPECT_TRUE(same.ok()) << same.status();
      EXPECT_TRUE(Resume(**step, **same, text, RematPolicy::kStep) == expected)
          << spec;
      return static_cast<DeviceEngine&>(**step).pool().held_bytes();
    };
    constexpr size_t kLarge = size_t{16} << 20;  // a slab has one run's sums
    const size_t none = held_bytes(0, kLarge);
    const size_t some = held_bytes(run_bytes, kLarge);
    const size_t all = held_bytes(std::nullopt, kLarge);
    EXPECT_GE(some, none + run_bytes) << spec;
    EXPECT_GE(all, some + run_bytes) << spec;
    held_bytes(std::nullopt, none);  // a pool with room for the blocks alone
  }
}

TEST(DeviceEngineTest, BlocksKeptAsPayloadsTakeLessOfThePool) {
  const auto model = MakeTinyModel({});
  const auto used_bytes = [&](const char* spec, RematPolicy remat) {
    const auto made = MakeDeviceEngine(model, {}, {});
    EXPECT_TRUE(made.ok()) << made.status();
    const CodecHandle* codec = *(*made)->OpenCodec(spec, {});
    auto sequence = *(*made)->NewSequence(*codec, {}, {}, remat);
    const std::vector<TokenId> tokens =
        RandomTokens(1024, (*made)->info().vocab_size, 1);
    for (size_t at = 0; at < tokens.size(); at += 64) {
      StepItem item;
      item.sequence = sequence.get();
      item.tokens = std::span(tokens).subspan(at, 64);
      EXPECT_TRUE((*made)->Step({&item, 1}).ok());
    }
    const size_t block_bytes = sequence->blocks()[1]->bytes();
    EXPECT_EQ(block_bytes < (*made)->kv_block_bytes(),
              remat == RematPolicy::kStep);
    return static_cast<DeviceEngine&>(**made).pool().used_bytes();
  };
  for (const char* spec : {"xquant-gqa:bits=2", "xquant-cl-gqa:bits=2"}) {
    EXPECT_LT(used_bytes(spec, RematPolicy::kStep),
              used_bytes(spec, RematPolicy::kResume) / 2)
        << spec;
  }
}

}  // namespace
}  // namespace xcache::testing
