#include "cachestore/shared/s3_object_store.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cachestore/shared/s3_client.h"
#include "cachestore/shared/xml_answers.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using Kind = PutCondition::Kind;

// By which every server tells a body that was damaged on its way: not each
// compares the signature's digest with what it got. Empty: this machine's
// OpenSSL has none (FIPS).
std::string Md5(std::string_view bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_md5(),
                 nullptr) != 1) {
    return "";
  }
  return absl::Base64Escape(
      {reinterpret_cast<const char*>(digest.data()), size});
}

constexpr char kPutHeader[] = "x-amz-meta-xcache-put";
constexpr char kAfterHeader[] = "x-amz-meta-xcache-after";
constexpr char kAbsent[] = "absent";
constexpr size_t kMaxListBytes = size_t{4} << 20;  // of 1000 keys and more

std::string Quoted(const std::string& etag) {
  return absl::StrCat("\"", etag, "\"");
}

absl::Status CheckEtag(const std::string& etag) {
  if (!etag.empty() && UnquoteEtag(etag) == etag && etag != kAbsent) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "etag: expected 1 to 128 visible characters without quotes, as a Get or "
      "a Put gave it, found another");
}

std::string RandomId() {
  std::random_device random;
  std::string id;
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&id, absl::Hex(random(), absl::kZeroPad8));
  }
  return id;
}

// The answer's etag, which every S3 gives.
absl::StatusOr<std::string> EtagOf(const HttpAnswer& answer,
                                   const std::string& where) {
  std::string etag = UnquoteEtag(answer.Header("etag"));
  if (etag.empty()) {
    return absl::InternalError(absl::StrCat(
        where, ": expected an ETag header in an answer, found none"));
  }
  return etag;
}

class S3ObjectStore : public ObjectStore {
 public:
  S3ObjectStore(const S3Options& options, S3ClientOptions client,
                std::shared_ptr<HttpClient> http,
                std::unique_ptr<CredentialsProvider> credentials)
      : options_(options),
        client_(std::move(client), std::move(http), std::move(credentials)) {}

  // Before what the callbacks use goes.
  ~S3ObjectStore() override { client_.Stop(); }

  using ObjectStore::Delete;
  using ObjectStore::Get;
  using ObjectStore::List;
  using ObjectStore::Put;

  void Get(const std::string& key, const GetOptions& options,
           GetDone done) override;
  void Put(const std::string& key, std::string bytes, const PutOptions& options,
           PutDone done) override;
  void Delete(const std::string& key, milliseconds timeout,
              DeleteDone done) override;
  void List(const ListOptions& options, ListDone done) override;

  ObjectStoreStats stats() const override {
    const HttpStats http = client_.http_stats();
    MutexLock lock(mu_);
    return {.requests = requests_,
            .failures = failures_,
            .retries = client_.retries(),
            .throttled = client_.throttled(),
            .sent_bytes = http.sent_bytes,
            .received_bytes = http.received_bytes,
            .running = http.running,
            .queued = http.queued,
            .queued_bytes = queued_bytes_};
  }

 private:
  struct PutCall {
    std::string key;  // whole
    PutCondition condition;
    std::string id;
    HttpRequest::Clock::time_point deadline;
    size_t num_bytes = 0;
    PutDone done;
  };

  // A call takes its place in the queue, until End.
  absl::Status Begin(size_t num_bytes) XC_EXCLUDES(mu_);
  void End(const absl::Status& status, size_t num_bytes) XC_EXCLUDES(mu_);

  HttpRequest::Clock::time_point DeadlineOf(milliseconds timeout) const {
    return HttpRequest::Clock::now() +
           (timeout.count() > 0 ? timeout : options_.timeout);
  }
  void Finish(const std::shared_ptr<PutCall>& call,
              absl::StatusOr<std::string> etag);
  void AfterPut(const std::shared_ptr<PutCall>& call, const S3Reply& reply);
  // Whether a Put that may have been done was.
  void Recognise(const std::shared_ptr<PutCall>& call);
  absl::StatusOr<ObjectList> ToList(const S3Reply& reply,
                                    const std::string& start_after,
                                    const std::string& prefix) const;

