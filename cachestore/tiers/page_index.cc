#include "cachestore/tiers/page_index.h"

#include <algorithm>
#include <cassert>

namespace xcache {

template <typename Fn>
void PageIndex::Update(const PageKey& key, const Fn& change) {
  const auto it = nodes_.try_emplace(key).first;
  Node& node = it->second;
  const bool was_candidate = IsCandidate(node);
  const uint64_t old_last_use = node.entry.last_use;
  change(node);
  const bool is_candidate = IsCandidate(node);
  if (was_candidate && (!is_candidate || node.entry.last_use != old_last_use)) {
    candidates_.erase({old_last_use, key});
  }
  if (is_candidate) candidates_.insert({node.entry.last_use, key});
  if (!node.present && node.num_children == 0 && node.num_claims == 0) {
    nodes_.erase(it);
  }
}

void PageIndex::Add(const PageKey& key, const PageKey& parent,
                    int64_t num_bytes, uint32_t crc, uint64_t last_use) {
  Update(key, [&](Node& node) {
    assert(!node.present);
    node.present = true;
    node.entry = {parent, num_bytes, crc, last_use};
  });
  if (parent != kRootPageKey) {
    Update(parent, [](Node& node) { ++node.num_children; });
  }
  ++num_pages_;
  page_bytes_ += num_bytes;
}

bool PageIndex::Remove(const PageKey& key) {
  const Entry* found = Find(key);
  if (found == nullptr) return false;
  const Entry entry = *found;
  Update(key, [](Node& node) { node.present = false; });
  if (entry.parent != kRootPageKey) {
    Update(entry.parent, [](Node& node) { --node.num_children; });
  }
  --num_pages_;
  page_bytes_ -= entry.num_bytes;
  return true;
}

const PageIndex::Entry* PageIndex::Find(const PageKey& key) const {
  const auto it = nodes_.find(key);
  if (it == nodes_.end() || !it->second.present) return nullptr;
  return &it->second.entry;
}

int PageIndex::num_children(const PageKey& key) const {
  const auto it = nodes_.find(key);
  return it == nodes_.end() ? 0 : it->second.num_children;
}

bool PageIndex::IsClaimed(const PageKey& key) const {
  const auto it = nodes_.find(key);
  return it != nodes_.end() && it->second.num_claims > 0;
}

void PageIndex::Touch(const PageKey& key, uint64_t last_use) {
  if (Find(key) == nullptr) return;
  Update(key, [&](Node& node) {
    node.entry.last_use = std::max(node.entry.last_use, last_use);
  });
}

void PageIndex::Claim(const PageKey& key) {
  Update(key, [](Node& node) { ++node.num_claims; });
}

void PageIndex::Unclaim(const PageKey& key) {
  Update(key, [](Node& node) {
    assert(node.num_claims > 0);
    --node.num_claims;
  });
}

std::optional<PageKey> PageIndex::Victim(
    const std::function<bool(const PageKey&)>& may_go) const {
  for (const auto& [last_use, key] : candidates_) {
    if (may_go == nullptr || may_go(key)) return key;
  }
  return std::nullopt;
}

}  // namespace xcache
