// The objects of sessions in a shared store: looked at, and replaced by
// compare-and-set alone (rule R12), where an answer may be lost either way.
#ifndef XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECTS_H_
#define XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECTS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/sessions/session_object.h"
#include "cachestore/shared/circuit_breaker.h"
#include "cachestore/shared/object_store.h"

namespace xcache {

// Thread-safe. Each call waits for the store. UNAVAILABLE: it does not answer,
// or has not lately: after two calls in a row that failed, though each was
// tried again until its time was over, the next ones fail at once for a while.
class SessionObjects {
 public:
  // How long a call may take. That bounds what a turn waits for a store that
  // has just gone away: a look, a change, and a look at what became of it.
  struct Timeouts {
    std::chrono::milliseconds look{1500};
    std::chrono::milliseconds change{5000};
  };

  // What is at a session's place.
  struct Found {
    enum class What { kNothing, kSame, kUnreadable, kDeleted, kSession };
    What what = What::kNothing;
    std::string etag;
    SessionObject object;
    absl::Status why;  // of kUnreadable
  };
  // How a compare-and-set ended.
  struct Outcome {
    enum class What {
      kDone,
      kOvertaken,  // done, and another server has gone on from it
      kLost,       // another version is there
      kDeleted,    // the session is deleted
      kFailed,     // it could not be done, as far as can be seen
    };
    What what = What::kFailed;
    std::string etag{};     // of kDone
    uint64_t turn = 0;      // of kLost: where the session is
    absl::Status status{};  // of kFailed
    // Of kLost and kDeleted: what became of the session.
    std::string WhatHappened() const;
  };

  // `unix_ms` is the time of what is written.
  SessionObjects(ObjectStore& objects, const Timeouts& timeouts,
                 std::function<int64_t()> unix_ms)
      : objects_(objects), timeouts_(timeouts), unix_ms_(std::move(unix_ms)) {}

  // kSame where it still has `known_etag`.
  absl::StatusOr<Found> Look(const std::string& key,
                             const std::string& known_etag) {
    return Look(key, known_etag, /*also_if_away=*/false);
  }
  // Puts a version in the place of the one with that etag (empty: of none).
  // What counts is what is there in the end: a try whose answer was lost may
  // have been done.
  Outcome Replace(const std::string& key, const SessionVersion& version,
                  std::string manifest);
  // Puts the mark of deletion in the place of the object with that etag. OK,
  // ABORTED: it has another one; UNKNOWN: look whether it is this mark.
  absl::Status Bury(const std::string& key, const std::string& etag,
                    const Revision& mark);
  // Removes the mark of a session that was deleted long ago. Returns when it is
  // due, Unix time.
  int64_t RemoveOldMark(const std::string& key, const SessionObject& mark);

  // A part of the objects under a prefix, and all of them.
  absl::StatusOr<ObjectList> List(const ListOptions& options);
  absl::StatusOr<std::vector<ListedObject>> ListAll(const std::string& prefix);
  // Each as Look finds it; several are read at once.
  absl::StatusOr<std::vector<Found>> LookAtAll(
      const std::vector<std::string>& keys);

  const CircuitBreaker& breaker() const { return breaker_; }

 private:
  absl::StatusOr<Found> Look(const std::string& key,
                             const std::string& known_etag, bool also_if_away);

  using Clock = std::chrono::steady_clock;
  // `call`, unless the store is known to be away.
  template <typename T>
  absl::StatusOr<T> Ask(const std::function<absl::StatusOr<T>()>& call,
                        bool also_if_away = false);

  ObjectStore& objects_;
  const Timeouts timeouts_;
  const std::function<int64_t()> unix_ms_;
  CircuitBreaker breaker_{{.max_failures = 2}};
};

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SESSIONS_SESSION_OBJECTS_H_
