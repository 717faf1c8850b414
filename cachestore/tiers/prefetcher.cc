#include "cachestore/tiers/prefetcher.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"

namespace xcache {
namespace {

// Promised pages that are not there, and none that is: somebody emptied the
// store, and the rest is not asked for.
constexpr int kMaxMisses = 4;

}  // namespace

// Guarded by the prefetcher's lock, except what never changes.
struct Prefetcher::Chain {
  enum class Page : uint8_t { kNotAsked, kRunning, kBrought, kHere, kMissing };

  bool IsPromised(size_t i) const { return i < num_promised; }
  void Wake() XC_EXCLUDES(wake_mu) {
    MutexLock lock(wake_mu);
    if (wake) wake();
  }

  std::vector<PageKey> keys;
  size_t num_promised = 0;
  Mutex wake_mu;
  std::function<void()> wake XC_GUARDED_BY(wake_mu);
  absl::flat_hash_map<PageKey, size_t, DigestHash> index;  // in `keys`

  std::vector<Page> pages;
  size_t next = 0;     // to be asked for
  size_t reached = 0;  // by the request
  int num_running = 0;
  int unknown_running = 0;  // of them, those that nobody promised
  int unknown_window = 1;   // how many of them may be
  int misses = 0;
  bool ended = false;  // nothing more is asked for
  int64_t ahead_bytes = 0;
  std::vector<int64_t> num_bytes;  // of those that came
  Clock::time_point began;         // the epoch: nothing was asked for
  PagePrefetch::Timing timing;
};

struct Prefetcher::Inbox {
  struct Item {
    PageKey key{};
    RemotePageStore::Arrival arrival;
  };
  void Kick() {
    MutexLock lock(mu);
    kicked = true;
    changed.Signal();
  }

  Mutex mu;
  CondVar changed;
  std::deque<Item> items XC_GUARDED_BY(mu);
  bool kicked XC_GUARDED_BY(mu) = false;
  bool stop XC_GUARDED_BY(mu) = false;
};

class Prefetcher::Handle final : public PagePrefetch {
 public:
  Handle(Prefetcher& owner, ChainPtr chain)
      : owner_(owner), chain_(std::move(chain)) {}
  ~Handle() override {
    {
      MutexLock lock(chain_->wake_mu);
      chain_->wake = nullptr;
    }
    MutexLock lock(owner_.mu_);
    chain_->ended = true;
    const auto it =
        std::find(owner_.chains_.begin(), owner_.chains_.end(), chain_);
    if (it != owner_.chains_.end()) owner_.chains_.erase(it);
  }

  State StateOf(const PageKey& key) const override {
    MutexLock lock(owner_.mu_);
    const std::optional<size_t> i = IndexOf(key);
    if (!i) return State::kNotComing;
    switch (chain_->pages[*i]) {
      case Chain::Page::kRunning:
        return State::kComing;
      case Chain::Page::kBrought:
      case Chain::Page::kHere:
        return State::kCame;
      case Chain::Page::kMissing:
        return State::kNotComing;
      case Chain::Page::kNotAsked:
        break;
    }
    return chain_->ended || *i < chain_->next ? State::kNotComing
                                              : State::kComing;
  }

  void Reached(const PageKey& key) override {
    {
      MutexLock lock(owner_.mu_);
      const std::optional<size_t> i = IndexOf(key);
      if (!i || *i <= chain_->reached) return;
      for (size_t j = chain_->reached; j < *i; ++j) {
        chain_->ahead_bytes -= std::exchange(chain_->num_bytes[j], 0);
      }
      chain_->reached = *i;
      if (chain_->ended) return;
    }
    owner_.inbox_->Kick();
  }

  bool Brought(const PageKey& key) const override {
    MutexLock lock(owner_.mu_);
    const std::optional<size_t> i = IndexOf(key);
    // A page is here a moment before its chain is told.
    return i && (chain_->pages[*i] == Chain::Page::kBrought ||
                 chain_->pages[*i] == Chain::Page::kRunning);
  }