  const S3Options options_;
  mutable Mutex mu_;
  int64_t requests_ XC_GUARDED_BY(mu_) = 0;
  int64_t failures_ XC_GUARDED_BY(mu_) = 0;
  int64_t calls_ XC_GUARDED_BY(mu_) = 0;
  int64_t queued_bytes_ XC_GUARDED_BY(mu_) = 0;
  S3Client client_;
};

absl::Status S3ObjectStore::Begin(size_t num_bytes) {
  constexpr milliseconds kComeBack{100};
  const auto more = static_cast<int64_t>(num_bytes);
  MutexLock lock(mu_);
  if (calls_ >= options_.max_calls ||
      queued_bytes_ + more > options_.max_queued_bytes) {
    absl::Status full = absl::ResourceExhaustedError(
        absl::StrCat(client_.where(), ": expected at most ", options_.max_calls,
                     " calls and ", options_.max_queued_bytes,
                     " bytes to send, found ", calls_, " calls and ",
                     queued_bytes_, " bytes that wait, and ", more, " more"));
    SetRetryAfter(full, kComeBack);
    return full;
  }
  ++requests_;
  ++calls_;
  queued_bytes_ += more;
  return absl::OkStatus();
}

void S3ObjectStore::End(const absl::Status& status, size_t num_bytes) {
  MutexLock lock(mu_);
  --calls_;
  queued_bytes_ -= static_cast<int64_t>(num_bytes);
  if (!status.ok() && !absl::IsNotFound(status) && !absl::IsAborted(status)) {
    ++failures_;
  }
}

void S3ObjectStore::Get(const std::string& key, const GetOptions& options,
                        GetDone done) {
  absl::Status status = CheckObjectKey(key);
  if (status.ok() && !options.if_none_match.empty()) {
    status = CheckEtag(options.if_none_match);
  }
  if (status.ok()) status = Begin(0);
  if (!status.ok()) return done(status);

  S3Request request{.method = "GET",
                    .key = options_.location.prefix + key,
                    .max_answer_bytes = options_.max_object_bytes,
                    .is_safe_to_repeat = true,
                    .deadline = DeadlineOf(options.timeout)};
  const bool may_be_unmodified = !options.if_none_match.empty();
  if (may_be_unmodified) {
    request.headers.emplace_back("if-none-match",
                                 Quoted(options.if_none_match));
  }
  client_.Send(std::move(request), [this, etag = options.if_none_match,
                                    may_be_unmodified,
                                    done = std::move(done)](S3Reply reply) {
    auto object = [&]() -> absl::StatusOr<StoredObject> {
      XC_RETURN_IF_ERROR(reply.verdict.status);
      if (reply.answer.code == 304) {
        if (!may_be_unmodified) {
          return absl::InternalError(absl::StrCat(
              client_.where(), ": expected an object, found HTTP 304"));
        }
        return StoredObject{.not_modified = true, .bytes = {}, .etag = etag};
      }
      XC_ASSIGN_OR_RETURN(std::string found,
                          EtagOf(reply.answer, client_.where()));
      return StoredObject{.not_modified = false,
                          .bytes = std::move(reply.answer.body),
                          .etag = std::move(found)};
    }();
    End(object.status(), 0);
    done(std::move(object));
  });
}

void S3ObjectStore::Put(const std::string& key, std::string bytes,
                        const PutOptions& options, PutDone done) {
  auto call = std::make_shared<PutCall>();
  call->key = options_.location.prefix + key;
  call->condition = options.condition;
  call->num_bytes = bytes.size();
  call->deadline = DeadlineOf(options.timeout);
  call->done = std::move(done);

  absl::Status status = CheckObjectKey(key);
  if (status.ok() && call->condition.kind == Kind::kEtag) {
    status = CheckEtag(call->condition.etag);
  }
  if (status.ok() && bytes.size() > options_.max_object_bytes) {
    status = absl::InvalidArgumentError(
        absl::StrCat("object: expected at most ", options_.max_object_bytes,
                     " bytes, found ", bytes.size()));
  }
  if (status.ok()) status = Begin(bytes.size());
  if (!status.ok()) return call->done(status);

  S3Request request{
      .method = "PUT",
      .key = call->key,
      .body = std::make_shared<const std::string>(std::move(bytes)),
      .is_safe_to_repeat = call->condition.kind != Kind::kNone,
      .deadline = call->deadline};
  if (std::string md5 = Md5(*request.body); !md5.empty()) {
    request.headers.emplace_back("content-md5", std::move(md5));
  }
  if (!options_.server_side_encryption.empty()) {
    request.headers.emplace_back("x-amz-server-side-encryption",
                                 options_.server_side_encryption);
  }
  if (!options_.kms_key_id.empty()) {
    request.headers.emplace_back("x-amz-server-side-encryption-aws-kms-key-id",
                                 options_.kms_key_id);
  }
  if (call->condition.kind != Kind::kNone) {
    call->id = RandomId();
    const bool absent = call->condition.kind == Kind::kAbsent;
    request.headers.emplace_back(absent ? "if-none-match" : "if-match",
                                 absent ? "*" : Quoted(call->condition.etag));
    request.headers.emplace_back(kPutHeader, call->id);
    request.headers.emplace_back(kAfterHeader,
                                 absent ? kAbsent : call->condition.etag);
  }
  client_.Send(std::move(request),
               [this, call](S3Reply reply) { AfterPut(call, reply); });
}

