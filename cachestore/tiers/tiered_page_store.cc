#include "cachestore/tiers/tiered_page_store.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

namespace xcache {
namespace {

// Pages that are owed and looked for in one go, so that the disk is not kept
// from other work.
constexpr int kOwedAtOnce = 256;
// Pages that are looked for there in one go: each a request.
constexpr int kLooksAtOnce = 32;

}  // namespace

TieredPageStore::Remote::Remote(const RemoteTierOptions& options,
                                int64_t queue_bytes)
    : store(*options.store),
      owed(std::make_shared<OwedPages>(options.max_owed)),
      used(std::make_shared<OwedPages>(options.max_owed)),
      queue(*options.store,
            {.queue_bytes = queue_bytes,
             .num_writers = options.num_writers,
             .is_remote = true,
             .dropped = [this](const PageKey& key) { owed->Add(key); }}) {}

TieredPageStore::TieredPageStore(MemoryBudget& budget, int reclaim_priority,
                                 const std::vector<PageStore*>& lower,
                                 int64_t queue_bytes,
                                 const RemoteTierOptions& remote)
    : host_(budget, reclaim_priority,
            [this](const PageRef& page) { OnEvict(page); }) {
  for (PageStore* store : lower) {
    lower_.push_back(std::make_unique<Lower>(
        *store, WriteBehindOptions{.queue_bytes = queue_bytes}));
  }
  if (remote.store == nullptr) return;
  remote_ = std::make_unique<Remote>(remote, queue_bytes);
  prefetcher_ = std::make_unique<Prefetcher>(
      *remote.store, budget, remote.prefetch,
      [this](const PageRef& page) { TakeUp(page); },
      [this](const PageKey& key) { return Contains(key); });
}

TieredPageStore::~TieredPageStore() {
  if (remote_ == nullptr) return;
  // What it does not take in time it does not get.
  remote_->queue.Flush();
  remote_->store.Cancel();
}

absl::StatusOr<PageHit> TieredPageStore::Get(const PageKey& key) {
  absl::StatusOr<PageHit> hit = host_.Get(key);
  if (hit.ok()) NoteUse(key);
  for (const auto& lower : lower_) {
    if (hit.ok()) return hit;
    const auto begin = std::chrono::steady_clock::now();
    hit = lower->store.Get(key);
    if (!hit.ok()) continue;
    lower->get_us += std::chrono::duration_cast<std::chrono::microseconds>(
                         std::chrono::steady_clock::now() - begin)
                         .count();
    hit->page = host_.PutOrGet(hit->page);
    NoteUse(key);
  }
  return hit;
}

void TieredPageStore::NoteUse(const PageKey& key) {
  if (remote_ != nullptr && remote_->store.Wants(key)) remote_->used->Add(key);
}

absl::Status TieredPageStore::Put(const PageRef& offered) {
  const PageRef page = host_.PutOrGet(offered);
  if (page != offered) return absl::OkStatus();
  for (const auto& lower : lower_) {
    if (lower->store.Contains(page->key())) {
      // So that it compares the bytes. It is in memory: what more is wanted.
      lower->store.Put(page).IgnoreError();
    } else {
      lower->queue.Put(page);
    }
  }
  if (remote_ != nullptr && remote_->store.Wants(page->key())) {
    remote_->queue.Put(page);
  }
  return absl::OkStatus();
}

void TieredPageStore::TakeUp(const PageRef& arrived) {
  const PageRef page = host_.PutOrGet(arrived);
  for (const auto& lower : lower_) {
    if (!lower->store.Contains(page->key())) lower->queue.Put(page);
  }
  // It was there for long, and is used.
  if (remote_->store.Wants(page->key())) remote_->queue.Put(page);
}

std::unique_ptr<PagePrefetch> TieredPageStore::Prefetch(
    PrefetchRequest request) {
  if (prefetcher_ == nullptr || !remote_->store.IsReachable()) return nullptr;
  return prefetcher_->Start(std::move(request));
}

bool TieredPageStore::Contains(const PageKey& key) const {
  return TierOf(key).has_value();
}

std::optional<PageTier> TieredPageStore::TierOf(const PageKey& key) const {
  if (host_.Contains(key)) return host_.tier();
  for (const auto& lower : lower_) {
    if (lower->store.Contains(key)) return lower->store.tier();
  }
  return std::nullopt;
}

int64_t TieredPageStore::LongestPrefix(std::span<const PageKey> keys) const {
  int64_t found = 0;
  int64_t before = 0;
  // One tier goes on where another ends.
  do {
    before = found;
    found += host_.LongestPrefix(keys.subspan(static_cast<size_t>(found)));
    for (const auto& lower : lower_) {
      found +=
          lower->store.LongestPrefix(keys.subspan(static_cast<size_t>(found)));
    }
  } while (found > before);
  return found;
}

absl::Status TieredPageStore::Erase(const PageKey& key) {
  for (const auto& lower : lower_) lower->queue.Forget(key);
  absl::Status erased = host_.Erase(key);
  for (const auto& lower : lower_) erased.Update(lower->store.Erase(key));
  if (remote_ != nullptr) {
    remote_->queue.Forget(key);
    // Where it is away the page stays, and whoever reads it finds out again.
    remote_->store.Erase(key).IgnoreError();
  }
  return erased;
}

void TieredPageStore::EraseHere(const PageKey& key) {
  for (const auto& lower : lower_) lower->queue.Forget(key);
  if (remote_ != nullptr) remote_->queue.Forget(key);
  host_.Erase(key).IgnoreError();
  for (const auto& lower : lower_) lower->store.Erase(key).IgnoreError();
}

PageRef TieredPageStore::Find(const PageKey& key) {
  if (PageRef page = host_.Peek(key)) return page;
  for (const auto& lower : lower_) {
    if (!lower->store.Contains(key)) continue;
    if (auto hit = lower->store.Get(key); hit.ok()) return hit->page;
  }
  return nullptr;
}

void TieredPageStore::Housekeep() {
  if (remote_ == nullptr) return;
  remote_->store.Housekeep();
  for (int i = 0; i < kOwedAtOnce; ++i) {
    if (!remote_->store.IsReachable() || !remote_->queue.HasRoom()) return;
    const std::optional<PageKey> key = remote_->owed->Take();
    if (!key) break;
    if (!remote_->store.Wants(*key)) continue;
    // One that is nowhere any more cannot be sent.
    if (const PageRef page = Find(*key)) remote_->queue.Put(page);
  }
  for (int i = 0; i < kLooksAtOnce; ++i) {
    const std::optional<PageKey> key = remote_->used->Take();
    if (!key) return;
    if (!remote_->store.Wants(*key)) continue;
    remote_->store.Look(*key,
                        [owed = remote_->owed, key = *key] { owed->Add(key); });
  }
}

int64_t TieredPageStore::num_owed() const {
  return remote_ == nullptr ? 0 : static_cast<int64_t>(remote_->owed->size());
}

std::vector<TierStats> TieredPageStore::tier_stats() const {
  std::vector<TierStats> out = {{host_.tier(), host_.stats()}};
  for (const auto& lower : lower_) {
    TierStats& stats =
        out.emplace_back(TierStats{lower->store.tier(), lower->store.stats()});
    stats.pages.get_us = lower->get_us;
    lower->queue.AddStats(&stats.pages);
  }
  if (remote_ != nullptr) {
    TierStats& stats = out.emplace_back(
        TierStats{remote_->store.tier(), remote_->store.stats()});
    remote_->queue.AddStats(&stats.pages);
  }
  return out;
}

void TieredPageStore::Flush() {
  for (const auto& lower : lower_) lower->queue.Flush();
  if (remote_ != nullptr) remote_->queue.Flush();
}

int64_t TieredPageStore::DropFromHost(std::span<const PageKey> keys) {
  if (!lower_.empty()) {
    for (const auto& lower : lower_) lower->queue.WriteOut(keys);
    return host_.Drop(keys);
  }
  // They would be gone for good, but for those that are elsewhere.
  std::vector<PageKey> elsewhere;
  for (const PageKey& key : keys) {
    if (remote_ != nullptr && remote_->store.Contains(key)) {
      elsewhere.push_back(key);
    }
  }
  return host_.Drop(elsewhere);
}

void TieredPageStore::OnEvict(const PageRef& page) {
  // A page that waits or is being written is referred to and so is not evicted;
  // what is neither there nor waiting was refused before.
  for (const auto& lower : lower_) {
    if (!lower->store.Contains(page->key())) lower->queue.Write(page);
  }
  if (remote_ != nullptr && remote_->store.Wants(page->key())) {
    remote_->owed->Add(page->key());
  }
}

}  // namespace xcache
