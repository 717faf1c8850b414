#include "tests/support/memory_object_store.h"

#include <algorithm>
#include <utility>

#include "cachestore/shared/s3_location.h"
#include "engine/base/sha256.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kDefaultTimeout{10000};

// One of its own: Debian's Abseil counts references in code that TSan does not
// see, so one that threads share looks like a race.
absl::Status Copy(const absl::Status& status) {
  absl::Status copy(status.code(), status.message());
  if (const auto after = RetryAfter(status)) SetRetryAfter(copy, *after);
  return copy;
}

int64_t SystemUnixMs() {
  return std::chrono::duration_cast<milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void MemoryBucket::set_clock(std::function<int64_t()> unix_ms) {
  MutexLock lock(mu_);
  unix_ms_ = std::move(unix_ms);
}

MemoryBucket::Object MemoryBucket::Make(std::string bytes) const {
  std::string etag = ToHex(Sha256Of(bytes)).substr(0, 32);
  return {.bytes = std::move(bytes),
          .etag = std::move(etag),
          .modified_unix_ms = unix_ms_ ? unix_ms_() : SystemUnixMs()};
}

absl::StatusOr<std::string> MemoryBucket::Put(const std::string& key,
                                              std::string bytes,
                                              const PutCondition& condition) {
  using Kind = PutCondition::Kind;
  MutexLock lock(mu_);
  const auto found = objects_.find(key);
  const bool is_there = found != objects_.end();
  if ((condition.kind == Kind::kAbsent && is_there) ||
      (condition.kind == Kind::kEtag &&
       (!is_there || found->second.etag != condition.etag))) {
    return absl::AbortedError("memory bucket: the condition does not hold");
  }
  Object& object = objects_[key] = Make(std::move(bytes));
  return object.etag;
}

std::optional<MemoryBucket::Object> MemoryBucket::Find(
    const std::string& key) const {
  MutexLock lock(mu_);
  const auto found = objects_.find(key);
  if (found == objects_.end()) return std::nullopt;
  return found->second;
}

void MemoryBucket::Delete(const std::string& key) {
  MutexLock lock(mu_);
  objects_.erase(key);
}

ObjectList MemoryBucket::List(const ListOptions& options) const {
  MutexLock lock(mu_);
  ObjectList list;
  auto at = options.start_after < options.prefix
                ? objects_.lower_bound(options.prefix)
                : objects_.upper_bound(options.start_after);
  for (; at != objects_.end() && at->first.starts_with(options.prefix); ++at) {
    if (list.objects.size() == static_cast<size_t>(options.max_keys)) {
      list.next_start_after = list.objects.back().key;
      break;
    }
    list.objects.push_back({.key = at->first,
                            .num_bytes = at->second.bytes.size(),
                            .etag = at->second.etag,
                            .modified_unix_ms = at->second.modified_unix_ms});
  }
  return list;
}

void MemoryBucket::Set(const std::string& key, std::string bytes) {
  Put(key, std::move(bytes), {}).IgnoreError();
}

std::map<std::string, MemoryBucket::Object> MemoryBucket::objects() const {
  MutexLock lock(mu_);
  return objects_;
}

int64_t MemoryBucket::num_bytes() const {
  MutexLock lock(mu_);
  int64_t sum = 0;
  for (const auto& [key, object] : objects_) {
    sum += static_cast<int64_t>(object.bytes.size());
  }
  return sum;
}

MemoryObjectStore::MemoryObjectStore(std::shared_ptr<MemoryBucket> bucket)
    : bucket_(std::move(bucket)), thread_([this] { Loop(); }) {}

MemoryObjectStore::~MemoryObjectStore() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void MemoryObjectStore::Start(
    Call call, milliseconds timeout,
    std::function<void(const absl::Status&, bool)> end) {
  const auto now = Clock::now();
  MutexLock lock(mu_);
  ++calls_[static_cast<size_t>(call)];
  ++stats_.requests;
  running_.push_back(
      {.call = call,
       .due = now + delay_,
       .deadline = now + (timeout.count() > 0 ? timeout : kDefaultTimeout),
       .end = std::move(end)});
  most_running_ =
      std::max(most_running_, static_cast<int64_t>(running_.size()));
  changed_.SignalAll();
}

void MemoryObjectStore::Get(const std::string& key, const GetOptions& options,
                            GetDone done) {
  if (absl::Status bad = CheckObjectKey(key); !bad.ok()) return done(bad);
  Start(Call::kGet, options.timeout,
        [this, key, etag = options.if_none_match, done = std::move(done)](
            const absl::Status& status, bool) {
          if (!status.ok()) return done(status);
          auto object = bucket_->Find(key);
          if (!object) {
            return done(absl::NotFoundError("memory bucket: no such object"));
          }
          if (!etag.empty() && object->etag == etag) {
            return done(
                StoredObject{.not_modified = true, .bytes = {}, .etag = etag});
          }
          {
            MutexLock lock(mu_);
            stats_.received_bytes += static_cast<int64_t>(object->bytes.size());
          }
          done(StoredObject{.not_modified = false,
                            .bytes = std::move(object->bytes),
                            .etag = std::move(object->etag)});
        });
}

void MemoryObjectStore::Put(const std::string& key, std::string bytes,
                            const PutOptions& options, PutDone done) {
  if (absl::Status bad = CheckObjectKey(key); !bad.ok()) return done(bad);
  {
    MutexLock lock(mu_);
    stats_.sent_bytes += static_cast<int64_t>(bytes.size());
  }
  Start(Call::kPut, options.timeout,
        [this, key, condition = options.condition, bytes = std::move(bytes),
         done = std::move(done)](const absl::Status& status, bool do_it) {
          absl::StatusOr<std::string> etag = absl::UnknownError("not done");
          if (do_it) etag = bucket_->Put(key, bytes, condition);
          if (!status.ok()) etag = status;
          done(std::move(etag));
        });
}

void MemoryObjectStore::Delete(const std::string& key, milliseconds timeout,
                               DeleteDone done) {
  if (absl::Status bad = CheckObjectKey(key); !bad.ok()) return done(bad);
  Start(Call::kDelete, timeout,
        [this, key, done = std::move(done)](const absl::Status& status,
                                            bool do_it) {
          if (do_it) bucket_->Delete(key);
          done(status);
        });
}

void MemoryObjectStore::List(const ListOptions& options, ListDone done) {
  Start(Call::kList, options.timeout,
        [this, options, done = std::move(done)](const absl::Status& status,
                                                bool) {
          if (!status.ok()) return done(status);
          done(bucket_->List(options));
        });
}

void MemoryObjectStore::Loop() {
  for (;;) {
    Running call;
    absl::Status status;
    bool do_it = true;
    {
      MutexLock lock(mu_);
      for (;;) {
        const auto now = Clock::now();
        auto wake = now + milliseconds(1000);
        auto next = running_.end();
        for (auto it = running_.begin(); it != running_.end(); ++it) {
          const auto at =
              is_paused_ ? it->deadline : std::min(it->due, it->deadline);
          if (stop_ || at <= now) {
            next = it;
            break;
          }
          wake = std::min(wake, at);
        }
        if (next != running_.end()) {
          call = std::move(*next);
          running_.erase(next);
          break;
        }
        if (stop_) return;
        changed_.WaitFor(mu_, wake - now);
      }
      auto& faults = faults_[static_cast<size_t>(call.call)];
      if (stop_) {
        status = absl::CancelledError("memory bucket: the store goes away");
        do_it = false;
      } else if (Clock::now() >= call.deadline) {
        status = absl::DeadlineExceededError("memory bucket: no answer");
        do_it = false;
      } else if (!all_fail_.ok()) {
        status = Copy(all_fail_);
        do_it = false;
      } else if (!faults.empty()) {
        status = faults.front().status;
        do_it = faults.front().when == When::kAfter;
        faults.pop_front();
      }
      if (!status.ok()) ++stats_.failures;
      if (absl::IsResourceExhausted(status)) ++stats_.throttled;
    }
    call.end(status, do_it);
  }
}

ObjectStoreStats MemoryObjectStore::stats() const {
  MutexLock lock(mu_);
  ObjectStoreStats stats = stats_;
  stats.running = static_cast<int64_t>(running_.size());
  return stats;
}

void MemoryObjectStore::FailNext(Call call, int count,
                                 const absl::Status& status, When when) {
  MutexLock lock(mu_);
  for (int i = 0; i < count; ++i) {
    faults_[static_cast<size_t>(call)].push_back({Copy(status), when});
  }
}

void MemoryObjectStore::FailAll(const absl::Status& status) {
  MutexLock lock(mu_);
  all_fail_ = Copy(status);
}

void MemoryObjectStore::set_delay(milliseconds delay) {
  MutexLock lock(mu_);
  delay_ = delay;
}

void MemoryObjectStore::Pause() {
  MutexLock lock(mu_);
  is_paused_ = true;
}

void MemoryObjectStore::Resume() {
  MutexLock lock(mu_);
  is_paused_ = false;
  changed_.SignalAll();
}

int64_t MemoryObjectStore::num_calls(Call call) const {
  MutexLock lock(mu_);
  return calls_[static_cast<size_t>(call)];
}

int64_t MemoryObjectStore::num_running() const {
  MutexLock lock(mu_);
  return static_cast<int64_t>(running_.size());
}

int64_t MemoryObjectStore::most_running() const {
  MutexLock lock(mu_);
  return most_running_;
}

}  // namespace xcache
