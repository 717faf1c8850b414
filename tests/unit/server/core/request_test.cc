#include "server/core/request.h"

#include <cmath>
#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// INVALID_ARGUMENT that names the field and what was found.
void ExpectBad(const absl::Status& status, const std::string& field,
               const std::string& found) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(field + " must be"), HasSubstr(found)));
}

TEST(CheckOptionsTest, NamesTheFieldAndWhatWasFound) {
  using O = GenerationOptions;
  const struct {
    std::function<void(O&)> set;
    const char* field;
    const char* found;
  } kCases[] = {
      {[](O& o) { o.sampling.temperature = NAN; }, "temperature", "not nan"},
      {[](O& o) { o.max_tokens = 0; }, "max_tokens", "not 0"},
      {[](O& o) { o.num_logprobs = 22; }, "logprobs", "not 22"},
      {[](O& o) { o.num_logprobs = -1; }, "logprobs", "not -1"},
      {[](O& o) { o.stop.resize(17, "x"); }, "stop", "not 17"},
      {[](O& o) {
         o.stop = {"x", ""};
       },
       "stop[1]", "not 0"},
      {[](O& o) { o.stop = {std::string(257, 'x')}; }, "stop[0]", "not 257"},
      {[](O& o) { o.stop = {"\xFF"}; }, "stop[0]", "UTF-8"},
  };
  EXPECT_TRUE(CheckOptions({}).ok());
  for (const auto& c : kCases) {
    O options;
    c.set(options);
    ExpectBad(CheckOptions(options), c.field, c.found);
  }
}

TEST(CheckOptionsTest, TheMostThatMayBe) {
  GenerationOptions options;
  options.num_logprobs = kMaxLogprobs;
  options.stop.resize(kMaxStops, std::string(kMaxStopBytes, 'x'));
  EXPECT_TRUE(CheckOptions(options).ok());
}

TEST(CheckScoreTest, RangesAreThoseOfThePrompt) {
  ScoreRequest request;
  request.tokens = {1};
  EXPECT_THAT(std::string(CheckScore(request).message()),
              HasSubstr("at least 2 tokens, not 1"));
  request.tokens = {1, 2};
  request.first = 1;
  request.top_logprobs = kMaxTopLogprobs;
  EXPECT_TRUE(CheckScore(request).ok());
  for (const int64_t first : {int64_t{-1}, int64_t{2}}) {
    request.first = first;
    ExpectBad(CheckScore(request), "first", "not " + std::to_string(first));
  }
  request.first = 0;
  request.top_logprobs = 21;
  ExpectBad(CheckScore(request), "top_logprobs", "not 21");
}

}  // namespace
}  // namespace xcache
