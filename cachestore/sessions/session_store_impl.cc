#include "cachestore/sessions/session_store_impl.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// A summary with its strings, its place in the map and in the order.
constexpr int64_t kSummaryBytes = 896;
constexpr int64_t kIndexStep = 64 << 10;

absl::Status NoSession(std::string_view id) {
  return absl::NotFoundError(absl::StrCat("no session ", std::string(id)));
}

}  // namespace

SessionStoreImpl::SessionStoreImpl(Parts parts, MemoryBudget& budget)
    : parts_(std::move(parts)),
      budget_(budget),
      index_memory_(*budget.Reserve(MemoryAccount::kStoreIndex, 0)) {}

absl::StatusOr<std::unique_ptr<SessionStoreImpl>> SessionStoreImpl::Open(
    Parts parts, MemoryBudget& budget) {
  auto store = std::unique_ptr<SessionStoreImpl>(
      new SessionStoreImpl(std::move(parts), budget));
  XC_RETURN_IF_ERROR(store->ReadIndex());
  return store;
}

Mutex& SessionStoreImpl::WriteLock(const std::string& key) {
  return write_mu_[absl::Hash<std::string>()(key) % write_mu_.size()];
}

SessionSummary SessionStoreImpl::Summarize(const std::string& key,
                                           std::string_view bytes) {
  const auto head = DecodeSessionHead(bytes, key);
  if (head.ok()) return *head;
  SessionSummary summary = ParseSessionKey(key).value_or(SessionSummary());
  XC_LOG_WARN("a session is damaged", "tenant={} session={} detail={}",
              LogValue(summary.tenant), LogValue(summary.id),
              LogValue(std::string(head.status().message())));
  summary.damaged = true;
  MutexLock lock(mu_);
  ++stats_.corrupt;
  return summary;
}

absl::Status SessionStoreImpl::ReadIndex() {
  if (parts_.db == nullptr) return absl::OkStatus();
  absl::Status status;
  const auto enter = [&](const std::string& key, SessionSummary summary) {
    if (!status.ok()) return;
    if (!ReserveIndex(/*reclaim=*/false)) {
      status = NoMemory();
      return;
    }
    const auto used_ms =
        static_cast<uint64_t>(std::max<int64_t>(summary.update_ms, 0));
    const size_t num_pages = summary.last_page == kRootPageKey ? 0 : 1;
    parts_.pages->Claim(key, {&summary.last_page, num_pages}, summary.pinned,
                        used_ms * 1000);
    if (!summary.damaged) summary.durability = Durability::kLocal;
    Enter(key, std::move(summary));
  };
  std::vector<std::string> bad;
  const absl::Status scanned = parts_.db->Scan(
      Family::kSessionIndex, [&](std::string_view name, std::string_view head) {
        const std::string key(name);
        if (const auto summary = DecodeSessionHead(head, key); summary.ok()) {
          enter(key, *summary);
        } else {
          bad.push_back(key);
        }
      });
  if (scanned.ok() && bad.empty()) return status;
  // The index is a hint. What it has lost, the manifests say.
  XC_LOG_WARN("the index of sessions is damaged: the sessions are read",
              "entries={} detail={}", bad.size(),
              LogValue(std::string(scanned.message())));
  if (!scanned.ok()) {
    MutexLock lock(mu_);
    ++stats_.corrupt;
  }
  parts_.db
      ->Scan(Family::kSessions,
             [&](std::string_view name, std::string_view manifest) {
               const std::string key(name);
               if (!Known(key)) enter(key, Summarize(key, manifest));
             })
      .IgnoreError();  // what it cannot reach is found by its name
  for (const std::string& key : bad) {
    if (!Known(key)) enter(key, Summarize(key, ""));
  }
  return status;
}

absl::Status SessionStoreImpl::NoMemory() const {
  return absl::ResourceExhaustedError(absl::StrCat(
      "no memory for the index of sessions: ", budget_.used_bytes(), " of ",
      budget_.cap_bytes(), " bytes are in use"));
}

bool SessionStoreImpl::ReserveIndex(bool reclaim) {
  int64_t needed = kSummaryBytes;
  {
    MutexLock lock(mu_);
    needed *= static_cast<int64_t>(summaries_.size()) + 1;
  }
  MutexLock lock(index_mu_);
  if (needed <= index_memory_.bytes()) return true;
  const int64_t wanted = (needed / kIndexStep + 1) * kIndexStep;
  return reclaim ? index_memory_.Resize(wanted)
                 : index_memory_.TryResize(wanted);
}

