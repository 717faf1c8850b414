// Sessions by (tenant, id), durable where there is a disk (rule R4).
//
// A summary of every session is held in memory; manifests are read when asked
// for. The summaries are a hint: a session exists if its manifest does, and
// what they do not know is looked for by its name. Without a disk, and while
// the disk is full, manifests are held in memory too, counted in the budget,
// and written as soon as it goes.
//
// Thread-safe. The caller lets one turn at a time run on a session; two commits
// of one session at once leave either, whole.
#ifndef XCACHE_CACHESTORE_SESSION_STORE_H_
#define XCACHE_CACHESTORE_SESSION_STORE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/durability.h"
#include "cachestore/sessions/session_list.h"
#include "cachestore/sessions/session_record.h"

namespace xcache {

// What became of a record that was kept.
struct Committed {
  Durability durability = Durability::kNone;
  absl::Status why;     // it is not where it is to be; OK: it is
  std::string version;  // what it is now; empty: the store has none
};

struct SessionStoreStats {
  int64_t num_sessions = 0;
  int64_t num_undurable = 0;  // in memory only
  int64_t commits = 0;        // that were durable
  int64_t commit_failures = 0;
  int64_t corrupt = 0;  // manifests found damaged
  int64_t expired = 0;
  int64_t num_ahead = 0;         // of the shared store, to be pushed there
  int64_t conflicts = 0;         // commits that another server was faster than
  int64_t branches = 0;          // kept as sessions of their own
  int64_t demoted = 0;           // lost their claim on pages to a full disk
  int64_t newest_update_ms = 0;  // of any session; Unix time
  int64_t last_commit_ms = 0;    // that was durable; Unix time, 0: none yet
};

// What a tenant has in the store.
struct TenantSessions {
  int64_t num_sessions = 0;
  int64_t page_bytes = 0;  // SessionHead::page_bytes of all of them
};

class SessionStore {
 public:
  virtual ~SessionStore() = default;

  // Makes `record` the session's manifest, in place of the version that it
  // says. What a store keeps short of where it is to be, it takes there as soon
  // as that can be done. Errors: nothing changed, the session is at the turn
  // before.
  // RESOURCE_EXHAUSTED: there is no memory to keep or to list it;
  // INVALID_ARGUMENT: no such record can be (an empty id); and of a shared
  // store ABORTED: the session is at another version by now, or gone;
  // ALREADY_EXISTS: it is new here, and there already; UNAVAILABLE: the store
  // is away, and nothing is to be kept elsewhere meanwhile.
  virtual absl::StatusOr<Committed> Commit(const SessionRecord& record) = 0;

  // Of whatever model. NOT_FOUND; DATA_LOSS: this session's manifest is
  // damaged; UNAVAILABLE: it cannot be read now (descriptors or memory ran
  // out); FAILED_PRECONDITION: of another format version, named.
  virtual absl::StatusOr<SessionRecord> Load(std::string_view tenant,
                                             std::string_view id) = 0;

  // The copy that this machine has of what others may have changed: Load says
  // whether it is the latest. Nothing: there is none, or it is no mere copy.
  virtual std::optional<SessionRecord> LoadCopy(std::string_view /*tenant*/,
                                                std::string_view /*id*/) {
    return std::nullopt;
  }

  // NOT_FOUND: there is no such session, on disk neither; UNAVAILABLE: not
  // known now. Other models' and damaged sessions too.
  virtual absl::StatusOr<SessionSummary> Find(std::string_view tenant,
                                              std::string_view id) = 0;

  // Where a record is by now that was loaded or committed just before. Asks
  // nobody else.
  virtual Durability DurabilityOf(const SessionRecord& record) const = 0;

  // The tenant's sessions, the most recently updated first, from where
  // `page_token` (empty: the start) says. INVALID_ARGUMENT: not a token of
  // ours.
  virtual absl::StatusOr<SessionPage> List(std::string_view tenant,
                                           std::string_view page_token,
                                           int limit) = 0;

  // Synced before it returns. Pages that only this session needed are deleted
  // too. NOT_FOUND.
  virtual absl::Status Delete(std::string_view tenant, std::string_view id) = 0;

  // Deletes the sessions that expired at or before `now_ms`, pinned ones never;
  // `in_use(tenant, id)`, where given, keeps one for now. Returns how many.
  virtual int64_t Sweep(
      int64_t now_ms,
      const std::function<bool(std::string_view tenant, std::string_view id)>&
          in_use) = 0;

  virtual SessionStoreStats stats() const = 0;
  // As far as the summaries in memory know; takes the same time for any tenant.
  virtual TenantSessions UseOf(std::string_view tenant) const = 0;
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSION_STORE_H_
