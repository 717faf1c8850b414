// What the device engine does with its pool: refuses at its cap, copies pages
// once, keeps sums where there is room, and payloads in the place of K/V.
#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/device/engine.h"
#include "engine/xcache/page.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/device/engine_fixture.h"

namespace xcache::testing {
namespace {

using cuda::DeviceEngine;
using cuda::DeviceEngineOptions;
using cuda::HostOpsOptions;
using cuda::ThreadOrder;

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
