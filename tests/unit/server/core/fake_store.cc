// The cache store of the core's tests.
#include "tests/unit/server/core/fake_store.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace xcache::testing {

absl::StatusOr<PageHit> FakePages::Get(const PageKey& key) {
  ++gets_;
  if (load_delay_ms_ > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(load_delay_ms_));
  }
  if (load_refusals_ > 0 && load_refusals_-- > 0) {
    return absl::ResourceExhaustedError("no memory for the page");
  }
  Stored stored;
  {
    MutexLock lock(mu_);
    const auto it = pages_.find(key);
    if (it == pages_.end() || it->second.lost) {
      return absl::NotFoundError("no such page");
    }
    if (it->second.broken) {
      pages_.erase(it);
      return absl::DataLossError("checksum differs");
    }
    stored = it->second;
    it->second.host = true;
  }
  absl::StatusOr<PageRef> page =
      MakePage(budget_, key, stored.parent, std::move(stored.bytes));
  if (!page.ok()) return page.status();
  return PageHit{.page = *std::move(page),
                 .tier = stored.host ? PageTier::kHost : PageTier::kDisk};
}

absl::Status FakePages::Put(const PageRef& page) {
  PutBytes(page->key(), page->parent(), std::string(page->bytes()));
  return absl::OkStatus();
}

void FakePages::PutBytes(const PageKey& key, const PageKey& parent,
                         std::string bytes) {
  MutexLock lock(mu_);
  Stored stored;
  stored.parent = parent;
  stored.bytes = std::move(bytes);
  if (pages_.emplace(key, std::move(stored)).second) ++puts_;
}

bool FakePages::Contains(const PageKey& key) const {
  MutexLock lock(mu_);
  return pages_.contains(key);
}

absl::Status FakePages::Erase(const PageKey& key) {
  MutexLock lock(mu_);
  pages_.erase(key);
  return absl::OkStatus();
}

void FakePages::ForgetHost(std::span<const PageKey> keys) {
  MutexLock lock(mu_);
  for (const PageKey& key : keys) {
    const auto it = pages_.find(key);
    if (it != pages_.end()) it->second.host = false;
  }
}

void FakePages::ForgetHost() {
  MutexLock lock(mu_);
  for (auto& [key, stored] : pages_) stored.host = false;
}

size_t FakePages::num_pages() const {
  MutexLock lock(mu_);
  return pages_.size();
}

void FakePages::Corrupt() {
  MutexLock lock(mu_);
  for (auto& [key, stored] : pages_) stored.bytes.back() ^= 1;
}

void FakePages::Lose() {
  MutexLock lock(mu_);
  for (auto& [key, stored] : pages_) stored.lost = true;
}

void FakePages::Corrupt(const PageKey& key) {
  MutexLock lock(mu_);
  pages_.at(key).bytes.back() ^= 1;
}

void FakePages::Lose(const PageKey& key) {
  MutexLock lock(mu_);
  pages_.at(key).lost = true;
}

void FakePages::Break() {
  MutexLock lock(mu_);
  for (auto& [key, stored] : pages_) stored.broken = true;
}

absl::StatusOr<Committed> FakeSessions::Commit(const SessionRecord& record) {
  if (commit_delay_ms_ > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(commit_delay_ms_));
  }
  MutexLock lock(mu_);
  if (!commit_error_.ok()) return commit_error_;
  SessionRecord& session = sessions_[Key(record.tenant, record.id)];
  session = record;
  session.version = NextVersion();
  if (has_copies_) copies_[Key(record.tenant, record.id)] = session;
  ++commits_;
  return Committed{.durability = Summarize(record).durability,
                   .why = commit_status_,
                   .version = session.version};
}

std::string FakeSessions::NextVersion() {
  return has_copies_ ? std::to_string(++num_versions_) : "";
}

void FakeSessions::KeepCopies() {
  MutexLock lock(mu_);
  has_copies_ = true;
}

void FakeSessions::Change(SessionRecord record) {
  MutexLock lock(mu_);
  record.version = NextVersion();
  sessions_[Key(record.tenant, record.id)] = std::move(record);
}

void FakeSessions::HoldLoads(bool hold) {
  MutexLock lock(mu_);
  hold_loads_ = hold;
  changed_.SignalAll();
}

int64_t FakeSessions::num_held() const {
  MutexLock lock(mu_);
  return num_held_;
}

