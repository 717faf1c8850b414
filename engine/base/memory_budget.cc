#include "engine/base/memory_budget.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace xcache {

std::string_view MemoryAccountName(MemoryAccount account) {
  switch (account) {
    case MemoryAccount::kHostPages:
      return "host_pages";
    case MemoryAccount::kWorkingSets:
      return "working_sets";
    case MemoryAccount::kSequences:
      return "sequences";
    case MemoryAccount::kRocksDb:
      return "rocksdb";
    case MemoryAccount::kStoreIndex:
      return "store_index";
    case MemoryAccount::kSessions:
      return "sessions";
    case MemoryAccount::kCodecs:
      return "codecs";
    case MemoryAccount::kGrammars:
      return "grammars";
    case MemoryAccount::kAnswers:
      return "answers";
    case MemoryAccount::kRequests:
      return "requests";
  }
  return "unknown";
}

MemoryReservation::MemoryReservation(MemoryReservation&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      account_(other.account_),
      bytes_(std::exchange(other.bytes_, 0)) {}

MemoryReservation& MemoryReservation::operator=(
    MemoryReservation&& other) noexcept {
  if (this == &other) return *this;
  Release();
  budget_ = std::exchange(other.budget_, nullptr);
  account_ = other.account_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

bool MemoryReservation::Resize(int64_t bytes) {
  return ResizeTo(bytes, /*reclaim=*/true);
}

bool MemoryReservation::TryResize(int64_t bytes) {
  return ResizeTo(bytes, /*reclaim=*/false);
}

bool MemoryReservation::ResizeTo(int64_t bytes, bool reclaim) {
  assert(bytes >= 0);
  if (budget_ == nullptr) return bytes == 0;
  if (bytes > bytes_) {
    if (!budget_->Take(account_, bytes - bytes_, reclaim)) return false;
  } else {
    budget_->GiveBack(account_, bytes_ - bytes);
  }
  bytes_ = bytes;
  return true;
}

void MemoryReservation::Transfer(MemoryAccount account) {
  if (budget_ != nullptr) budget_->Move(account_, account, bytes_);
  account_ = account;
}

void MemoryReservation::Release() {
  if (budget_ != nullptr) budget_->GiveBack(account_, bytes_);
  budget_ = nullptr;
  bytes_ = 0;
}

// Guarded by the budget's lock, but for what never changes.
struct MemoryBudget::Registration::Entry {
  std::string name;
  int priority = 0;
  ReclaimFn reclaim;
  int running = 0;  // calls under way
  bool removed = false;
};

MemoryBudget::Registration::Registration(MemoryBudget* budget,
                                         std::shared_ptr<Entry> entry)
    : budget_(budget), entry_(std::move(entry)) {}

MemoryBudget::Registration::Registration(Registration&& other) noexcept
    : budget_(std::exchange(other.budget_, nullptr)),
      entry_(std::move(other.entry_)) {}

MemoryBudget::Registration& MemoryBudget::Registration::operator=(
    Registration&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  budget_ = std::exchange(other.budget_, nullptr);
  entry_ = std::move(other.entry_);
  return *this;
}

void MemoryBudget::Registration::Reset() {
  if (budget_ == nullptr) return;
  {
    MutexLock lock(budget_->mu_);
    entry_->removed = true;
    std::erase(budget_->reclaimers_, entry_);
    while (entry_->running > 0) budget_->idle_.Wait(budget_->mu_);
  }
  budget_ = nullptr;
  entry_.reset();
}

MemoryBudget::MemoryBudget(int64_t cap_bytes) : cap_bytes_(cap_bytes) {}

MemoryBudget::~MemoryBudget() {
  assert(used_bytes() == 0);
  assert(reclaimers_.empty());
}

std::optional<MemoryReservation> MemoryBudget::Reserve(MemoryAccount account,
                                                       int64_t bytes) {
  assert(bytes >= 0);
  if (!Take(account, bytes, /*reclaim=*/true)) return std::nullopt;
  return MemoryReservation(this, account, bytes);
}

std::optional<MemoryReservation> MemoryBudget::TryReserve(MemoryAccount account,
                                                          int64_t bytes) {
  assert(bytes >= 0);
  if (!Take(account, bytes, /*reclaim=*/false)) return std::nullopt;
  return MemoryReservation(this, account, bytes);
}

MemoryBudget::Registration MemoryBudget::AddReclaimer(std::string name,
                                                      int priority,
                                                      ReclaimFn reclaim) {
  auto entry = std::make_shared<Registration::Entry>();
  entry->name = std::move(name);
  entry->priority = priority;
  entry->reclaim = std::move(reclaim);
  MutexLock lock(mu_);
  const auto at = std::upper_bound(
      reclaimers_.begin(), reclaimers_.end(), entry,
      [](const auto& a, const auto& b) { return a->priority < b->priority; });
  reclaimers_.insert(at, entry);
  return Registration(this, std::move(entry));
}

int64_t MemoryBudget::used_bytes() const {
  MutexLock lock(mu_);
  return used_bytes_;
}

int64_t MemoryBudget::used_bytes(MemoryAccount account) const {
  MutexLock lock(mu_);
  return account_bytes_[static_cast<size_t>(account)];
}

int64_t MemoryBudget::peak_bytes() const {
  MutexLock lock(mu_);
  return peak_bytes_;
}

int64_t MemoryBudget::num_refused() const {
  MutexLock lock(mu_);
  return num_refused_;
}

bool MemoryBudget::TakeNow(MemoryAccount account, int64_t bytes,
                           int64_t* missing) {
  MutexLock lock(mu_);
  // `bytes` may be close to the largest number: no sum that could overflow.
  if (bytes > cap_bytes_ - used_bytes_) {
    *missing = bytes - (cap_bytes_ - used_bytes_);
    return false;
  }
  used_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  account_bytes_[static_cast<size_t>(account)] += bytes;
  return true;
}

bool MemoryBudget::Take(MemoryAccount account, int64_t bytes, bool reclaim) {
  int64_t missing = 0;
  if (TakeNow(account, bytes, &missing)) return true;
  // What can never fit must not empty the caches on its way.
  while (reclaim && bytes <= cap_bytes_) {
    std::vector<std::shared_ptr<Registration::Entry>> reclaimers;
    {
      MutexLock lock(mu_);
      reclaimers = reclaimers_;
    }
    int64_t freed = 0;
    for (const auto& entry : reclaimers) {
      {
        MutexLock lock(mu_);
        if (entry->removed) continue;
        ++entry->running;
      }
      freed += entry->reclaim(missing);
      {
        MutexLock lock(mu_);
        --entry->running;
        idle_.SignalAll();
      }
      if (TakeNow(account, bytes, &missing)) return true;
    }
    if (freed == 0) break;
  }
  MutexLock lock(mu_);
  ++num_refused_;
  return false;
}

void MemoryBudget::GiveBack(MemoryAccount account, int64_t bytes) {
  MutexLock lock(mu_);
  used_bytes_ -= bytes;
  account_bytes_[static_cast<size_t>(account)] -= bytes;
}

void MemoryBudget::Move(MemoryAccount from, MemoryAccount to, int64_t bytes) {
  MutexLock lock(mu_);
  account_bytes_[static_cast<size_t>(from)] -= bytes;
  account_bytes_[static_cast<size_t>(to)] += bytes;
}

}  // namespace xcache
