#include "cachestore/sessions/shared_session_list.h"

#include <set>
#include <utility>

#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr auto kFresh = std::chrono::seconds(1);
constexpr int64_t kSeenBytes = 1024;  // of a summary
constexpr int64_t kSeenStep = 256;    // so many are reserved at once

}  // namespace

SharedSessionList::SharedSessionList(SessionObjects& objects,
                                     MemoryBudget& budget)
    : objects_(objects),
      seen_memory_(*budget.Reserve(MemoryAccount::kStoreIndex, 0)) {}

void SharedSessionList::Changed() {
  MutexLock lock(changed_mu_);
  changed_ = true;
}

absl::StatusOr<std::shared_ptr<const SharedSessionList::Sessions>>
SharedSessionList::Of(std::string_view tenant) {
  MutexLock lock(mu_);
  {
    MutexLock changed_lock(changed_mu_);
    if (!changed_ && tenant_ == tenant && Clock::now() - made_ < kFresh) {
      return sessions_;
    }
    changed_ = false;
  }
  const std::string prefix = SessionObjectPrefix(tenant);
  XC_ASSIGN_OR_RETURN(const std::vector<ListedObject> listed,
                      objects_.ListAll(prefix));
  XC_RETURN_IF_ERROR(Read(prefix, listed));
  auto sessions = std::make_shared<Sessions>();
  for (const ListedObject& object : listed) {
    const auto it = seen_.find(object.key);
    if (it == seen_.end() || !it->second.summary.has_value()) continue;
    (*sessions)[it->second.summary->id] = *it->second.summary;
  }
  tenant_ = tenant;
  made_ = Clock::now();
  sessions_ = std::move(sessions);
  return sessions_;
}

absl::Status SharedSessionList::Read(const std::string& prefix,
                                     const std::vector<ListedObject>& listed) {
  std::set<std::string> there;
  std::vector<std::string> wanted;
  for (const ListedObject& object : listed) {
    there.insert(object.key);
    const auto it = seen_.find(object.key);
    if (it == seen_.end() || it->second.etag != object.etag) {
      wanted.push_back(object.key);
    }
  }
  absl::erase_if(seen_, [&](const auto& seen) {
    return seen.first.compare(0, prefix.size(), prefix) == 0 &&
           !there.contains(seen.first);
  });
  const int64_t num_steps =
      static_cast<int64_t>(seen_.size() + wanted.size()) / kSeenStep + 1;
  if (!seen_memory_.Resize(num_steps * kSeenStep * kSeenBytes)) {
    seen_.clear();
    seen_memory_.Resize(0);
    return absl::ResourceExhaustedError("no memory for a list of sessions");
  }
  XC_ASSIGN_OR_RETURN(const std::vector<SessionObjects::Found> found,
                      objects_.LookAtAll(wanted));
  for (size_t i = 0; i < found.size(); ++i) {
    if (found[i].what == SessionObjects::Found::What::kNothing) continue;
    Seen seen = {.etag = found[i].etag, .summary = std::nullopt};
    if (found[i].what == SessionObjects::Found::What::kSession) {
      absl::StatusOr<SessionSummary> head =
          DecodeSessionHead(found[i].object.manifest);
      if (head.ok() && SessionObjectKey(head->tenant, head->id) == wanted[i]) {
        head->durability = Durability::kShared;
        seen.summary = *std::move(head);
      }
    }
    seen_[wanted[i]] = std::move(seen);
  }
  return absl::OkStatus();
}

}  // namespace xcache