void SessionStoreImpl::Enter(const std::string& key, SessionSummary summary) {
  MutexLock lock(mu_);
  const auto [it, is_new] = summaries_.try_emplace(key);
  Order& order = orders_[summary.tenant];
  if (!is_new) order.erase(PlaceOf(it->second));
  order.insert(PlaceOf(summary));
  page_bytes_[summary.tenant] += static_cast<int64_t>(summary.page_bytes) -
                                 static_cast<int64_t>(it->second.page_bytes);
  it->second = std::move(summary);
}

void SessionStoreImpl::Leave(const std::string& key) {
  MutexLock lock(mu_);
  undurable_.erase(key);
  const auto it = summaries_.find(key);
  if (it == summaries_.end()) return;
  const auto order = orders_.find(it->second.tenant);
  order->second.erase(PlaceOf(it->second));
  page_bytes_[it->second.tenant] -= static_cast<int64_t>(it->second.page_bytes);
  if (order->second.empty()) {
    orders_.erase(order);
    page_bytes_.erase(it->second.tenant);
  }
  summaries_.erase(it);
}

absl::Status SessionStoreImpl::WriteManifest(const std::string& key,
                                             std::string_view manifest,
                                             bool sync) {
  const WriteOp ops[] = {
      {Family::kSessions, key, {{manifest, {}}}},
      {Family::kSessionIndex, key, {{HeadOf(manifest), {}}}}};
  return parts_.db->Write(ops, sync, Database::Room::kRecord);
}

absl::Status SessionStoreImpl::KeepInMemory(const std::string& key,
                                            std::string manifest) {
  auto memory = budget_.Reserve(MemoryAccount::kSessions,
                                static_cast<int64_t>(manifest.size()));
  if (!memory) {
    return absl::ResourceExhaustedError(
        "no memory for a session that is not on disk; it stays at its last "
        "turn");
  }
  auto undurable = std::make_shared<const Undurable>(
      Undurable{std::move(manifest), *std::move(memory)});
  MutexLock lock(mu_);
  undurable_[key] = std::move(undurable);
  return absl::OkStatus();
}

void SessionStoreImpl::Claim(const std::string& key,
                             std::span<const PageKey> chain, bool pinned) {
  if (parts_.pages != nullptr) {
    parts_.pages->Claim(key, chain, pinned, UnixMicros());
  }
}

absl::StatusOr<Committed> SessionStoreImpl::Commit(const SessionRecord& record,
                                                   bool sync) {
  XC_RETURN_IF_ERROR(CheckSessionRecord(record));
  const std::string key = SessionKeyBytes(record.tenant, record.id);
  std::string manifest = EncodeSessionRecord(record);
  SessionSummary summary = SummaryOf(record);

  MutexLock write_lock(WriteLock(key));
  // First, so that what is acknowledged is found again.
  if (!ReserveIndex(/*reclaim=*/true)) return NoMemory();
  absl::Status written = absl::ResourceExhaustedError(
      "there is no store folder: sessions are in memory only");
  if (parts_.db != nullptr) written = WriteManifest(key, manifest, sync);
  if (!written.ok()) {
    XC_RETURN_IF_ERROR(KeepInMemory(key, std::move(manifest)));
  }
  const Committed committed = {
      .durability = written.ok() ? Durability::kLocal : Durability::kMemory,
      .why = written,
      .version = record.version};
  summary.durability = committed.durability;
  Enter(key, std::move(summary));
  {
    MutexLock lock(mu_);
    if (written.ok()) {
      undurable_.erase(key);
      CountCommit();
    } else {
      ++stats_.commit_failures;
    }
  }
  Claim(key, record.page_keys, record.pinned);
  return committed;
}

void SessionStoreImpl::CountCommit() {
  ++stats_.commits;
  stats_.last_commit_ms = static_cast<int64_t>(UnixMicros() / 1000);
}

absl::StatusOr<SessionRecord> SessionStoreImpl::Read(const std::string& key) {
  std::string bytes;
  XC_RETURN_IF_ERROR(parts_.db->Get(Family::kSessions, key, &bytes));
  return DecodeSessionRecord(bytes, key);
}

void SessionStoreImpl::MarkDamaged(const std::string& key) {
  MutexLock lock(mu_);
  const auto it = summaries_.find(key);
  if (it != summaries_.end()) {
    if (it->second.damaged) return;  // counted before
    it->second.damaged = true;
  }
  ++stats_.corrupt;
}

