#include "cachestore/rocksdb/disk_page_store.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "cachestore/rocksdb/page_records.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

// Claims and their place in the order of demotion.
constexpr int64_t kClaimBytes = 384;
// The index's memory is asked for in steps.
constexpr int64_t kIndexStep = 64 << 10;
// Pages deleted by one write.
constexpr size_t kEvictBatch = 64;

// A collection looks at a share of the files: this many see them all.
int NumShares(const DiskPlan& plan) {
  return static_cast<int>(1.0 / plan.gc_cutoff) + 1;
}

}  // namespace

uint64_t UnixMicros() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(
          std::chrono::system_clock::now().time_since_epoch())
          .count());
}

DiskPageStore::Held::Held(DiskPageStore& store, const PageKey& key)
    : store_(store) {
  MutexLock lock(store_.mu_);
  while (store_.held_.contains(key)) store_.released_.Wait(store_.mu_);
  Add(key);
}

DiskPageStore::Held::~Held() {
  MutexLock lock(store_.mu_);
  for (const PageKey& key : keys_) store_.held_.erase(key);
  store_.released_.SignalAll();
}

void DiskPageStore::Held::Add(const PageKey& key) {
  store_.held_.insert(key);
  keys_.push_back(key);
}

DiskPageStore::DiskPageStore(Database& db, MemoryBudget& budget,
                             std::function<void()> on_full)
    : db_(db),
      budget_(budget),
      on_full_(std::move(on_full)),
      index_memory_(*budget.Reserve(MemoryAccount::kStoreIndex, 0)) {}

absl::StatusOr<std::unique_ptr<DiskPageStore>> DiskPageStore::Open(
    Database& db, MemoryBudget& budget, std::function<void()> on_full) {
  auto store = std::unique_ptr<DiskPageStore>(
      new DiskPageStore(db, budget, std::move(on_full)));
  XC_RETURN_IF_ERROR(store->Load());
  return store;
}

absl::Status DiskPageStore::Load() {
  MutexLock lock(mu_);
  std::vector<PageKey> dropped;
  int64_t damaged = 0;
  const absl::Status scanned = db_.Scan(
      Family::kPageIndex,
      [&](std::string_view name, std::string_view value) XC_REQUIRES(mu_) {
        const std::optional<PageKey> key = ParseKeyBytes(name);
        if (!key) {
          ++damaged;
          return;
        }
        const auto entry = DecodePageEntry(*key, value);
        if (!entry.ok()) {
          ++damaged;
          dropped.push_back(*key);
        } else if (index_.Contains(*key)) {
          // Found from both ends of a damaged file.
        } else if (!ReserveIndex()) {
          dropped.push_back(*key);
          ++stats_.evictions;
          stats_.evicted_bytes += entry->num_bytes;
        } else {
          index_.Add(*key, entry->parent, entry->num_bytes, entry->crc,
                     entry->put_us);
          clock_us_ = std::max(clock_us_, entry->put_us);
        }
      });
  if (!scanned.ok()) {
    XC_LOG_WARN("the index of pages is damaged; some pages are lost",
                "detail={}", LogValue(std::string(scanned.message())));
    ++damaged;
  }
  stats_.corrupt += damaged;
  if (!dropped.empty()) {
    const absl::Status deleted = DeleteRecords(dropped);
    XC_LOG_WARN("dropped pages of the store at start",
                "pages={} damaged={} deleted={}", dropped.size(), damaged,
                LogValue(deleted.ToString()));
  }
  return absl::OkStatus();
}

uint64_t DiskPageStore::Now() {
  clock_us_ = std::max(clock_us_ + 1, UnixMicros());
  return clock_us_;
}

bool DiskPageStore::ReserveIndex() {
  const int64_t needed = (index_.num_pages() + 1) * PageIndex::kEntryBytes +
                         static_cast<int64_t>(claims_.size() + 1) * kClaimBytes;
  if (needed <= index_memory_.bytes()) return true;
  // Without reclaiming: a reclaimer may be what led here.
  return index_memory_.TryResize((needed / kIndexStep + 1) * kIndexStep);
}

absl::StatusOr<PageHit> DiskPageStore::Get(const PageKey& key) {
  int64_t num_bytes = 0;
  {
    MutexLock lock(mu_);
    const PageIndex::Entry* entry = index_.Find(key);
    if (entry == nullptr) {
      ++stats_.misses;
      return absl::NotFoundError("no such page on disk");
    }
    num_bytes = entry->num_bytes;
    index_.Touch(key, Now());
  }
  absl::StatusOr<ValueInMemory> value = ReadChecked(key, num_bytes);
  if (!value.ok()) {
    if (!absl::IsResourceExhausted(value.status())) {
      MutexLock lock(mu_);
      ++stats_.misses;
    }
    return value.status();
  }
  value->memory.Resize(PageMemoryBytes(value->bytes.size()));
  {
    MutexLock lock(mu_);
    ++stats_.hits;
    stats_.get_bytes += static_cast<int64_t>(value->bytes.size());
  }
  return PageHit{
      std::make_shared<const Page>(key, value->parent, std::move(value->bytes),
                                   std::move(value->memory)),
      tier()};
}