void S3ObjectStore::AfterPut(const std::shared_ptr<PutCall>& call,
                             const S3Reply& reply) {
  const S3Verdict& verdict = reply.verdict;
  if (verdict.status.ok()) {
    return Finish(call, EtagOf(reply.answer, client_.where()));
  }
  // S3 says 404 where an object that must have an etag is not there.
  const bool is_refused =
      call->condition.kind != Kind::kNone &&
      (absl::IsAborted(verdict.status) ||
       (call->condition.kind == Kind::kEtag &&
        absl::IsNotFound(verdict.status) && verdict.code == "NoSuchKey"));
  if (!is_refused) return Finish(call, verdict.status);
  if (reply.may_have_been_done_before) return Recognise(call);
  Finish(call, absl::AbortedError(std::string(verdict.status.message())));
}

void S3ObjectStore::Recognise(const std::shared_ptr<PutCall>& call) {
  S3Request request{
      .method = "HEAD", .key = call->key, .deadline = call->deadline};
  client_.Send(std::move(request), [this, call](S3Reply reply) {
    const absl::Status& status = reply.verdict.status;
    if (!status.ok() && !absl::IsNotFound(status)) {
      return Finish(call, status);
    }
    const HttpAnswer& answer = reply.answer;
    const std::string_view after = call->condition.kind == Kind::kAbsent
                                       ? std::string_view(kAbsent)
                                       : call->condition.etag;
    if (status.ok() && answer.Header(kPutHeader) == call->id) {
      return Finish(call, EtagOf(answer, client_.where()));
    }
    if (status.ok() && answer.Header(kAfterHeader) == after) {
      // It replaced the very thing that this one was to replace.
      return Finish(call, absl::AbortedError(absl::StrCat(
                              client_.where(), " key ", call->key,
                              ": expected to be the next writer, found "
                              "another's object")));
    }
    Finish(call, absl::UnknownError(absl::StrCat(
                     client_.where(), " key ", call->key,
                     ": an answer was lost, and since then the object was ",
                     status.ok() ? "written by another" : "deleted",
                     ": whether it was written before is not known")));
  });
}

void S3ObjectStore::Finish(const std::shared_ptr<PutCall>& call,
                           absl::StatusOr<std::string> etag) {
  End(etag.status(), call->num_bytes);
  call->done(std::move(etag));
}

void S3ObjectStore::Delete(const std::string& key, milliseconds timeout,
                           DeleteDone done) {
  absl::Status status = CheckObjectKey(key);
  if (status.ok()) status = Begin(0);
  if (!status.ok()) return done(status);
  S3Request request{.method = "DELETE",
                    .key = options_.location.prefix + key,
                    .deadline = DeadlineOf(timeout)};
  client_.Send(
      std::move(request), [this, done = std::move(done)](const S3Reply& reply) {
        const S3Verdict& verdict = reply.verdict;
        const bool is_gone =
            absl::IsNotFound(verdict.status) && verdict.code == "NoSuchKey";
        const absl::Status result = is_gone ? absl::OkStatus() : verdict.status;
        End(result, 0);
        done(result);
      });
}