absl::StatusOr<SessionRecord> SessionStoreImpl::Load(std::string_view tenant,
                                                     std::string_view id) {
  // Also one that only its name leads to.
  XC_RETURN_IF_ERROR(Find(tenant, id).status());
  const std::string key = SessionKeyBytes(tenant, id);
  std::shared_ptr<const Undurable> undurable;
  {
    MutexLock lock(mu_);
    if (const auto it = undurable_.find(key); it != undurable_.end()) {
      undurable = it->second;
    }
  }
  absl::StatusOr<SessionRecord> record = NoSession(id);
  if (undurable != nullptr) {
    record = DecodeSessionRecord(undurable->manifest);
  } else if (parts_.db != nullptr) {
    record = Read(key);
    if (absl::IsNotFound(record.status())) {
      record = absl::DataLossError("session record: missing");
    }
  }
  if (absl::IsDataLoss(record.status())) MarkDamaged(key);
  if (record.ok()) Claim(key, record->page_keys, record->pinned);
  return record;
}

std::optional<SessionSummary> SessionStoreImpl::Known(
    const std::string& key) const {
  MutexLock lock(mu_);
  const auto it = summaries_.find(key);
  if (it == summaries_.end()) return std::nullopt;
  return it->second;
}

absl::StatusOr<SessionSummary> SessionStoreImpl::Find(std::string_view tenant,
                                                      std::string_view id) {
  if (!IsSessionName(tenant, id)) return NoSession(id);
  const std::string key = SessionKeyBytes(tenant, id);
  if (auto known = Known(key)) return *std::move(known);
  if (parts_.db == nullptr) return NoSession(id);
  // So that no delete and no commit comes between looking and entering.
  MutexLock write_lock(WriteLock(key));
  if (auto known = Known(key)) return *std::move(known);
  std::string manifest;
  const absl::Status got = parts_.db->Get(Family::kSessions, key, &manifest);
  if (absl::IsNotFound(got)) return NoSession(id);
  if (absl::IsUnavailable(got)) return got;
  // Without memory it is in no list, and found by its name once more.
  SessionSummary summary = Summarize(key, manifest);
  if (!summary.damaged) summary.durability = Durability::kLocal;
  if (ReserveIndex(/*reclaim=*/false)) Enter(key, summary);
  return summary;
}

Durability SessionStoreImpl::DurabilityOf(const SessionRecord& record) const {
  const auto known = Known(SessionKeyBytes(record.tenant, record.id));
  return known.has_value() ? known->durability : Durability::kNone;
}

absl::StatusOr<SessionPage> SessionStoreImpl::List(std::string_view tenant,
                                                   std::string_view page_token,
                                                   int limit) {
  static const Order kNone;
  MutexLock lock(mu_);
  const auto order = orders_.find(std::string(tenant));
  return PageOf(order == orders_.end() ? kNone : order->second, page_token,
                limit, [&](const std::string& id) XC_REQUIRES(mu_) {
                  return summaries_.find(SessionKeyBytes(tenant, id))->second;
                });
}

std::vector<SessionSummary> SessionStoreImpl::Select(
    const std::function<bool(const SessionSummary&)>& wanted) const {
  std::vector<SessionSummary> selected;
  MutexLock lock(mu_);
  for (const auto& [key, summary] : summaries_) {
    if (wanted(summary)) selected.push_back(summary);
  }
  return selected;
}

void SessionStoreImpl::KeepCopy(const SessionRecord& record) {
  const std::string key = SessionKeyBytes(record.tenant, record.id);
  if (parts_.db == nullptr) {
    Leave(key);
    return;
  }
  MutexLock write_lock(WriteLock(key));
  if (!ReserveIndex(/*reclaim=*/false) ||
      !WriteManifest(key, EncodeSessionRecord(record), /*sync=*/false).ok()) {
    // The one before is as good as none. What remains of it on disk says which
    // version it is.
    Leave(key);
    return;
  }
  {
    MutexLock lock(mu_);
    undurable_.erase(key);
  }
  SessionSummary summary = SummaryOf(record);
  summary.durability = Durability::kLocal;
  Enter(key, std::move(summary));
  Claim(key, record.page_keys, record.pinned);
}

absl::Status SessionStoreImpl::DeleteKey(const std::string& key, bool sync) {
  if (parts_.db != nullptr) {
    const auto record = Read(key);
    const WriteOp ops[] = {{Family::kSessions, key, std::nullopt},
                           {Family::kSessionIndex, key, std::nullopt}};
    XC_RETURN_IF_ERROR(parts_.db->Write(ops, sync, Database::Room::kFrees));
    parts_.pages->Unclaim(key);
    // Pages hold token ids: what nobody else needs goes with the session.
    if (record.ok() && parts_.erase_pages) {
      parts_.erase_pages(parts_.pages->Unneeded(record->page_keys));
    }
  }
  Leave(key);
  ++num_deleted_;
  return absl::OkStatus();
}

