#include "cachestore/shared/s3_errors.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <string_view>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/object_store.h"
#include "cachestore/shared/xml_answers.h"

namespace xcache {
namespace {

using absl::StatusCode;
using Outcome = HttpAnswer::Outcome;

bool IsOneOf(std::string_view code,
             std::initializer_list<std::string_view> codes) {
  return std::find(codes.begin(), codes.end(), code) != codes.end();
}

std::chrono::milliseconds RetryAfterHeader(const HttpAnswer& answer) {
  const std::string_view text = answer.Header("retry-after");
  int seconds = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return std::chrono::seconds(std::clamp(seconds, 0, 3600));
}

// A header of the answer, fit for a message.
std::string Shown(std::string_view text) {
  const bool is_plain =
      text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-';
      });
  return is_plain ? std::string(text) : "another";
}

// Of an answer that came whole, with a code from 300 on, without 304.
void JudgeError(const HttpAnswer& answer, const std::string& what,
                S3Verdict& verdict) {
  verdict.code = ParseErrorCode(answer.body);
  const std::string& code = verdict.code;
  std::string found =
      absl::StrCat("found HTTP ", answer.code, code.empty() ? "" : " ", code);
  StatusCode status = StatusCode::kInternal;
  const int http = answer.code;
  if (http == 429 || IsOneOf(code, {"SlowDown", "ServiceUnavailable",
                                    "TooManyRequests", "RequestLimitExceeded",
                                    "Throttling", "ThrottlingException"})) {
    // The server took nothing on: this alone is known not to have been done.
    status = StatusCode::kResourceExhausted;
    verdict.is_passing = true;
    verdict.retry_after = RetryAfterHeader(answer);
  } else if (code == "RequestTimeTooSkewed") {
    status = StatusCode::kPermissionDenied;
    verdict.is_clock_skew = true;
    absl::StrAppend(&found,
                    ": this machine's clock and the store's differ by "
                    "more than the store allows");
  } else if (http == 401 || http == 403 ||
             IsOneOf(code,
                     {"ExpiredToken", "ExpiredTokenException", "InvalidToken",
                      "InvalidAccessKeyId", "SignatureDoesNotMatch",
                      "InvalidIdentityToken", "AccessDenied"})) {
    status = StatusCode::kPermissionDenied;
  } else if (http == 404) {
    status = StatusCode::kNotFound;
  } else if (http == 412) {
    status = StatusCode::kAborted;
  } else if (IsOneOf(code, {"BadDigest", "XAmzContentSHA256Mismatch"})) {
    // The body was damaged on its way, and is not taken.
    status = StatusCode::kUnavailable;
    verdict.is_passing = true;
  } else if (http == 409) {  // another operation on the key at the same time
    status = StatusCode::kUnavailable;
    verdict.is_passing = true;
  } else if (http == 501) {
    status = StatusCode::kUnimplemented;
  } else if (http >= 500 || http == 408 || code == "RequestTimeout") {
    status = StatusCode::kUnavailable;
    verdict.is_passing = true;
    verdict.may_have_been_done = true;
    verdict.retry_after = RetryAfterHeader(answer);
  } else if (http < 400 || code == "AuthorizationHeaderMalformed") {
    status = StatusCode::kFailedPrecondition;
    if (const auto region = answer.Header("x-amz-bucket-region");
        !region.empty()) {
      absl::StrAppend(&found, ": the bucket is in the region ", Shown(region));
    }
  }
  verdict.status = absl::Status(status, absl::StrCat(what, ": ", found));
  if (status == StatusCode::kResourceExhausted) {
    constexpr std::chrono::milliseconds kUnnamed{1000};
    SetRetryAfter(verdict.status, verdict.retry_after.count() > 0
                                      ? verdict.retry_after
                                      : kUnnamed);
  }
}

}  // namespace

S3Verdict JudgeS3Answer(const HttpAnswer& answer, const std::string& what) {
  S3Verdict verdict;
  const auto failed = [&](StatusCode code) {
    verdict.status = absl::Status(
        code,
        absl::StrCat(what, ": expected an answer, found: ", answer.error));
  };
  switch (answer.outcome) {
    case Outcome::kAnswered:
      if (answer.code / 100 != 2 && answer.code != 304) {
        JudgeError(answer, what, verdict);
      } else if (!answer.body.empty() && !answer.is_whole_for_sure) {
        verdict.status = absl::UnavailableError(absl::StrCat(
            what, ": expected an answer of a length that is announced, found ",
            answer.body.size(), " bytes that may be half of it"));
        verdict.is_passing = true;
        verdict.may_have_been_done = true;
      }
      break;
    case Outcome::kNotSent:
      failed(StatusCode::kUnavailable);
      verdict.is_passing = true;
      break;
    case Outcome::kLost:
      failed(StatusCode::kUnavailable);
      verdict.is_passing = true;
      verdict.may_have_been_done = true;
      break;
    case Outcome::kTimedOut:
      failed(StatusCode::kDeadlineExceeded);
      verdict.may_have_been_done = true;
      break;
    case Outcome::kTooLarge:
      failed(StatusCode::kOutOfRange);
      break;
    case Outcome::kCancelled:
      failed(StatusCode::kCancelled);
      break;
  }
  verdict.may_have_been_done |= answer.may_have_been_sent_before;
  return verdict;
}

}  // namespace xcache
