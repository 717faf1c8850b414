// A bucket in memory, and object stores over it: real ones, with conditional
// writes and listings as object_store.h says, and with faults that a test asks
// for. Several stores over one bucket are replicas of a fleet, each with faults
// of its own.
#ifndef XCACHE_TESTS_SUPPORT_MEMORY_OBJECT_STORE_H_
#define XCACHE_TESTS_SUPPORT_MEMORY_OBJECT_STORE_H_

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "cachestore/shared/object_store.h"
#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class MemoryBucket {
 public:
  struct Object {
    std::string bytes;
    std::string etag;  // equal bytes have equal etags
    int64_t modified_unix_ms = 0;
  };

  // The system's clock by default.
  void set_clock(std::function<int64_t()> unix_ms);

  absl::StatusOr<std::string> Put(const std::string& key, std::string bytes,
                                  const PutCondition& condition);
  std::optional<Object> Find(const std::string& key) const;
  void Delete(const std::string& key);
  ObjectList List(const ListOptions& options) const;

  // Behind every store's back: what is there now, whatever it was.
  void Set(const std::string& key, std::string bytes);
  std::map<std::string, Object> objects() const;
  int64_t num_bytes() const;

 private:
  Object Make(std::string bytes) const XC_REQUIRES(mu_);

  mutable Mutex mu_;
  std::function<int64_t()> unix_ms_ XC_GUARDED_BY(mu_);
  std::map<std::string, Object> objects_ XC_GUARDED_BY(mu_);
};

class MemoryObjectStore : public ObjectStore {
 public:
  enum class Call { kGet, kPut, kDelete, kList };
  // A call that fails before it has done its deed, or after it.
  enum class When { kBefore, kAfter };

  explicit MemoryObjectStore(std::shared_ptr<MemoryBucket> bucket);
  ~MemoryObjectStore() override;

  using ObjectStore::Delete;
  using ObjectStore::Get;
  using ObjectStore::List;
  using ObjectStore::Put;

  void Get(const std::string& key, const GetOptions& options,
           GetDone done) override;
  void Put(const std::string& key, std::string bytes, const PutOptions& options,
           PutDone done) override;
  void Delete(const std::string& key, std::chrono::milliseconds timeout,
              DeleteDone done) override;
  void List(const ListOptions& options, ListDone done) override;
  ObjectStoreStats stats() const override;

  // The next `count` calls of a kind, from those that are under way on.
  void FailNext(Call call, int count, const absl::Status& status,
                When when = When::kBefore);
  // Every call of any kind fails so, until OK is said.
  void FailAll(const absl::Status& status);
  // How long each call takes.
  void set_delay(std::chrono::milliseconds delay);
  // The answer of each call that is under way, or that comes, is held back: it
  // then ends by its timeout (10 s where it names none), or by Resume. Its deed
  // is done when the answer comes.
  void Pause();
  void Resume();

  // Calls that were made, and how many of them have not ended.
  int64_t num_calls(Call call) const;
  int64_t num_running() const;
  // The most that ran at once.
  int64_t most_running() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Running {
    Call call;
    Clock::time_point due, deadline;
    // Does the deed where the status is OK, and says what came of it.
    std::function<void(const absl::Status& status, bool do_it)> end;
  };
  struct Fault {
    absl::Status status;
    When when;
  };

  void Start(Call call, std::chrono::milliseconds timeout,
             std::function<void(const absl::Status&, bool)> end);
  void Loop();

  const std::shared_ptr<MemoryBucket> bucket_;
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Running> running_ XC_GUARDED_BY(mu_);
  std::array<std::deque<Fault>, 4> faults_ XC_GUARDED_BY(mu_);
  std::array<int64_t, 4> calls_ XC_GUARDED_BY(mu_){};
  absl::Status all_fail_ XC_GUARDED_BY(mu_);
  std::chrono::milliseconds delay_ XC_GUARDED_BY(mu_){0};
  bool is_paused_ XC_GUARDED_BY(mu_) = false;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  int64_t most_running_ XC_GUARDED_BY(mu_) = 0;
  ObjectStoreStats stats_ XC_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_TESTS_SUPPORT_MEMORY_OBJECT_STORE_H_