absl::Status SessionStoreImpl::Delete(std::string_view tenant,
                                      std::string_view id) {
  XC_RETURN_IF_ERROR(Find(tenant, id).status());
  const std::string key = SessionKeyBytes(tenant, id);
  MutexLock write_lock(WriteLock(key));
  return DeleteKey(key, /*sync=*/true);
}

int64_t SessionStoreImpl::Sweep(
    int64_t now_ms,
    const std::function<bool(std::string_view, std::string_view)>& in_use) {
  const auto is_expired = [&](const SessionSummary& s) {
    return !s.damaged && IsExpired(s, now_ms);
  };
  int64_t num_deleted = 0;
  for (const SessionSummary& summary : Select(is_expired)) {
    if (in_use && in_use(summary.tenant, summary.id)) continue;
    const std::string key = SessionKeyBytes(summary.tenant, summary.id);
    MutexLock write_lock(WriteLock(key));
    const auto known = Known(key);
    if (!known || !is_expired(*known)) continue;  // used meanwhile
    // Not synced: what comes back after a power loss expires once more.
    if (!DeleteKey(key, /*sync=*/false).ok()) break;
    ++num_deleted;
  }
  MutexLock lock(mu_);
  stats_.expired += num_deleted;
  return num_deleted;
}

void SessionStoreImpl::WriteUndurable() {
  if (parts_.db == nullptr || parts_.db->degraded()) return;
  std::vector<std::string> keys;
  {
    MutexLock lock(mu_);
    for (const auto& [key, undurable] : undurable_) keys.push_back(key);
  }
  for (const std::string& key : keys) {
    MutexLock write_lock(WriteLock(key));
    std::shared_ptr<const Undurable> undurable;
    {
      MutexLock lock(mu_);
      const auto it = undurable_.find(key);
      if (it == undurable_.end()) continue;
      undurable = it->second;
    }
    if (!WriteManifest(key, undurable->manifest, /*sync=*/true).ok()) return;
    MutexLock lock(mu_);
    undurable_.erase(key);
    const auto it = summaries_.find(key);
    if (it != summaries_.end()) it->second.durability = Durability::kLocal;
    CountCommit();
  }
}

std::vector<std::string> SessionStoreImpl::tenants() const {
  std::vector<std::string> tenants;
  MutexLock lock(mu_);
  for (const auto& [tenant, order] : orders_) tenants.push_back(tenant);
  return tenants;
}

absl::StatusOr<int64_t> SessionStoreImpl::Check(std::string_view tenant,
                                                std::string_view id) {
  const std::string key = SessionKeyBytes(tenant, id);
  // So that its two records are of one write.
  MutexLock write_lock(WriteLock(key));
  std::string manifest, head;
  absl::Status status = parts_.db->Get(Family::kSessions, key, &manifest);
  if (status.ok()) status = DecodeSessionRecord(manifest, key).status();
  if (absl::IsNotFound(status) && Known(key)) {
    MutexLock lock(mu_);
    if (undurable_.contains(key)) return 0;  // there is none to look at
    status = absl::DataLossError("session record: missing");
  }
  if (absl::IsDataLoss(status)) MarkDamaged(key);
  XC_RETURN_IF_ERROR(status);
  status = parts_.db->Get(Family::kSessionIndex, key, &head);
  if (status.ok()) status = DecodeSessionHead(head, key).status();
  if (!status.ok() && !absl::IsUnavailable(status)) {
    // No turn is lost with it: a start reads the manifest instead.
    return absl::DataLossError(
        absl::StrCat("its entry in the index alone: ", status.message()));
  }
  XC_RETURN_IF_ERROR(status);
  return static_cast<int64_t>(manifest.size() + head.size());
}

TenantSessions SessionStoreImpl::UseOf(std::string_view tenant) const {
  TenantSessions use;
  MutexLock lock(mu_);
  const auto order = orders_.find(std::string(tenant));
  if (order == orders_.end()) return use;
  use.num_sessions = static_cast<int64_t>(order->second.size());
  use.page_bytes = page_bytes_.find(tenant)->second;
  return use;
}

SessionStoreStats SessionStoreImpl::stats() const {
  MutexLock lock(mu_);
  SessionStoreStats stats = stats_;
  stats.num_sessions = static_cast<int64_t>(summaries_.size());
  stats.num_undurable = static_cast<int64_t>(undurable_.size());
  for (const auto& [tenant, order] : orders_) {
    stats.newest_update_ms =
        std::max(stats.newest_update_ms, -order.begin()->first);
  }
  if (parts_.pages != nullptr) stats.demoted = parts_.pages->num_demoted();
  return stats;
}

}  // namespace xcache
