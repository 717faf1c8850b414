// Sessions that the servers of a fleet share (rule R12): each an object of the
// shared store, replaced by compare-and-set alone, so that of two turns one
// wins. On this machine are copies, which save reading what has not changed;
// and, where the policy allows it, what is ahead of a store that is away, to be
// pushed when it is back. Where another server went on meanwhile, what is ahead
// is kept as a session of its own, beside it.
//
// A session that was deleted leaves a mark for a while, so that no server that
// still has a copy takes it for one that the store has lost.
#ifndef XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_STORE_H_
#define XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_STORE_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/session_store.h"
#include "cachestore/sessions/session_objects.h"
#include "cachestore/sessions/session_store_impl.h"
#include "cachestore/sessions/shared_session_list.h"
#include "cachestore/shared/object_store.h"
#include "cachestore/shared/shared_policy.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"

namespace xcache {

class SharedSessionStore : public SessionStore {
 public:
  struct Options {
    SharedPolicy policy = SharedPolicy::kStrict;
    SessionObjects::Timeouts timeouts{};
    // How often what is ahead is tried to be pushed.
    std::chrono::milliseconds push_interval{1000};
    // Unix time, of what is written. For tests.
    std::function<int64_t()> unix_ms = [] {
      return static_cast<int64_t>(UnixMicros() / 1000);
    };
  };

  // `objects`, `local` and `budget` must outlive the store; `local` is nobody
  // else's from now on.
  SharedSessionStore(ObjectStore& objects, SessionStoreImpl& local,
                     MemoryBudget& budget, Options options);
  ~SharedSessionStore() override;

  // Of the store being away Commit, Load, Find, List and Delete say
  // UNAVAILABLE, but what the policy kPrefer can do without it.
  absl::StatusOr<Committed> Commit(const SessionRecord& record) override;
  absl::StatusOr<SessionRecord> Load(std::string_view tenant,
                                     std::string_view id) override;
  std::optional<SessionRecord> LoadCopy(std::string_view tenant,
                                        std::string_view id) override;
  // As it was a second ago, at most.
  absl::StatusOr<SessionSummary> Find(std::string_view tenant,
                                      std::string_view id) override;
  Durability DurabilityOf(const SessionRecord& record) const override;
  absl::StatusOr<SessionPage> List(std::string_view tenant,
                                   std::string_view page_token,
                                   int limit) override;
  absl::Status Delete(std::string_view tenant, std::string_view id) override;
  int64_t Sweep(int64_t now_ms,
                const std::function<bool(std::string_view, std::string_view)>&
                    in_use) override;
  // Of what this server knows.
  TenantSessions UseOf(std::string_view tenant) const override {
    return local_.UseOf(tenant);
  }
  SessionStoreStats stats() const override;
  const CircuitBreaker& breaker() const { return objects_.breaker(); }

  // Tries to push what is ahead. For tests and for the end; a thread does so.
  void PushAhead();

 private:
  using Clock = std::chrono::steady_clock;
  // Pushes what is ahead on this machine. OK: nothing is any more.
  absl::Status Push(const std::string& tenant, const std::string& id);
  // Makes a session of its own of what is ahead and cannot be pushed.
  absl::Status KeepBranch(const std::string& tenant, const std::string& id,
                          std::string_view why);
  // The session as it was found; a copy of it is kept here.
  absl::StatusOr<SessionRecord> Take(const std::string& key,
                                     const SessionObjects::Found& found);
  void PushLoop();

  Mutex& KeyLock(const std::string& key);
  void NoteShared(const std::string& key) XC_EXCLUDES(mu_);
  void NoteAhead(const std::string& key) XC_EXCLUDES(mu_);
  void NoteChecked(const std::string& key) XC_REQUIRES(mu_);

  SessionStoreImpl& local_;
  const Options options_;
  SessionObjects objects_;
  SharedSessionList list_;

  // Of a session one change at a time of what is here.
  std::array<Mutex, 64> key_mu_;

  mutable Mutex mu_;
  CondVar changed_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  // Keys of sessions that are ahead.
  std::set<std::string> ahead_ XC_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Clock::time_point> checked_
      XC_GUARDED_BY(mu_);
  std::string sweep_after_ XC_GUARDED_BY(mu_);
  // Of objects that a sweep has looked at, by a hash of their key and etag:
  // when it has to look again. One sweep at a time.
  absl::flat_hash_map<size_t, int64_t> sweep_due_ms_;
  SessionStoreStats stats_ XC_GUARDED_BY(mu_);

  std::thread pusher_;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SHARED_SESSION_STORE_H_