void S3ObjectStore::List(const ListOptions& options, ListDone done) {
  absl::Status status;
  std::string_view prefix = options.prefix;
  if (prefix.ends_with('/')) prefix.remove_suffix(1);
  if (!prefix.empty() || !options.prefix.empty()) {
    status = CheckObjectKey(prefix);
  }
  if (status.ok() && !options.start_after.empty()) {
    status = CheckObjectKey(options.start_after);
  }
  if (status.ok() && (options.max_keys < 1 || options.max_keys > 1000)) {
    status = absl::InvalidArgumentError(absl::StrCat(
        "list: expected 1 to 1000 keys a page, found ", options.max_keys));
  }
  if (status.ok()) status = Begin(0);
  if (!status.ok()) return done(status);

  S3Request request{.method = "GET",
                    .query = {{"list-type", "2"},
                              {"max-keys", absl::StrCat(options.max_keys)}},
                    .max_answer_bytes = kMaxListBytes,
                    .deadline = DeadlineOf(options.timeout)};
  const std::string whole_prefix = options_.location.prefix + options.prefix;
  std::string start_after;
  if (!whole_prefix.empty()) request.query.emplace_back("prefix", whole_prefix);
  if (!options.start_after.empty()) {
    start_after = options_.location.prefix + options.start_after;
    request.query.emplace_back("start-after", start_after);
  }
  client_.Send(std::move(request),
               [this, whole_prefix, start_after = std::move(start_after),
                done = std::move(done)](const S3Reply& reply) {
                 auto list = ToList(reply, start_after, whole_prefix);
                 End(list.status(), 0);
                 done(std::move(list));
               });
}

absl::StatusOr<ObjectList> S3ObjectStore::ToList(
    const S3Reply& reply, const std::string& start_after,
    const std::string& prefix) const {
  XC_RETURN_IF_ERROR(reply.verdict.status);
  auto answer = ParseListAnswer(reply.answer.body);
  if (!answer.ok()) {
    return absl::Status(answer.status().code(),
                        absl::StrCat("list at ", client_.where(), ": ",
                                     std::string(answer.status().message())));
  }
  ObjectList list;
  std::string last = start_after;
  for (ListedObject& object : answer->objects) {
    if (object.key <= last || !object.key.starts_with(prefix)) {
      return absl::UnavailableError(absl::StrCat(
          "list at ", client_.where(),
          ": expected keys with the prefix that was asked for, in order and "
          "behind the one that was named, found others"));
    }
    last = object.key;
    object.key.erase(0, options_.location.prefix.size());
    // Others' objects, such as the marker of a folder, are not ours to name.
    if (CheckObjectKey(object.key).ok()) {
      list.objects.push_back(std::move(object));
    }
  }
  if (!answer->is_truncated) return list;
  if (answer->objects.empty()) {
    return absl::UnavailableError(
        absl::StrCat("list at ", client_.where(),
                     ": expected keys, found none and that there are more"));
  }
  list.next_start_after = last.substr(options_.location.prefix.size());
  return list;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectStore>> OpenS3ObjectStore(
    const S3Options& options, std::shared_ptr<HttpClient> http,
    std::unique_ptr<CredentialsProvider> credentials) {
  XC_RETURN_IF_ERROR(CheckRegion(options.region));
  const std::string& encryption = options.server_side_encryption;
  if (!encryption.empty() && encryption != "AES256" &&
      encryption != "aws:kms") {
    return absl::InvalidArgumentError(
        "server-side encryption: expected nothing, AES256 or aws:kms, found "
        "another");
  }
  const bool is_key_plain =
      std::all_of(options.kms_key_id.begin(), options.kms_key_id.end(),
                  [](char c) { return c > ' ' && c < ''; });
  if (!is_key_plain ||
      (!options.kms_key_id.empty() && encryption != "aws:kms")) {
    return absl::InvalidArgumentError(
        "KMS key id: expected visible characters, and aws:kms as encryption, "
        "found another");
  }
  S3ClientOptions client{.location = options.location,
                         .endpoint = options.endpoint,
                         .bucket_in_host = false,
                         .region = options.region};
  if (client.endpoint.host.empty()) {
    client.endpoint = {
        .tls = true,
        .host = absl::StrCat("s3.", options.region, ".amazonaws.com")};
    // A certificate for *.host holds for a name without dots alone.
    client.bucket_in_host =
        options.location.bucket.find('.') == std::string::npos;
  }
  return std::make_unique<S3ObjectStore>(
      options, std::move(client), std::move(http), std::move(credentials));
}

}  // namespace xcache
