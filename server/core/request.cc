#include "server/core/request.h"

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"

namespace xcache {
namespace {

absl::Status CheckCount(const char* field, int value, int most) {
  if (value >= 0 && value <= most) return absl::OkStatus();
  return FieldError(field, absl::StrCat("in [0, ", most, "]"), value);
}

}  // namespace

absl::Status CheckOptions(const GenerationOptions& options) {
  XC_RETURN_IF_ERROR(ValidateSampling(options.sampling));
  if (options.max_tokens < 1) {
    return FieldError("max_tokens", "at least 1", options.max_tokens);
  }
  XC_RETURN_IF_ERROR(
      CheckCount("logprobs", options.num_logprobs, kMaxLogprobs));
  if (options.stop.size() > kMaxStops) {
    return FieldError("stop", absl::StrCat("at most ", kMaxStops, " strings"),
                      options.stop.size());
  }
  for (size_t i = 0; i < options.stop.size(); ++i) {
    const std::string& stop = options.stop[i];
    const std::string field = absl::StrCat("stop[", i, "]");
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return FieldError(field, absl::StrCat("1 to ", kMaxStopBytes, " bytes"),
                        stop.size());
    }
    if (!IsUtf8(stop)) return FieldError(field, "UTF-8", "other bytes");
  }
  if (options.grammar.kind != GrammarSpec::Kind::kNone && options.ignore_eos) {
    return absl::InvalidArgumentError(
        "ignore_eos: an answer of a format ends where the format does");
  }
  if (!options.speculate.empty() && options.speculate != "ngram" &&
      options.speculate != "off") {
    return FieldError("speculate", "ngram or off", options.speculate);
  }
  XC_RETURN_IF_ERROR(CheckGrammar(options.grammar));
  return absl::OkStatus();
}

absl::Status CheckScore(const ScoreRequest& request) {
  XC_RETURN_IF_ERROR(
      CheckCount("top_logprobs", request.top_logprobs, kMaxTopLogprobs));
  const auto num_tokens = static_cast<int64_t>(request.tokens.size());
  if (num_tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt must have at least 2 tokens, not ", num_tokens,
                     ": the first one has no probability"));
  }
  if (request.first >= 0 && request.first < num_tokens) {
    return absl::OkStatus();
  }
  return FieldError("first", absl::StrCat("below the prompt's ", num_tokens),
                    request.first);
}

void Cancellation::Cancel() {
  MutexLock lock(mu_);
  if (cancelled_) return;
  cancelled_ = true;
  if (waker_) waker_();
}

bool Cancellation::cancelled() const {
  MutexLock lock(mu_);
  return cancelled_;
}

void Cancellation::SetWaker(std::function<void()> waker) {
  MutexLock lock(mu_);
  waker_ = std::move(waker);
  if (cancelled_ && waker_) waker_();
}

}  // namespace xcache
