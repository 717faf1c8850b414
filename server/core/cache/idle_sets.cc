// Sequences that sessions leave behind.
#include "server/core/cache/idle_sets.h"

#include <iterator>
#include <limits>

#include "engine/types.h"

namespace xcache {

int64_t LiveSequence::num_rows() const {
  return sequence ? static_cast<int64_t>(sequence->tokens().size())
                  : static_cast<int64_t>(holds.size()) * kBlockTokens;
}

void LiveSequence::Truncate(int64_t num_tokens, uint64_t tick) {
  if (num_rows() <= num_tokens) return;
  int64_t left = num_tokens / kBlockTokens;
  if (sequence) {
    sequence->Truncate(num_tokens);
    left = std::ssize(sequence->blocks());
  }
  ReleaseFrom(holds, static_cast<size_t>(left), tick);
}

void LiveSequence::Drop(uint64_t tick) {
  sequence.reset();
  memory.Release();
  ReleaseFrom(holds, 0, tick);
}

void IdleSets::Put(const SessionKey& key, LiveSequence live) {
  Drop(key);
  const uint64_t tick = cache_.Tick();
  live.memory.Transfer(MemoryAccount::kWorkingSets);
  MutexLock lock(mu_);
  sets_.emplace(key, Idle{std::move(live), tick});
  by_tick_.emplace(tick, key);
}

std::optional<LiveSequence> IdleSets::Take(const SessionKey& key) {
  MutexLock lock(mu_);
  const auto it = sets_.find(key);
  if (it == sets_.end()) return std::nullopt;
  by_tick_.erase(it->second.tick);
  LiveSequence live = std::move(it->second.live);
  sets_.erase(it);
  live.memory.Transfer(MemoryAccount::kSequences);
  return live;
}

void IdleSets::Drop(const SessionKey& key) {
  if (std::optional<LiveSequence> live = Take(key)) live->Drop(cache_.Tick());
}

void IdleSets::DropAll() {
  while (DropOldest() > 0) {
  }
}

int64_t IdleSets::DropOldest() {
  SessionKey key;
  uint64_t tick = 0;
  {
    MutexLock lock(mu_);
    if (by_tick_.empty()) return 0;
    tick = by_tick_.begin()->first;
    key = by_tick_.begin()->second;
  }
  std::optional<LiveSequence> live = Take(key);
  const int64_t bytes = live->memory.bytes();
  live->Drop(tick);
  metrics_.Add(CoreCounter::kSequenceEvictions, 1);
  return bytes > 0 ? bytes : 1;
}

uint64_t IdleSets::OldestTick() const {
  MutexLock lock(mu_);
  return by_tick_.empty() ? std::numeric_limits<uint64_t>::max()
                          : by_tick_.begin()->first;
}

bool IdleSets::Contains(const SessionKey& key) const {
  MutexLock lock(mu_);
  return sets_.contains(key);
}

size_t IdleSets::size() const {
  MutexLock lock(mu_);
  return sets_.size();
}

}  // namespace xcache