std::optional<SessionRecord> FakeSessions::LoadCopy(std::string_view tenant,
                                                    std::string_view id) {
  MutexLock lock(mu_);
  const auto it = copies_.find(Key(tenant, id));
  if (it == copies_.end()) return std::nullopt;
  return it->second;
}

absl::StatusOr<SessionRecord> FakeSessions::Load(std::string_view tenant,
                                                 std::string_view id) {
  MutexLock lock(mu_);
  ++num_held_;
  while (hold_loads_) changed_.Wait(mu_);
  --num_held_;
  if (!load_status_.ok()) return load_status_;
  const auto it = sessions_.find(Key(tenant, id));
  if (it == sessions_.end()) return absl::NotFoundError("no such session");
  if (has_copies_) copies_[it->first] = it->second;
  return it->second;
}

SessionSummary FakeSessions::Summarize(const SessionRecord& record) const {
  SessionSummary summary = SummaryOf(record);
  summary.durability =
      commit_status_.ok() ? Durability::kLocal : Durability::kMemory;
  return summary;
}

absl::StatusOr<SessionSummary> FakeSessions::Find(std::string_view tenant,
                                                  std::string_view id) {
  MutexLock lock(mu_);
  if (!find_status_.ok()) return find_status_;
  const auto it = sessions_.find(Key(tenant, id));
  if (it == sessions_.end()) return absl::NotFoundError("no such session");
  return Summarize(it->second);
}

Durability FakeSessions::DurabilityOf(const SessionRecord& record) const {
  MutexLock lock(mu_);
  const auto it = sessions_.find(Key(record.tenant, record.id));
  return it == sessions_.end() ? Durability::kNone
                               : Summarize(it->second).durability;
}

absl::StatusOr<SessionPage> FakeSessions::List(std::string_view tenant,
                                               std::string_view page_token,
                                               int limit) {
  MutexLock lock(mu_);
  SessionPage page;
  for (const auto& [key, record] : sessions_) {
    if (key.first != tenant || key.second <= page_token) continue;
    if (static_cast<int>(page.sessions.size()) == limit) {
      page.next_page_token = page.sessions.back().id;
      break;
    }
    page.sessions.push_back(Summarize(record));
  }
  return page;
}

absl::Status FakeSessions::Delete(std::string_view tenant,
                                  std::string_view id) {
  MutexLock lock(mu_);
  return sessions_.erase(Key(tenant, id)) > 0
             ? absl::OkStatus()
             : absl::NotFoundError("no such session");
}

int64_t FakeSessions::Sweep(
    int64_t now_ms,
    const std::function<bool(std::string_view, std::string_view)>& in_use) {
  ++sweeps_;
  int64_t num_deleted = 0;
  for (const SessionRecord& record : All()) {
    if (record.expire_ms > 0 && record.expire_ms <= now_ms && !record.pinned &&
        !in_use(record.tenant, record.id)) {
      num_deleted += Delete(record.tenant, record.id).ok() ? 1 : 0;
    }
  }
  return num_deleted;
}

TenantSessions FakeSessions::UseOf(std::string_view tenant) const {
  MutexLock lock(mu_);
  TenantSessions use;
  for (const auto& [key, record] : sessions_) {
    if (key.first != tenant) continue;
    ++use.num_sessions;
    use.page_bytes += static_cast<int64_t>(record.page_bytes);
  }
  return use;
}

SessionStoreStats FakeSessions::stats() const {
  MutexLock lock(mu_);
  SessionStoreStats stats;
  stats.num_sessions = static_cast<int64_t>(sessions_.size());
  for (const auto& [key, record] : sessions_) {
    stats.newest_update_ms = std::max(stats.newest_update_ms, record.update_ms);
  }
  return stats;
}

void FakeSessions::SetCommitStatus(absl::Status status) {
  MutexLock lock(mu_);
  commit_status_ = std::move(status);
}

void FakeSessions::SetCommitError(absl::Status status) {
  MutexLock lock(mu_);
  commit_error_ = std::move(status);
}

void FakeSessions::SetFindStatus(absl::Status status) {
  MutexLock lock(mu_);
  find_status_ = std::move(status);
}

void FakeSessions::SetLoadStatus(absl::Status status) {
  MutexLock lock(mu_);
  load_status_ = std::move(status);
}

std::vector<SessionRecord> FakeSessions::All() const {
  MutexLock lock(mu_);
  std::vector<SessionRecord> all;
  for (const auto& [key, record] : sessions_) all.push_back(record);
  return all;
}

}  // namespace xcache::testing
