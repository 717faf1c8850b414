// How close the logits of one engine are to those of another on a real model.
#ifndef XCACHE_TESTS_UNIT_ENGINE_DEVICE_AGREEMENT_H_
#define XCACHE_TESTS_UNIT_ENGINE_DEVICE_AGREEMENT_H_

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/unit/engine/engine_property.h"

namespace xcache::testing {

struct Agreement {
  double relative_error = 0.0;  // root mean square, over the logits' own
  double top1 = 0.0;            // how often the likeliest token is the same
};

// The likeliest continuation, by `engine`, of a few tokens.
inline std::vector<TokenId> WriteText(Engine& engine, const CodecHandle& codec,
                                      size_t num_tokens) {
  auto writer = *engine.NewSequence(codec, {}, {});
  std::vector<TokenId> tokens = RandomTokens(4, 1000, 1);
  for (size_t at = 0; tokens.size() < num_tokens;) {
    StepItem item;
    item.sequence = writer.get();
    item.tokens = std::span(tokens).subspan(at, tokens.size() - at);
    item.logits_mode = LogitsMode::kLast;
    const absl::Status status = engine.Step({&item, 1});
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
    at = tokens.size();
    tokens.push_back(static_cast<TokenId>(
        std::max_element(item.logits.begin(), item.logits.end()) -
        item.logits.begin()));
  }
  return tokens;
}

// Both engines compute a text that `expected` writes, `found` by that policy.
// Prints what it finds.
inline Agreement MeasureAgreement(Engine& expected, Engine& found,
                                  const std::string& spec, size_t num_tokens,
                                  RematPolicy remat = RematPolicy::kResume) {
  const auto expected_codec = expected.OpenCodec(spec, {});
  const auto found_codec = found.OpenCodec(spec, {});
  EXPECT_TRUE(expected_codec.ok()) << expected_codec.status();
  EXPECT_TRUE(found_codec.ok()) << found_codec.status();
  if (!expected_codec.ok() || !found_codec.ok()) return {1.0, 0.0};
  const std::vector<TokenId> tokens =
      WriteText(expected, **expected_codec, num_tokens);
  const Reference a = ComputeReference(expected, **expected_codec, tokens);
  const Reference b = ComputeReference(found, **found_codec, tokens, remat);
  double error = 0.0, power = 0.0;
  int same = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto likeliest = [](const std::vector<float>& row) {
      return std::max_element(row.begin(), row.end()) - row.begin();
    };
    same += likeliest(a.logits[i]) == likeliest(b.logits[i]) ? 1 : 0;
    for (size_t t = 0; t < a.logits[i].size(); ++t) {
      const auto x = static_cast<double>(a.logits[i][t]);
      const double d = static_cast<double>(b.logits[i][t]) - x;
      error += d * d;
      power += x * x;
    }
  }
  Agreement out;
  out.relative_error = std::sqrt(error / power);
  out.top1 = same / static_cast<double>(tokens.size());
  std::printf("%s, %s: relative error %.4f, top-1 agreement %.3f\n",
              found.info().device.c_str(), spec.c_str(), out.relative_error,
              out.top1);
  return out;
}

// BF16 through the 30 layers of a small model: a few per cent of the logits,
// and likeliest tokens that differ only where two are close.
inline constexpr double kModelRelativeError = 0.1;
inline constexpr double kModelTop1 = 0.9;

// XCACHE_TEST_MODEL, or "".
inline std::string TestModelPath() {
  const char* path = std::getenv("XCACHE_TEST_MODEL");
  return path != nullptr ? path : "";
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_ENGINE_DEVICE_AGREEMENT_H_
