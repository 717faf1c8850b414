// A store of objects that machines share: bytes under a key in a bucket, with
// strong reads and conditional writes. S3ObjectStore is one. It knows no pages
// and no sessions.
//
// Keys are relative to the prefix that the store was opened with. A key has 1
// to 512 bytes of letters, digits and "!-_.*'()/=+:@,": no segment is empty,
// "." or "..".
//
// An etag is opaque, without quotes. Two versions of an object may have the
// same one only where their bytes are equal: who compares and sets writes bytes
// that differ in each version.
//
// Thread-safe. A callback runs once, in the store's own thread, or at once in
// the caller's where the call is refused: it must be quick, must not block, may
// start other calls, and must not destroy the store.
// Whoever destroys the store has CANCELLED said to all callbacks that wait.
//
// Errors of every call; each message names the endpoint, the bucket and what
// was found there, and no secret:
//   INVALID_ARGUMENT     a key or an etag that is none
//   NOT_FOUND            no such object, or no such bucket
//   PERMISSION_DENIED    the credentials do not suffice, or there are none
//   RESOURCE_EXHAUSTED   the store, or this client's queue, takes no more now;
//                        RetryAfter() says when to come back
//   OUT_OF_RANGE         the answer is larger than this client takes
//   DEADLINE_EXCEEDED    no answer in the time that was given
//   UNAVAILABLE          no answer, half of one, or one that failed
//   FAILED_PRECONDITION  the bucket is in another region
//   UNIMPLEMENTED, INTERNAL  the server is no S3 as we know it
// What is safe to repeat is repeated within the deadline: Get, List, Delete,
// and a Put with a condition; any other Put only where it cannot have arrived.
#ifndef XCACHE_CACHESTORE_SHARED_OBJECT_STORE_H_
#define XCACHE_CACHESTORE_SHARED_OBJECT_STORE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache {

struct GetOptions {
  // An etag: an object that still has it is not sent. Empty: send it.
  std::string if_none_match{};
  std::chrono::milliseconds timeout{0};  // 0: the store's own
};

struct StoredObject {
  bool not_modified = false;  // it has if_none_match, and `bytes` is empty
  std::string bytes;
  std::string etag;
};

struct PutCondition {
  enum class Kind { kNone, kAbsent, kEtag };
  Kind kind = Kind::kNone;
  std::string etag{};  // of kEtag

  static PutCondition IfAbsent() { return {.kind = Kind::kAbsent}; }
  static PutCondition IfEtag(std::string etag) {
    return {.kind = Kind::kEtag, .etag = std::move(etag)};
  }
};

struct PutOptions {
  PutCondition condition{};
  std::chrono::milliseconds timeout{0};
};

struct ListOptions {
  std::string prefix{};       // of keys; empty: all
  std::string start_after{};  // a key: only those behind it
  int max_keys = 1000;        // 1 to 1000
  std::chrono::milliseconds timeout{0};
};

struct ListedObject {
  std::string key;
  uint64_t num_bytes = 0;
  std::string etag;
  int64_t modified_unix_ms = 0;
};

// One page of a listing, in the order of the keys' bytes.
struct ObjectList {
  std::vector<ListedObject> objects;
  // Start the next page after this key; empty: this was the last.
  std::string next_start_after;
};

// Counts since the store was opened, and what is in it now.
struct ObjectStoreStats {
  int64_t requests = 0;    // calls that were taken on
  int64_t failures = 0;    // of them, those that ended in an error other than
                           // NOT_FOUND and ABORTED
  int64_t retries = 0;     // tries after a call's first
  int64_t throttled = 0;   // answers that asked to come back later
  int64_t sent_bytes = 0;  // of bodies
  int64_t received_bytes = 0;  // of bodies
  int64_t running = 0;
  int64_t queued = 0;
  int64_t queued_bytes = 0;  // of bodies that are not known to be put
};

class ObjectStore {
 public:
  using GetDone = std::function<void(absl::StatusOr<StoredObject>)>;
  using PutDone = std::function<void(absl::StatusOr<std::string> etag)>;
  using DeleteDone = std::function<void(absl::Status)>;
  using ListDone = std::function<void(absl::StatusOr<ObjectList>)>;

  virtual ~ObjectStore() = default;

  virtual void Get(const std::string& key, const GetOptions& options,
                   GetDone done) = 0;

  // The etag of what was written. ABORTED, not FAILED_PRECONDITION, where the
  // condition does not hold: in a compare-and-set lost to another writer
  // nothing is wrong that somebody would have to put right; one reads again and
  // decides anew, which is what ABORTED asks of a caller. It is said only where
  // these bytes are no part of what led to the object that is there now.
  // UNKNOWN: they may have been written by a try whose answer was lost, and
  // another writer went on from there, or deleted them: read and compare. An
  // error but ABORTED may come although the bytes were written, or still are.
  virtual void Put(const std::string& key, std::string bytes,
                   const PutOptions& options, PutDone done) = 0;

  // OK also where there is no such object.
  virtual void Delete(const std::string& key, std::chrono::milliseconds timeout,
                      DeleteDone done) = 0;

  virtual void List(const ListOptions& options, ListDone done) = 0;

  virtual ObjectStoreStats stats() const = 0;

  // The same, in the caller's thread until it is done. Not for callbacks.
  absl::StatusOr<StoredObject> Get(const std::string& key,
                                   const GetOptions& options = {});
  absl::StatusOr<std::string> Put(const std::string& key, std::string bytes,
                                  const PutOptions& options = {});
  absl::Status Delete(const std::string& key,
                      std::chrono::milliseconds timeout = {});
  absl::StatusOr<ObjectList> List(const ListOptions& options = {});
};

// When to come back, of a status that says so.
std::optional<std::chrono::milliseconds> RetryAfter(const absl::Status& status);
void SetRetryAfter(absl::Status& status, std::chrono::milliseconds after);

}  // namespace xcache

#endif  // XCACHE_CACHESTORE_SHARED_OBJECT_STORE_H_
