// K/V blocks in the engine's memory, shared by key.
#include "server/core/cache/blocks.h"

#include <limits>
#include <utility>

namespace xcache {

BlockHold::~BlockHold() {
  if (entry_ != nullptr) Release(cache_->Tick());
}

BlockHold::BlockHold(BlockHold&& other) noexcept
    : cache_(other.cache_), entry_(std::exchange(other.entry_, nullptr)) {}

BlockHold& BlockHold::operator=(BlockHold&& other) noexcept {
  if (this != &other) {
    if (entry_ != nullptr) Release(cache_->Tick());
    cache_ = other.cache_;
    entry_ = std::exchange(other.entry_, nullptr);
  }
  return *this;
}

const KvBlockRef& BlockHold::kv() const { return entry_->kv; }
bool BlockHold::stored() const { return entry_->stored; }

void BlockHold::Release(uint64_t tick) {
  if (entry_ != nullptr) cache_->Unpin(std::exchange(entry_, nullptr), tick);
}

BlockCache::~BlockCache() = default;

BlockCache::Entry* BlockCache::FindLocked(const PageKey& key,
                                          bool whole) const {
  const auto it = blocks_.find(key);
  if (it == blocks_.end()) return nullptr;
  return it->second->kv->whole() || !whole ? it->second.get() : nullptr;
}

std::optional<BlockHold> BlockCache::Acquire(const PageKey& key, bool whole) {
  MutexLock lock(mu_);
  Entry* entry = FindLocked(key, whole);
  if (entry == nullptr) return std::nullopt;
  if (entry->pins++ == 0) {
    unheld_.erase(KeyOf(entry));
    entry->memory.Transfer(MemoryAccount::kSequences);
  }
  return BlockHold(this, entry);
}

bool BlockCache::Contains(const PageKey& key, bool whole) const {
  MutexLock lock(mu_);
  return FindLocked(key, whole) != nullptr;
}

BlockHold BlockCache::Insert(const PageKey& key, int64_t block_index,
                             KvBlockRef kv, MemoryReservation memory,
                             bool stored) {
  auto entry = std::make_unique<Entry>();
  Entry* raw = entry.get();
  raw->key = key;
  raw->block_index = block_index;
  raw->stored = stored;
  raw->kv = std::move(kv);
  raw->memory = std::move(memory);
  std::unique_ptr<Entry> gone;  // destroyed after the lock is given back
  MutexLock lock(mu_);
  Entry* const there = FindLocked(key, /*whole=*/false);
  if (there != nullptr && raw->kv->whole() && !there->kv->whole()) {
    gone = Remove(there);
    if (gone->pins > 0) {
      gone->shared = false;
      ++num_private_;
      gone.release();  // Unpin deletes it.
    }
  }
  // A block that is there already stays: the first one is the one shared, and
  // by rule R1 it is the same.
  if (blocks_.contains(key)) {
    ++num_private_;
    entry.release();  // Unpin deletes it.
  } else {
    raw->shared = true;
    blocks_.emplace(key, std::move(entry));
  }
  return BlockHold(this, raw);
}

BlockHold BlockCache::KeepPrivate(KvBlockRef kv, MemoryReservation memory) {
  auto entry = std::make_unique<Entry>();
  entry->kv = std::move(kv);
  entry->memory = std::move(memory);
  MutexLock lock(mu_);
  ++num_private_;
  return BlockHold(this, entry.release());
}

void BlockCache::Unpin(Entry* entry, uint64_t tick) {
  std::unique_ptr<Entry> gone;  // destroyed after the lock is given back
  MutexLock lock(mu_);
  if (tick > entry->tick) entry->tick = tick;
  if (--entry->pins > 0) return;
  if (!entry->shared) {
    --num_private_;
    gone.reset(entry);
    return;
  }
  entry->memory.Transfer(MemoryAccount::kWorkingSets);
  unheld_.insert(KeyOf(entry));
}

BlockCache::LruKey BlockCache::KeyOf(Entry* entry) {
  return {entry->tick, -entry->block_index, entry};
}

std::unique_ptr<BlockHold::Entry> BlockCache::Remove(Entry* entry) {
  unheld_.erase(KeyOf(entry));
  auto node = blocks_.extract(entry->key);
  return std::move(node.mapped());
}

int64_t BlockCache::Evict(int64_t wanted_bytes) {
  std::vector<std::unique_ptr<Entry>> gone;
  int64_t freed = 0;
  {
    MutexLock lock(mu_);
    while (freed < wanted_bytes && !unheld_.empty()) {
      gone.push_back(Remove(std::get<2>(*unheld_.begin())));
      freed += gone.back()->memory.bytes();
    }
  }
  metrics_.Add(CoreCounter::kWorkingSetEvictions, gone.size());
  return freed;
}

int64_t BlockCache::Drop(std::span<const PageKey> keys) {
  std::vector<std::unique_ptr<Entry>> gone;
  int64_t freed = 0;
  MutexLock lock(mu_);
  for (const PageKey& key : keys) {
    const auto it = blocks_.find(key);
    if (it == blocks_.end() || it->second->pins > 0) continue;
    gone.push_back(Remove(it->second.get()));
    freed += gone.back()->memory.bytes();
  }
  return freed;
}

uint64_t BlockCache::OldestTick() const {
  MutexLock lock(mu_);
  return unheld_.empty() ? std::numeric_limits<uint64_t>::max()
                         : std::get<0>(*unheld_.begin());
}

size_t BlockCache::num_blocks() const {
  MutexLock lock(mu_);
  return blocks_.size() + num_private_;
}

void ReleaseFrom(std::vector<BlockHold>& holds, size_t first, uint64_t tick) {
  while (holds.size() > first) {
    holds.back().Release(tick);
    holds.pop_back();
  }
}

}  // namespace xcache