absl::StatusOr<DiskPageStore::ValueInMemory> DiskPageStore::ReadChecked(
    const PageKey& key, int64_t num_bytes) {
  auto memory = budget_.Reserve(
      MemoryAccount::kHostPages,
      PageMemoryBytes(static_cast<size_t>(num_bytes) + kPageEntryBytes));
  if (!memory) {
    return absl::ResourceExhaustedError("no memory to read a page into");
  }
  absl::StatusOr<Value> value = Read(key);
  // What cannot be read now is no damage.
  if (!value.ok() && !absl::IsUnavailable(value.status())) {
    value = ReadHeld(key);
  }
  if (!value.ok()) return value.status();
  return ValueInMemory{*std::move(value), *std::move(memory)};
}

absl::StatusOr<int64_t> DiskPageStore::Check(const PageKey& key) {
  int64_t num_bytes = 0;
  {
    MutexLock lock(mu_);
    const PageIndex::Entry* entry = index_.Find(key);
    if (entry == nullptr) return absl::NotFoundError("no such page on disk");
    num_bytes = entry->num_bytes;
  }
  XC_RETURN_IF_ERROR(ReadChecked(key, num_bytes).status());
  return num_bytes;
}

absl::StatusOr<DiskPageStore::Value> DiskPageStore::Read(const PageKey& key) {
  Value value;
  XC_RETURN_IF_ERROR(db_.Get(Family::kPages, KeyBytes(key), &value.bytes));
  XC_ASSIGN_OR_RETURN(const PageEntry entry, CheckPageValue(key, value.bytes));
  value.parent = entry.parent;
  value.bytes.resize(entry.num_bytes);
  return value;
}

// A page that the index knew could not be had: it may have been erased, and
// even put anew, meanwhile. Only with the page held is that told from damage,
// which is counted and dropped, so that the page can be put anew.
absl::StatusOr<DiskPageStore::Value> DiskPageStore::ReadHeld(
    const PageKey& key) {
  const Held held(*this, key);
  if (!Contains(key)) {
    return absl::NotFoundError("the page was evicted meanwhile");
  }
  absl::StatusOr<Value> value = Read(key);
  if (value.ok() || absl::IsUnavailable(value.status())) return value;
  {
    MutexLock lock(mu_);
    index_.Remove(key);
    ++stats_.corrupt;
  }
  XC_LOG_WARN("dropped a damaged page", "key={} detail={}", ToHex(key),
              LogValue(std::string(value.status().message())));
  // Where this fails, the next put overwrites them.
  DeleteRecords(held.keys()).IgnoreError();
  return absl::DataLossError(value.status().message());
}

absl::Status DiskPageStore::Put(const PageRef& page) {
  const PageKey& key = page->key();
  const uint32_t crc = Crc32c(page->bytes());
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  PageEntry entry{.parent = page->parent(),
                  .num_bytes = static_cast<uint32_t>(num_bytes),
                  .crc = crc};
  const Held held(*this, key);
  {
    MutexLock lock(mu_);
    if (const PageIndex::Entry* found = index_.Find(key)) {
      if (found->crc != crc || found->num_bytes != num_bytes) {
        ++stats_.key_conflicts;
      }
      index_.Touch(key, Now());
      return absl::OkStatus();
    }
    if (!ReserveIndex()) {
      ++stats_.put_failures;
      return absl::ResourceExhaustedError(
          "no memory for the index of pages on disk");
    }
    entry.put_us = Now();
  }
  const std::string bytes = EncodePageEntry(key, entry);
  const WriteOp ops[] = {
      {Family::kPages, KeyBytes(key), {{page->bytes(), bytes}}},
      {Family::kPageIndex, KeyBytes(key), {{bytes, {}}}}};
  const absl::Status written =
      db_.Write(ops, /*sync=*/false, Database::Room::kPage);
  if (!written.ok()) {
    {
      MutexLock lock(mu_);
      ++stats_.put_failures;
    }
    if (absl::IsResourceExhausted(written) && on_full_) on_full_();
    return written;
  }
  MutexLock lock(mu_);
  index_.Add(key, entry.parent, num_bytes, crc, entry.put_us);
  ++stats_.puts;
  stats_.put_bytes += num_bytes;
  return absl::OkStatus();
}

bool DiskPageStore::Contains(const PageKey& key) const {
  MutexLock lock(mu_);
  return index_.Contains(key);
}

absl::Status DiskPageStore::DeleteRecords(std::span<const PageKey> keys) {
  std::vector<WriteOp> ops;
  for (const PageKey& key : keys) {
    ops.push_back({Family::kPages, KeyBytes(key), std::nullopt});
    ops.push_back({Family::kPageIndex, KeyBytes(key), std::nullopt});
  }
  return db_.Write(ops, /*sync=*/false, Database::Room::kFrees);
}

absl::Status DiskPageStore::Erase(const PageKey& key) {
  const Held held(*this, key);
  {
    MutexLock lock(mu_);
    if (!index_.Remove(key)) return absl::OkStatus();
  }
  return DeleteRecords(held.keys());
}

