#include "cachestore/shared/s3_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/shared/object_store.h"
#include "engine/base/log.h"

namespace xcache {
namespace {

using Clock = HttpRequest::Clock;
using std::chrono::milliseconds;

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string HostOf(const S3ClientOptions& options) {
  return options.bucket_in_host
             ? absl::StrCat(options.location.bucket, ".", options.endpoint.host)
             : options.endpoint.host;
}

absl::Status With(const absl::Status& status, const std::string& more) {
  absl::Status longer(status.code(),
                      absl::StrCat(std::string(status.message()), more));
  if (const auto after = RetryAfter(status)) SetRetryAfter(longer, *after);
  return longer;
}

}  // namespace

struct S3Client::Call {
  S3Request request;
  Done done;
  std::string what;
  std::string path;
  Digest digest{};
  int num_tries = 0;
  bool has_corrected_clock = false;
  bool may_have_been_done = false;  // by a try that is over
  absl::Status last_error;          // of a try before
  Clock::time_point not_before{};
};

S3Client::S3Client(S3ClientOptions options, std::shared_ptr<HttpClient> http,
                   std::unique_ptr<CredentialsProvider> credentials)
    : options_(std::move(options)),
      host_(HostOf(options_)),
      where_(absl::StrCat(options_.endpoint.Url(), " bucket ",
                          options_.location.bucket)),
      http_(std::move(http)),
      credentials_(std::move(credentials)),
      random_(std::random_device{}()) {}

S3Client::~S3Client() { Stop(); }

void S3Client::Send(S3Request request, Done done) {
  auto call = std::make_shared<Call>();
  call->path = absl::StrCat(options_.bucket_in_host
                                ? "/"
                                : absl::StrCat("/", options_.location.bucket,
                                               request.key.empty() ? "" : "/"),
                            UriEncode(request.key, /*encode_slash=*/false));
  call->what = absl::StrCat(request.method, " at ", where_);
  if (!request.key.empty()) {
    absl::StrAppend(&call->what, " key ", request.key);
  }
  // In the caller's thread: of many bytes it takes its time.
  call->digest =
      Sha256Of(request.body == nullptr ? std::string_view() : *request.body);
  call->request = std::move(request);
  call->done = std::move(done);
  Try(call);
}

void S3Client::Try(const std::shared_ptr<Call>& call) {
  if (call->num_tries++ > 0) ++retries_;
  credentials_->Get(call->request.deadline,
                    [this, call](absl::StatusOr<Credentials> credentials) {
                      if (credentials.ok())
                        return SendSigned(call, *credentials);
                      S3Reply reply;
                      const absl::Status& status = credentials.status();
                      reply.verdict.status = absl::Status(
                          status.code(),
                          absl::StrCat(call->what, ": no credentials: ",
                                       std::string(status.message())));
                      // Who gives them has tried again itself.
                      Conclude(call, std::move(reply));
                    });
}

void S3Client::SendSigned(const std::shared_ptr<Call>& call,
                          const Credentials& credentials) {
  const S3Request& request = call->request;
  SigV4Request to_sign{.method = request.method,
                       .path = call->path,
                       .query = request.query,
                       .headers = request.headers,
                       .payload_digest = call->digest,
                       .region = options_.region,
                       .service = "s3",
                       .unix_s = UnixSeconds() + clock_offset_s_};
  to_sign.headers.emplace_back("host", host_);
  NameValues added = SignSigV4(to_sign, credentials);

  const std::string query = CanonicalQuery(request.query);
  HttpRequest http;
  http.method = request.method;
  http.url = absl::StrCat(options_.endpoint.tls ? "https://" : "http://", host_,
                          call->path, query.empty() ? "" : "?", query);
  http.headers = std::move(to_sign.headers);
  http.headers.insert(http.headers.end(), added.begin(), added.end());
  http.body = request.body;
  http.max_answer_bytes = request.max_answer_bytes;
  http.not_before = call->not_before;
  http.deadline = request.deadline;
  http_->Start(std::move(http), [this, call](HttpAnswer answer) {
    Judge(call, std::move(answer));
  });
}

void S3Client::Judge(const std::shared_ptr<Call>& call, HttpAnswer answer) {
  S3Reply reply;
  reply.verdict = JudgeS3Answer(answer, call->what);
  // Done by this try, if the answer is an error; before it, if curl sent it
  // twice.
  reply.may_have_been_done_before =
      call->may_have_been_done || answer.may_have_been_sent_before;
  call->may_have_been_done |= reply.verdict.may_have_been_done;
  if (absl::IsResourceExhausted(reply.verdict.status)) ++throttled_;
  if (reply.verdict.is_clock_skew && !call->has_corrected_clock) {
    call->has_corrected_clock = true;
    CorrectClock(answer);
    call->not_before = {};
    return Try(call);
  }
  reply.answer = std::move(answer);
  Conclude(call, std::move(reply));
}

void S3Client::Conclude(const std::shared_ptr<Call>& call, S3Reply reply) {
  const S3Verdict& verdict = reply.verdict;
  const bool may_repeat =
      verdict.is_passing &&
      (call->request.is_safe_to_repeat || !call->may_have_been_done);
  if (may_repeat) {
    const auto wait = std::max(Backoff(call->num_tries), verdict.retry_after);
    const auto at = Clock::now() + wait;
    // A try needs some time itself.
    if (at + options_.first_backoff < call->request.deadline) {
      call->not_before = at;
      call->last_error = verdict.status;
      return Try(call);
    }
  }
  if (!verdict.status.ok() && call->num_tries > 1) {
    std::string more = absl::StrCat(" (try ", call->num_tries);
    if (absl::IsDeadlineExceeded(verdict.status) && !call->last_error.ok()) {
      absl::StrAppend(
          &more, "; the one before: ", std::string(call->last_error.message()));
    }
    reply.verdict.status = With(verdict.status, more + ")");
  }
  call->done(std::move(reply));
}

void S3Client::CorrectClock(const HttpAnswer& answer) {
  const std::string date(answer.Header("date"));
  const time_t server = curl_getdate(date.c_str(), nullptr);
  if (server <= 0) return;
  clock_offset_s_ = int64_t{server} - UnixSeconds();
  XC_LOG_WARN(
      "the object store's clock is not this machine's; its own is "
      "used to sign",
      "offset_s={}", clock_offset_s_.load());
}

milliseconds S3Client::Backoff(int num_tries) {
  const int doublings = std::min(num_tries - 1, 16);
  const milliseconds whole = std::min(options_.first_backoff * (1 << doublings),
                                      options_.longest_backoff);
  // From a half to the whole: many that failed at once come back apart.
  MutexLock lock(mu_);
  std::uniform_int_distribution<int64_t> jitter(whole.count() / 2,
                                                whole.count());
  return milliseconds(jitter(random_));
}

}  // namespace xcache
