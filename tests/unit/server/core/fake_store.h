// A cache store in memory whose tiers are only labels, whose content outlives
// the core that uses it, and whose faults a test can order.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_STORE_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_STORE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/cache_store.h"
#include "engine/base/mutex.h"

namespace xcache::testing {

class FakePages final : public PageStore {
 public:
  explicit FakePages(MemoryBudget& budget) : budget_(budget) {}

  absl::StatusOr<PageHit> Get(const PageKey& key) override;
  absl::Status Put(const PageRef& page) override;
  bool Contains(const PageKey& key) const override;
  absl::Status Erase(const PageKey& key) override;
  PageStoreStats stats() const override { return {}; }

  void PutBytes(const PageKey& key, const PageKey& parent, std::string bytes);
  void ForgetHost(std::span<const PageKey> keys);
  // Everything is on "disk" from now on, as after a restart.
  void ForgetHost();
  size_t num_pages() const;
  int64_t puts() const { return puts_; }
  int64_t gets() const { return gets_; }

  void Corrupt();  // Get is OK, the bytes are damaged
  void Lose();     // Contains says yes, Get says NOT_FOUND
  void Break();    // Get says DATA_LOSS and drops the page
  // Of one page alone. REQUIRES: it is there.
  void Corrupt(const PageKey& key);
  void Lose(const PageKey& key);
  void set_load_delay(std::chrono::milliseconds delay) {
    load_delay_ms_ = delay.count();
  }
  // The next so many calls of Get are RESOURCE_EXHAUSTED.
  void set_load_refusals(int n) { load_refusals_ = n; }

 private:
  struct Stored {
    PageKey parent{};
    std::string bytes;
    bool host = true;
    bool lost = false;
    bool broken = false;
  };

  MemoryBudget& budget_;
  mutable Mutex mu_;
  std::unordered_map<PageKey, Stored, DigestHash> pages_ XC_GUARDED_BY(mu_);
  std::atomic<int64_t> load_delay_ms_{0}, puts_{0}, gets_{0};
  std::atomic<int> load_refusals_{0};
};

class FakeSessions final : public SessionStore {
 public:
  absl::StatusOr<Committed> Commit(const SessionRecord& record) override;
  absl::StatusOr<SessionRecord> Load(std::string_view tenant,
                                     std::string_view id) override;
  std::optional<SessionRecord> LoadCopy(std::string_view tenant,
                                        std::string_view id) override;
  absl::StatusOr<SessionSummary> Find(std::string_view tenant,
                                      std::string_view id) override;
  absl::StatusOr<SessionPage> List(std::string_view tenant,
                                   std::string_view page_token,
                                   int limit) override;
  Durability DurabilityOf(const SessionRecord& record) const override;
  absl::Status Delete(std::string_view tenant, std::string_view id) override;
  int64_t Sweep(int64_t now_ms,
                const std::function<bool(std::string_view, std::string_view)>&
                    in_use) override;
  SessionStoreStats stats() const override;
  TenantSessions UseOf(std::string_view tenant) const override;

  // Records are in memory only, because of that; OK: they are durable.
  void SetCommitStatus(absl::Status status);
  // Nothing is kept.
  void SetCommitError(absl::Status status);
  void SetFindStatus(absl::Status status);
  void SetLoadStatus(absl::Status status);
  void set_commit_delay(std::chrono::milliseconds delay) {
    commit_delay_ms_ = delay.count();
  }
  // From now on there are copies, of what was committed and loaded, and
  // versions.
  void KeepCopies();
  // As another server does it.
  void Change(SessionRecord record);
  // Loads wait as long as they are held.
  void HoldLoads(bool hold);
  int64_t num_held() const;
  int64_t commits() const { return commits_; }
  int64_t sweeps() const { return sweeps_; }
  std::vector<SessionRecord> All() const;

 private:
  using Key = std::pair<std::string, std::string>;
  SessionSummary Summarize(const SessionRecord& record) const XC_REQUIRES(mu_);
  std::string NextVersion() XC_REQUIRES(mu_);

  mutable Mutex mu_;
  CondVar changed_;
  bool has_copies_ XC_GUARDED_BY(mu_) = false;
  bool hold_loads_ XC_GUARDED_BY(mu_) = false;
  int64_t num_held_ XC_GUARDED_BY(mu_) = 0;
  int64_t num_versions_ XC_GUARDED_BY(mu_) = 0;
  std::map<Key, SessionRecord> copies_ XC_GUARDED_BY(mu_);
  std::map<Key, SessionRecord> sessions_ XC_GUARDED_BY(mu_);
  absl::Status commit_status_ XC_GUARDED_BY(mu_);
  absl::Status commit_error_ XC_GUARDED_BY(mu_);
  absl::Status find_status_ XC_GUARDED_BY(mu_);
  absl::Status load_status_ XC_GUARDED_BY(mu_);
  std::atomic<int64_t> commit_delay_ms_{0}, commits_{0}, sweeps_{0};
};

class FakeStore final : public CacheStore {
 public:
  explicit FakeStore(MemoryBudget& budget) : pages_(budget) {}

  FakePages& pages() override { return pages_; }
  FakeSessions& sessions() override { return sessions_; }
  absl::Status PutPage(const PageKey& key, const PageKey& parent,
                       std::string bytes) override {
    pages_.PutBytes(key, parent, std::move(bytes));
    return absl::OkStatus();
  }
  absl::Status Flush() override { return absl::OkStatus(); }
  int64_t DropFromHost(std::span<const PageKey> keys) override {
    pages_.ForgetHost(keys);
    return 0;
  }
  StoreStats stats() const override { return {}; }
  absl::StatusOr<BackupReport> Backup(const BackupOptions&,
                                      BackupSink&) override {
    return absl::FailedPreconditionError("there is no store on disk");
  }
  absl::StatusOr<VerifyReport> Verify(const VerifyOptions&) override {
    return absl::FailedPreconditionError("there is no store on disk");
  }

 private:
  FakePages pages_;
  FakeSessions sessions_;
};

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_FAKE_STORE_H_