  bool IsPromised(const PageKey& key) const override {
    const std::optional<size_t> i = IndexOf(key);
    return i && chain_->IsPromised(*i);
  }

  Timing timing() const override {
    MutexLock lock(owner_.mu_);
    return chain_->timing;
  }

 private:
  std::optional<size_t> IndexOf(const PageKey& key) const {
    const auto it = chain_->index.find(key);
    if (it == chain_->index.end()) return std::nullopt;
    return it->second;
  }

  Prefetcher& owner_;
  const ChainPtr chain_;
};

Prefetcher::Prefetcher(RemotePageStore& remote, MemoryBudget& budget,
                       const PrefetcherOptions& options,
                       std::function<void(const PageRef&)> arrived,
                       std::function<bool(const PageKey&)> is_here)
    : remote_(remote),
      budget_(budget),
      options_(options),
      arrived_(std::move(arrived)),
      is_here_(std::move(is_here)),
      inbox_(std::make_shared<Inbox>()),
      thread_([this] { Loop(); }) {}

Prefetcher::~Prefetcher() {
  {
    MutexLock lock(inbox_->mu);
    inbox_->stop = true;
    inbox_->changed.Signal();
  }
  thread_.join();
}

std::unique_ptr<PagePrefetch> Prefetcher::Start(PrefetchRequest request) {
  auto chain = std::make_shared<Chain>();
  chain->keys = std::move(request.keys);
  chain->num_promised = request.num_promised;
  {
    MutexLock lock(chain->wake_mu);
    chain->wake = std::move(request.wake);
  }
  chain->pages.resize(chain->keys.size(), Chain::Page::kNotAsked);
  chain->num_bytes.resize(chain->keys.size(), 0);
  for (size_t i = 0; i < chain->keys.size(); ++i) {
    chain->index.emplace(chain->keys[i], i);
  }
  auto handle = std::make_unique<Handle>(*this, chain);
  {
    MutexLock lock(mu_);
    chains_.push_back(std::move(chain));
  }
  inbox_->Kick();
  return handle;
}

void Prefetcher::Loop() {
  for (;;) {
    std::deque<Inbox::Item> items;
    {
      MutexLock lock(inbox_->mu);
      while (inbox_->items.empty() && !inbox_->kicked && !inbox_->stop) {
        inbox_->changed.Wait(inbox_->mu);
      }
      if (inbox_->stop) return;
      items.swap(inbox_->items);
      inbox_->kicked = false;
    }
    for (Inbox::Item& item : items) {
      Arrive(item.key, std::move(item.arrival));
    }
    Pump();
  }
}

void Prefetcher::Pump() {
  for (;;) {
    std::optional<PageKey> key;
    int64_t page_bytes = 0;
    {
      MutexLock lock(mu_);
      key = TakeNext();
      if (!key) return;
      page_bytes = page_bytes_;
    }
    // It may make room, which may take a while.
    auto memory = budget_.Reserve(MemoryAccount::kHostPages, page_bytes);
    if (!memory) {
      Arrive(*key, {.status = absl::ResourceExhaustedError(
                        "no memory for a page that is to come"),
                    .bytes = {},
                    .version = {}});
      continue;
    }
    {
      MutexLock lock(mu_);
      running_[*key].memory = *std::move(memory);
    }
    remote_.Fetch(
        *key, [inbox = inbox_, key = *key](RemotePageStore::Arrival arrival) {
          MutexLock lock(inbox->mu);
          if (inbox->stop) return;
          inbox->items.push_back({key, std::move(arrival)});
          inbox->changed.Signal();
        });
  }
}

bool Prefetcher::MayRunMore() const {
  const auto running = static_cast<int64_t>(running_.size());
  return running < options_.max_running &&
         (running == 0 || (running + 1) * page_bytes_ <= options_.window_bytes);
}

std::optional<PageKey> Prefetcher::TakeNext() {
  for (size_t turns = chains_.size(); turns > 0; --turns) {
    if (!MayRunMore()) return std::nullopt;
    const ChainPtr chain = chains_.front();
    std::optional<PageKey> key;
    // It takes what others have asked for with them, until one is its own.
    while (TakeNextOf(chain, &key)) {
      if (key) break;
    }
    chains_.pop_front();
    chains_.push_back(chain);
    if (key) return key;
  }
  return std::nullopt;
}

// False: it may not have more now. `key`: to be asked for; none: it was
// already.
bool Prefetcher::TakeNextOf(const ChainPtr& chain,
                            std::optional<PageKey>* key) {
  Chain& c = *chain;
  while (!c.ended && c.next < c.keys.size() &&
         (c.next < c.reached || is_here_(c.keys[c.next]))) {
    c.pages[c.next] =
        c.next < c.reached ? Chain::Page::kMissing : Chain::Page::kHere;
    ++c.next;
  }
  if (c.ended || c.next == c.keys.size()) return false;
  const bool is_promised = c.IsPromised(c.next);
  if (c.num_running >= options_.max_running_of_one ||
      (!is_promised && c.unknown_running >= c.unknown_window) ||
      (c.num_running > 0 &&
       c.ahead_bytes + c.num_running * page_bytes_ > options_.ahead_bytes) ||
      (c.num_running == 0 && c.ahead_bytes > options_.ahead_bytes)) {
    return false;
  }
  const PageKey& wanted = c.keys[c.next];
  c.pages[c.next] = Chain::Page::kRunning;
  ++c.next;
  ++c.num_running;
  if (!is_promised) ++c.unknown_running;
  if (c.began == Clock::time_point()) c.began = Clock::now();
  const auto [it, is_new] = running_.try_emplace(wanted);
  it->second.waiting.push_back(chain);
  *key = is_new ? std::optional<PageKey>(wanted) : std::nullopt;
  return true;
}

void Prefetcher::Arrive(const PageKey& key, RemotePageStore::Arrival arrival) {
  MemoryReservation memory;
  {
    MutexLock lock(mu_);
    memory = std::move(running_[key].memory);
  }
  memory.Release();  // the page reserves its own
  const absl::StatusOr<PageRef> page = remote_.Accept(key, std::move(arrival));
  if (page.ok()) arrived_(*page);
  std::vector<ChainPtr> told;
  {
    MutexLock lock(mu_);
    if (page.ok()) {
      page_bytes_ =
          std::max(page_bytes_, static_cast<int64_t>((*page)->bytes().size()));
    }
    const auto it = running_.find(key);
    told = std::move(it->second.waiting);
    running_.erase(it);
    for (const ChainPtr& chain : told) Tell(*chain, key, page);
  }
  for (const ChainPtr& chain : told) chain->Wake();
}

void Prefetcher::Tell(Chain& chain, const PageKey& key,
                      const absl::StatusOr<PageRef>& page) {
  const size_t i = chain.index.find(key)->second;
  const bool is_promised = chain.IsPromised(i);
  --chain.num_running;
  if (!is_promised) --chain.unknown_running;
  if (page.ok()) {
    chain.pages[i] = Chain::Page::kBrought;
    if (!is_promised) {
      chain.unknown_window =
          std::min(chain.unknown_window + 1, options_.max_running_of_one);
    }
    if (i >= chain.reached) {
      chain.num_bytes[i] = static_cast<int64_t>((*page)->bytes().size());
      chain.ahead_bytes += chain.num_bytes[i];
    }
    const std::chrono::duration<double> took = Clock::now() - chain.began;
    if (chain.timing.num_pages++ == 0)
      chain.timing.first_seconds = took.count();
    chain.timing.last_seconds = took.count();
    return;
  }
  chain.pages[i] = Chain::Page::kMissing;
  const bool one_is_missing =
      absl::IsNotFound(page.status()) || absl::IsDataLoss(page.status());
  if (!is_promised || !one_is_missing ||
      (chain.timing.num_pages == 0 && ++chain.misses >= kMaxMisses)) {
    chain.ended = true;
  }
}

}  // namespace xcache
