// Engines on the emulated device, and what their logits are compared by.
#ifndef XCACHE_TESTS_UNIT_ENGINE_DEVICE_ENGINE_FIXTURE_H_
#define XCACHE_TESTS_UNIT_ENGINE_DEVICE_ENGINE_FIXTURE_H_

#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/device/engine.h"
#include "engine/emulation/host_ops.h"
#include "engine/kernels/isa.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/engine_conformance.h"

namespace xcache::testing {

inline absl::StatusOr<std::unique_ptr<Engine>> MakeDeviceEngine(
    std::shared_ptr<const Model> model, const cuda::HostOpsOptions& device,
    cuda::DeviceEngineOptions options) {
  options.isa = *ChooseIsa("");
  return cuda::DeviceEngine::Create(std::move(model), cuda::MakeHostOps(device),
                                    options, {});
}

// The logits after `blocks` for the tokens that follow them.
inline std::vector<std::vector<float>> Continue(
    Engine& engine, const CodecHandle& codec, const Reference& text,
    std::span<const KvBlockRef> blocks) {
  const size_t prefix = blocks.size() * kBlockTokens;
  const std::span<const TokenId> tokens(text.tokens);
  auto sequence = engine.NewSequence(codec, tokens.first(prefix), blocks);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  StepItem item;
  item.sequence = sequence->get();
  item.tokens = tokens.subspan(prefix);
  item.logits_mode = LogitsMode::kAll;
  EXPECT_TRUE(engine.Step({&item, 1}).ok());
  const auto vocab = static_cast<size_t>(engine.info().vocab_size);
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < item.tokens.size(); ++i) {
    const auto row = item.logits.subspan(i * vocab, vocab);
    rows.emplace_back(row.begin(), row.end());
  }
  return rows;
}

// The same after all the text's pages.
inline std::vector<std::vector<float>> Resume(
    Engine& engine, const CodecHandle& codec, const Reference& text,
    RematPolicy remat = RematPolicy::kResume) {
  std::vector<RematJob> jobs(text.pages.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i] = {static_cast<int64_t>(i), text.pages[i],
               std::span(text.tokens).subspan(i * 64, 64), remat};
  }
  std::vector<KvBlockRef> blocks;
  for (auto& block : engine.Remat(codec, jobs)) {
    EXPECT_TRUE(block.ok()) << codec.spec() << ": " << block.status();
    if (!block.ok()) return {};
    blocks.push_back(*std::move(block));
  }
  return Continue(engine, codec, text, blocks);
}

// The root mean square of differences, over that of what is expected.
inline double RelativeError(const std::vector<std::vector<float>>& found,
                            std::span<const std::vector<float>> expected) {
  EXPECT_EQ(found.size(), expected.size());
  double error = 0.0, power = 0.0;
  for (size_t r = 0; r < found.size(); ++r) {
    for (size_t i = 0; i < found[r].size(); ++i) {
      const double d = static_cast<double>(found[r][i]) -
                       static_cast<double>(expected[r][i]);
      error += d * d;
      power += static_cast<double>(expected[r][i]) *
               static_cast<double>(expected[r][i]);
    }
  }
  return std::sqrt(error / power);
}

// The kernels that make K and V differ in the order of FP32 sums: a few values
// round to the other FP16 neighbour, and through BF16 activations the logits of
// these models differ by up to 0.3 %.
inline constexpr double kKernelTolerance = 0.005;

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_DEVICE_ENGINE_FIXTURE_H_
