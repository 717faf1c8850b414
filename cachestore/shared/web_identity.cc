#include "cachestore/shared/web_identity.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/s3_errors.h"
#include "cachestore/shared/sigv4.h"
#include "cachestore/shared/xml_answers.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;

constexpr size_t kMaxTokenBytes = size_t{64} << 10;
constexpr milliseconds kBetweenTries{500};

int64_t UnixMillis() {
  return std::chrono::duration_cast<milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// What callbacks hold on to: they may outlast the provider.
class State : public std::enable_shared_from_this<State> {
 public:
  using Clock = HttpRequest::Clock;

  State(WebIdentityOptions options, std::shared_ptr<HttpClient> http)
      : options_(std::move(options)), http_(std::move(http)) {}

  void Get(Clock::time_point deadline, CredentialsProvider::Done done) {
    std::optional<Credentials> in_force;
    bool refresh = false;
    uint64_t number = 0;
    {
      MutexLock lock(mu_);
      const int64_t now = UnixMillis();
      if (have_ && now < have_->expires_unix_ms) {
        in_force = have_->credentials;
      } else {
        number = ++last_number_;
        waiting_.emplace(number, std::move(done));
      }
      refresh = !is_refreshing_ &&
                (!in_force || (now >= refresh_at_ms_ && now >= next_try_ms_));
      is_refreshing_ |= refresh;
    }
    if (in_force) {
      done(*std::move(in_force));
    } else {
      http_->CallAt(deadline, [self = shared_from_this(), number] {
        self->GiveUp(number);
      });
    }
    if (refresh) Refresh(HttpRequest::Clock::now() + options_.timeout, {});
  }

 private:
  using Waiting = std::map<uint64_t, CredentialsProvider::Done>;

  // Of one that has waited until its deadline.
  void GiveUp(uint64_t number) {
    CredentialsProvider::Done done;
    {
      MutexLock lock(mu_);
      const auto it = waiting_.find(number);
      if (it == waiting_.end()) return;
      done = std::move(it->second);
      waiting_.erase(it);
    }
    done(absl::DeadlineExceededError(
        absl::StrCat("AssumeRoleWithWebIdentity at ", options_.endpoint.Url(),
                     ": no answer in time")));
  }

  void Refresh(Clock::time_point deadline, Clock::time_point not_before) {
    auto token = ReadSmallFile(options_.token_file, kMaxTokenBytes);
    if (!token.ok()) {
      return Finish(absl::PermissionDeniedError(absl::StrCat(
          "web identity token file: ", std::string(token.status().message()))));
    }
    const NameValues form = {
        {"Action", "AssumeRoleWithWebIdentity"},
        {"Version", "2011-06-15"},
        {"RoleArn", options_.role_arn},
        {"RoleSessionName", options_.session_name},
        {"WebIdentityToken", std::string(absl::StripAsciiWhitespace(*token))}};
    HttpRequest request;
    request.method = "POST";
    request.url = options_.endpoint.Url() + "/";
    request.headers = {{"content-type", "application/x-www-form-urlencoded"}};
    request.body = std::make_shared<const std::string>(CanonicalQuery(form));
    request.not_before = not_before;
    request.deadline = deadline;
    http_->Start(std::move(request),
                 [self = shared_from_this(), deadline](HttpAnswer answer) {
                   self->Judge(answer, deadline);
                 });
  }

  void Judge(const HttpAnswer& answer, Clock::time_point deadline) {
    const S3Verdict verdict = JudgeS3Answer(
        answer,
        absl::StrCat("AssumeRoleWithWebIdentity at ", options_.endpoint.Url()));
    if (verdict.status.ok()) return Finish(ParseWebIdentityAnswer(answer.body));
    const auto again =
        Clock::now() + std::max(kBetweenTries, verdict.retry_after);
    if (verdict.is_passing && again < deadline) return Refresh(deadline, again);
    // Of the service that gives credentials, whatever it said else.
    const bool is_refusal =
        answer.outcome == HttpAnswer::Outcome::kAnswered && !verdict.is_passing;
    const std::string message(verdict.status.message());
    Finish(is_refusal ? absl::PermissionDeniedError(message)
                      : absl::UnavailableError(message));
  }

  void Finish(absl::StatusOr<TemporaryCredentials> answer) {
    absl::StatusOr<Credentials> given;
    Waiting waiting;
    {
      MutexLock lock(mu_);
      const int64_t now = UnixMillis();
      is_refreshing_ = false;
      waiting.swap(waiting_);
      // Those that fail are asked for again, but not by every call.
      next_try_ms_ = now + 10 * kBetweenTries.count();
      if (answer.ok() && answer->expires_unix_ms <= now) {
        answer = absl::UnavailableError(
            "AssumeRoleWithWebIdentity: expected credentials for a time to "
            "come, found expired ones: is this machine's clock right?");
      }
      if (answer.ok()) {
        const int64_t life = answer->expires_unix_ms - now;
        const int64_t before = std::min<int64_t>(
            life / 5, milliseconds(options_.refresh_before).count());
        refresh_at_ms_ = answer->expires_unix_ms - before;
        next_try_ms_ = 0;
        given = answer->credentials;
        have_ = *std::move(answer);
      } else {
        given = answer.status();
      }
    }
    if (!given.ok()) {
      XC_LOG_WARN("web identity gave no credentials", "error={}",
                  LogValue(std::string(given.status().message())));
    }
    for (const auto& [number, done] : waiting) done(given);
  }

  const WebIdentityOptions options_;
  const std::shared_ptr<HttpClient> http_;
  Mutex mu_;
  std::optional<TemporaryCredentials> have_ XC_GUARDED_BY(mu_);
  int64_t refresh_at_ms_ XC_GUARDED_BY(mu_) = 0;
  int64_t next_try_ms_ XC_GUARDED_BY(mu_) = 0;
  bool is_refreshing_ XC_GUARDED_BY(mu_) = false;
  uint64_t last_number_ XC_GUARDED_BY(mu_) = 0;
  Waiting waiting_ XC_GUARDED_BY(mu_);
};

class WebIdentity : public CredentialsProvider {
 public:
  explicit WebIdentity(std::shared_ptr<State> state)
      : state_(std::move(state)) {}
  void Get(std::chrono::steady_clock::time_point deadline, Done done) override {
    state_->Get(deadline, std::move(done));
  }

 private:
  const std::shared_ptr<State> state_;
};

bool IsVisible(const std::string& text) {
  return !text.empty() && text.size() <= 2048 &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return c > ' ' && c < '\x7f'; });
}

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CredentialsProvider>> WebIdentityCredentials(
    WebIdentityOptions options, std::shared_ptr<HttpClient> http) {
  if (!IsVisible(options.role_arn) || !IsVisible(options.session_name) ||
      options.token_file.empty() || options.endpoint.host.empty()) {
    return absl::InvalidArgumentError(
        "web identity: expected a token file, a role, a session name and an "
        "endpoint, found one that is empty, or with other characters");
  }
  return std::make_unique<WebIdentity>(
      std::make_shared<State>(std::move(options), std::move(http)));
}

absl::StatusOr<WebIdentityOptions> WebIdentityFromEnvironment(
    const std::string& region) {
  WebIdentityOptions options;
  options.token_file = Variable("AWS_WEB_IDENTITY_TOKEN_FILE");
  options.role_arn = Variable("AWS_ROLE_ARN");
  if (options.token_file.empty() && options.role_arn.empty()) {
    return absl::NotFoundError(
        "expected AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN in the "
        "environment, found neither");
  }
  if (options.token_file.empty() || options.role_arn.empty()) {
    return absl::InvalidArgumentError(
        "expected AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN in the "
        "environment, found only one of them");
  }
  if (std::string name = Variable("AWS_ROLE_SESSION_NAME"); !name.empty()) {
    options.session_name = std::move(name);
  }
  XC_RETURN_IF_ERROR(CheckRegion(region));
  std::string url = Variable("AWS_ENDPOINT_URL_STS");
  if (url.empty()) url = absl::StrCat("https://sts.", region, ".amazonaws.com");
  XC_ASSIGN_OR_RETURN(options.endpoint, ParseHttpEndpoint(url));
  return options;
}

}  // namespace xcache