PageStoreStats DiskPageStore::stats() const {
  MutexLock lock(mu_);
  PageStoreStats stats = stats_;
  stats.num_pages = index_.num_pages();
  stats.page_bytes = index_.page_bytes();
  return stats;
}

void DiskPageStore::Claim(const std::string& session,
                          std::span<const PageKey> chain, bool pinned,
                          uint64_t used_us) {
  MutexLock lock(mu_);
  clock_us_ = std::max(clock_us_, used_us);
  SessionClaim& claim = claims_[session];
  Deactivate(session, claim);
  claim = {.pinned = pinned, .used_us = used_us};
  if (chain.empty()) return;
  claim.last = chain.back();
  claim.here = claim.last;
  for (size_t i = chain.size(); i > 0; --i) {
    if (!index_.Contains(chain[i - 1])) continue;
    claim.here = chain[i - 1];
    index_.Touch(claim.here, used_us);
    break;
  }
  claim.active = true;
  index_.Claim(claim.here);
  index_.Claim(claim.last);
  if (!pinned) demotable_.insert({used_us, session});
}

void DiskPageStore::Unclaim(const std::string& session) {
  MutexLock lock(mu_);
  const auto it = claims_.find(session);
  if (it == claims_.end()) return;
  Deactivate(session, it->second);
  claims_.erase(it);
}

void DiskPageStore::Deactivate(const std::string& session,
                               SessionClaim& claim) {
  if (!claim.active) return;
  index_.Unclaim(claim.here);
  index_.Unclaim(claim.last);
  if (!claim.pinned) demotable_.erase({claim.used_us, session});
  claim.active = false;
}

std::vector<PageKey> DiskPageStore::Unneeded(
    std::span<const PageKey> chain) const {
  std::vector<PageKey> keys;
  MutexLock lock(mu_);
  int num_own_children = 0;
  for (size_t i = chain.size(); i > 0; --i) {
    const PageKey& key = chain[i - 1];
    if (index_.IsClaimed(key) || index_.num_children(key) > num_own_children) {
      break;
    }
    keys.push_back(key);
    num_own_children = index_.Contains(key) ? 1 : 0;
  }
  return keys;
}

void DiskPageStore::StartAnew() {
  MutexLock lock(mu_);
  stats_.corrupt += index_.num_pages();
  index_ = PageIndex();
  claims_.clear();
  demotable_.clear();
}

bool DiskPageStore::DemoteOne() {
  if (demotable_.empty()) return false;
  const std::string session = demotable_.begin()->second;
  Deactivate(session, claims_[session]);
  ++num_demoted_;
  return true;
}

void DiskPageStore::EvictPages(int64_t wanted_bytes) {
  int64_t freed = 0;
  while (freed < wanted_bytes) {
    Held victims(*this);
    {
      MutexLock lock(mu_);
      const auto is_free =
          [this](const PageKey& key)
              XC_NO_THREAD_SAFETY_ANALYSIS { return !held_.contains(key); };
      while (freed < wanted_bytes && victims.keys().size() < kEvictBatch) {
        const std::optional<PageKey> key = index_.Victim(is_free);
        if (!key) {
          // What others hold is in use, or going anyway.
          if (index_.num_candidates() == 0 && DemoteOne()) continue;
          break;
        }
        const int64_t num_bytes = index_.Find(*key)->num_bytes;
        victims.Add(*key);
        index_.Remove(*key);
        freed += num_bytes;
        ++stats_.evictions;
        stats_.evicted_bytes += num_bytes;
      }
    }
    if (victims.keys().empty()) return;
    const absl::Status deleted = DeleteRecords(victims.keys());
    if (!deleted.ok()) {
      // They are not found any more, and come back with the next start.
      XC_LOG_WARN("evicted pages stay on disk for now", "detail={}",
                  LogValue(std::string(deleted.message())));
      return;
    }
  }
}

absl::Status DiskPageStore::CollectAll() {
  for (int round = 0; round < NumShares(db_.space().plan()); ++round) {
    XC_RETURN_IF_ERROR(db_.CollectGarbage());
  }
  return absl::OkStatus();
}

void DiskPageStore::MakeRoom() {
  const DiskPlan& plan = db_.space().plan();
  for (int round = 0; round < NumShares(plan); ++round) {
    db_.space().Scan();
    int64_t live = 0;
    {
      MutexLock lock(mu_);
      live = index_.page_bytes();
    }
    if (live > plan.live_target) {
      EvictPages(live - plan.live_target);
      live = plan.live_target;
    }
    const bool is_high = db_.space().used_bytes() > plan.high_water ||
                         !db_.space().HasFreeSpace();
    if (is_high && db_.DropSetAside()) continue;
    // Copying what lives pays where enough is dead.
    if (!is_high || db_.BlobBytes() - live < plan.pages_limit / 20) return;
    const absl::Status collected = db_.CollectGarbage();
    if (!collected.ok()) {
      if (!absl::IsCancelled(collected)) {
        XC_LOG_WARN("garbage collection failed", "detail={}",
                    LogValue(std::string(collected.message())));
      }
      return;
    }
  }
}

}  // namespace xcache
