// Who may change a session when: one turn at a time, pins and deletions beside
// it, each applied whole. What a session holds is in the store; here is only
// what is under way. Knows no scheduler and no engine.
#ifndef XCACHE_SERVER_CORE_SESSIONS_MANAGER_H_
#define XCACHE_SERVER_CORE_SESSIONS_MANAGER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/session_store.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/mutex.h"
#include "server/core/core_metrics.h"
#include "server/core/request.h"
#include "server/core/sessions/clock.h"

namespace xcache {

class SessionManager {
 private:
  // A session that somebody changes.
  struct Busy {
    std::atomic<bool> deleted{false};
    Mutex commit_mu;
    // What was updated while a turn ran.
    SessionUpdate update XC_GUARDED_BY(commit_mu);
    // SessionRecord::version of what the next commit replaces.
    std::string version XC_GUARDED_BY(commit_mu);
  };

 public:
  // Whether a copy of a session, that a lease was given with, is the session.
  // Thread-safe.
  class Check {
   public:
    // Asks the store, in the caller's thread; once.
    void Run() XC_EXCLUDES(mu_);
    // Nothing: it is not known yet. OK: it is. ABORTED: it has changed; others
    // as those of SessionStore::Load.
    std::optional<absl::Status> result() const XC_EXCLUDES(mu_);
    absl::Status Wait() const XC_EXCLUDES(mu_);

   private:
    friend class SessionManager;
    Check(const SessionManager* manager, SessionKey key, uint64_t turn,
          std::shared_ptr<Busy> busy)
        : manager_(manager),
          key_(std::move(key)),
          turn_(turn),
          busy_(std::move(busy)) {}
    absl::Status Ask() const;

    const SessionManager* const manager_;
    const SessionKey key_;
    const uint64_t turn_;
    const std::shared_ptr<Busy> busy_;
    mutable Mutex mu_;
    mutable CondVar known_;
    std::optional<absl::Status> result_ XC_GUARDED_BY(mu_);
  };

  // The right to change a session, and the session as it was when it was given.
  // Given back when it goes. One thread at a time.
  class Lease {
   public:
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    const SessionKey& key() const { return key_; }
    const SessionRecord& record() const { return record_; }
    // The next turn goes on from this, which is the session's own, changed, or,
    // for one that is new, another's.
    void StartFrom(SessionRecord record);
    // There is no such session yet.
    bool is_new() const { return is_new_; }
    // The session is being deleted: whoever has the lease is to give it back.
    bool deleted() const { return busy_->deleted; }
    // Null: the record is what the store had. Else it is a copy: somebody is to
    // call Run() soon, and nobody is to hear of it before that says OK.
    const std::shared_ptr<Check>& check() const { return check_; }
    // Makes `next` what the session is; sets its update and expiry times, and
    // what was updated meanwhile. Waits for the check, if there is one. Errors
    // as those of it and of SessionStore::Commit;
    // CANCELLED: the session is being deleted, and nothing was written.
    absl::StatusOr<Committed> Commit(SessionRecord next);

   private:
    friend class SessionManager;
    Lease(SessionManager* manager, SessionKey key, std::shared_ptr<Busy> busy)
        : manager_(manager), key_(std::move(key)), busy_(std::move(busy)) {}

    absl::Status ReadRecord();
    // Where this machine has a copy that has had so many turns.
    bool TakeCopy(uint64_t turn);

    SessionManager* manager_;
    SessionKey key_;
    std::shared_ptr<Busy> busy_;
    std::shared_ptr<Check> check_;
    SessionRecord record_;
    bool is_new_ = false;
  };

  // `wake` is called when a running turn's session is to be deleted. It must
  // not call back.
  SessionManager(SessionStore& store, CoreMetrics& metrics, SessionClock& clock,
                 std::function<void()> wake);

  // The lease of an existing session, of whatever model. NOT_FOUND, DATA_LOSS,
  // FAILED_PRECONDITION as SessionStore::Load; ABORTED: somebody has it, or it
  // has had another number of turns than `expected_turn`. Where a copy on this
  // machine has had as many, the lease is given with that, to be checked.
  absl::StatusOr<std::unique_ptr<Lease>> Begin(
      std::string_view tenant, std::string_view id,
      std::optional<uint64_t> expected_turn);
  // The lease of a session that does not exist yet. ALREADY_EXISTS. Without an
  // id it gets a new one, random, which need not be looked for; nor need one
  // that the caller made so (`is_random`).
  absl::StatusOr<std::unique_ptr<Lease>> BeginNew(std::string_view tenant,
                                                  std::string_view id,
                                                  bool is_random = false);
  // The session as it was last committed. INVALID_ARGUMENT, here and in all
  // others: such an id no session has.
  absl::StatusOr<SessionRecord> Read(std::string_view tenant,
                                     std::string_view id) const;
  absl::StatusOr<SessionSummary> Find(std::string_view tenant,
                                      std::string_view id) const;
  // Deletes it; a turn that runs on it is ended first.
  absl::Status Delete(std::string_view tenant, std::string_view id);
  // Deletes it where it has no message, and nobody is about to change that:
  // else it stays, and that is OK.
  absl::Status DeleteIfEmpty(std::string_view tenant, std::string_view id);
  // Also while a turn runs. Returns the session as it is now. Errors as those
  // of SessionStore::Commit.
  absl::StatusOr<SessionRecord> Update(std::string_view tenant,
                                       std::string_view id,
                                       const SessionUpdate& update);
  // As SessionStore::List, without what has expired and is not yet deleted.
  absl::StatusOr<SessionPage> List(std::string_view tenant,
                                   std::string_view page_token,
                                   int limit) const;
  // Deletes what has expired, and logs it; returns how many.
  int64_t Sweep();

 private:
  bool Expired(const SessionSummary& summary) const;
  absl::StatusOr<Committed> Store(const SessionRecord& record) const;
  absl::Status Erase(const SessionKey& key);
  // Null: somebody has it.
  std::unique_ptr<Lease> TryLease(const SessionKey& key) XC_EXCLUDES(mu_);
  void GiveBack(const SessionKey& key) XC_EXCLUDES(mu_);

  SessionStore& store_;
  CoreMetrics& metrics_;
  SessionClock& clock_;
  const std::function<void()> wake_;
  mutable Mutex mu_;
  CondVar given_back_;
  std::map<SessionKey, std::shared_ptr<Busy>> busy_ XC_GUARDED_BY(mu_);
};

// Whether `id` may name a session: 1 to 128 of [A-Za-z0-9._-].
absl::Status ValidateSessionId(std::string_view id);
}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SESSIONS_MANAGER_H_
