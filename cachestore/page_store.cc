#include "cachestore/page_store.h"

#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

// Page, its shared_ptr's control block, the hash table's slot and the node of
// the eviction order: measured about 330 bytes; rounded up.
constexpr int64_t kPageOverheadBytes = 384;

}  // namespace

int64_t PageMemoryBytes(size_t num_bytes) {
  return static_cast<int64_t>(num_bytes) + kPageOverheadBytes;
}

absl::StatusOr<PageRef> MakePage(MemoryBudget& budget, const PageKey& key,
                                 const PageKey& parent, std::string bytes) {
  const int64_t cost = PageMemoryBytes(bytes.size());
  auto memory = budget.Reserve(MemoryAccount::kHostPages, cost);
  if (!memory) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for a page: wanted ", cost, " bytes, ", budget.used_bytes(),
        " of ", budget.cap_bytes(), " are in use"));
  }
  return std::make_shared<const Page>(key, parent, std::move(bytes),
                                      *std::move(memory));
}

int64_t PageStore::LongestPrefix(std::span<const PageKey> keys) const {
  int64_t found = 0;
  while (found < static_cast<int64_t>(keys.size()) &&
         Contains(keys[static_cast<size_t>(found)])) {
    ++found;
  }
  return found;
}

}  // namespace xcache
