#include "cachestore/shared/shared_page_store.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/shared/page_object.h"
#include "cachestore/shared/page_sweep.h"
#include "cachestore/shared/recent_keys.h"
#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Of one key that is remembered, with its place in the table.
constexpr int64_t kKnownKeyBytes = 96;
// Objects that are known to be damaged: few, or something is very wrong.
constexpr size_t kMaxDamaged = 1024;
constexpr char kClockKey[] = "clock";

int64_t SystemUnixMs() {
  return std::chrono::duration_cast<milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

absl::Status Away() {
  return absl::UnavailableError(
      "the shared store did not answer just now, and is not asked for a while");
}

absl::Status Closed() {
  return absl::CancelledError("the shared store is closed");
}

}  // namespace

struct SharedPageStore::State {
  struct Known {
    int64_t put_unix_ms = 0;
    int64_t num_bytes = 0;
    // Of the page's bytes; nothing: another machine's, never read here.
    std::optional<uint32_t> crc;
  };

  explicit State(const SharedPageOptions& o)
      : options(o),
        breaker(o.breaker),
        known(o.max_known),
        absent(o.max_absent),
        damaged(kMaxDamaged) {}

  int64_t UnixMs() const {
    return options.unix_ms ? options.unix_ms() : SystemUnixMs();
  }
  // Whether it was put longer ago than so much of its life.
  bool IsPast(double share, const Known& page) const {
    const auto life = static_cast<double>(options.page_life.count());
    return life > 0 &&
           static_cast<double>(UnixMs() - page.put_unix_ms) > share * life;
  }
  bool WantsLocked(const PageKey& key) const XC_REQUIRES(mu) {
    const Known* page = known.Find(key);
    return page == nullptr || IsPast(0.5, *page);
  }
  // Whether it was not there just now; that is a miss, then.
  bool WasAbsent(const PageKey& key, Clock::time_point now) {
    MutexLock lock(mu);
    const auto* until = absent.Find(key);
    if (until == nullptr || now >= *until) return false;
    ++stats.misses;
    ++shared.negative_hits;
    return true;
  }
  // What came of a Get, before anybody looked at its bytes.
  void Note(const PageKey& key, const absl::Status& status) {
    if (!absl::IsNotFound(status)) return;
    MutexLock lock(mu);
    ++stats.misses;
    known.Erase(key);
    absent.Set(key, Clock::now() + options.absent_for);
  }
  // What a listing of the page's name says.
  void NoteListed(const PageKey& key, const std::string& name,
                  const ObjectList& list) {
    if (list.objects.empty() || list.objects.front().key != name) {
      MutexLock lock(mu);
      known.Erase(key);
      return;
    }
    const ListedObject& object = list.objects.front();
    if (object.num_bytes < kPageEnvelopeBytes) return;  // Get finds out
    SetKnown(key, {.put_unix_ms = object.modified_unix_ms,
                   .num_bytes = static_cast<int64_t>(object.num_bytes -
                                                     kPageEnvelopeBytes),
                   .crc = std::nullopt});
  }
  void SetKnown(const PageKey& key, Known page) {
    MutexLock lock(mu);
    absent.Erase(key);
    damaged.Erase(key);
    known.Set(key, page);
  }

  // Starts a call, and waits for its result. Nothing: nobody is to wait any
  // more.
  template <typename Result>
  static std::optional<Result> Wait(
      const std::shared_ptr<State>& state,
      const std::function<void(std::function<void(Result)>)>& start) {
    struct Slot {
      std::optional<Result> result;  // guarded by the state's lock
    };
    auto slot = std::make_shared<Slot>();
    start([state, slot](Result result) {
      MutexLock lock(state->mu);
      slot->result = std::move(result);
      state->ended.SignalAll();
    });
    MutexLock lock(state->mu);
    while (!slot->result && !state->is_cancelled) state->ended.Wait(state->mu);
    return std::move(slot->result);
  }

  const SharedPageOptions options;
  CircuitBreaker breaker;
  mutable Mutex mu;
  CondVar ended;  // some call that somebody waits for
  bool is_cancelled XC_GUARDED_BY(mu) = false;
  RecentKeys<Known> known XC_GUARDED_BY(mu);
  // Until when each is not asked for.
  RecentKeys<Clock::time_point> absent XC_GUARDED_BY(mu);
  RecentKeys<std::string> damaged XC_GUARDED_BY(mu);  // the objects' etags
  PageStoreStats stats XC_GUARDED_BY(mu);
  SharedPageStats shared XC_GUARDED_BY(mu);
  std::mt19937_64 random XC_GUARDED_BY(mu){std::random_device{}()};
  int next_folder XC_GUARDED_BY(mu) = static_cast<int>(random() %
                                                       uint64_t{kPageFolders});
  Clock::time_point next_sweep XC_GUARDED_BY(mu);
  bool is_sweeping XC_GUARDED_BY(mu) = false;
  int64_t deleted_now XC_GUARDED_BY(mu) = 0;  // by the sweep under way
};

absl::StatusOr<std::unique_ptr<SharedPageStore>> SharedPageStore::Open(
    std::shared_ptr<ObjectStore> objects, MemoryBudget& budget,
    const SharedPageOptions& options) {
  if (objects == nullptr) {
    return absl::InvalidArgumentError(
        "shared pages: expected an object store, found none");
  }
  std::unique_ptr<SharedPageStore> store(
      new SharedPageStore(std::move(objects), budget, options));
  const auto bytes = static_cast<int64_t>(options.max_known +
                                          options.max_absent + kMaxDamaged) *
                     kKnownKeyBytes;
  auto memory = budget.Reserve(MemoryAccount::kStoreIndex, bytes);
  if (!memory) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "shared pages: expected ", bytes, " bytes of memory for keys, found ",
        budget.used_bytes(), " of ", budget.cap_bytes(), " in use"));
  }
  store->memory_ = *std::move(memory);
  return store;
}

SharedPageStore::SharedPageStore(std::shared_ptr<ObjectStore> objects,
                                 MemoryBudget& budget,
                                 const SharedPageOptions& options)
    : budget_(budget),
      state_(std::make_shared<State>(options)),
      objects_(std::move(objects)) {}

SharedPageStore::~SharedPageStore() = default;

void SharedPageStore::Fetch(const PageKey& key, Arrived done) {
  const auto now = Clock::now();
  if (state_->WasAbsent(key, now)) {
    return done({.status = absl::NotFoundError(
                     "the shared store had no such page just now"),
                 .bytes = {},
                 .version = {}});
  }
  const auto ticket = state_->breaker.Begin(now);
  if (!ticket) return done({.status = Away(), .bytes = {}, .version = {}});
  objects_->Get(
      PageObjectName(key), {.timeout = state_->options.get_timeout},
      [state = state_, key, ticket = *ticket,
       done = std::move(done)](absl::StatusOr<StoredObject> object) {
        state->breaker.End(ticket, object.status(), Clock::now());
        state->Note(key, object.status());
        if (!object.ok()) {
          return done({.status = object.status(), .bytes = {}, .version = {}});
        }
        done({.status = absl::OkStatus(),
              .bytes = std::move(object->bytes),
              .version = std::move(object->etag)});
      });
}

absl::StatusOr<PageRef> SharedPageStore::Accept(const PageKey& key,
                                                Arrival arrival) {
  XC_RETURN_IF_ERROR(arrival.status);
  auto envelope = ReadPageEnvelope(arrival.bytes);
  if (envelope.ok() && envelope->key != key) {
    envelope = absl::DataLossError(
        absl::StrCat("page object: expected the key ", ToHex(key), ", found ",
                     ToHex(envelope->key)));
  }
  if (!envelope.ok()) {
    XC_LOG_WARN("shared page damaged", "key={} why={}", ToHex(key),
                LogValue(std::string(envelope.status().message())));
    MutexLock lock(state_->mu);
    ++state_->stats.corrupt;
    state_->known.Erase(key);
    state_->damaged.Set(key, std::move(arrival.version));
    return envelope.status();
  }
  arrival.bytes.erase(0, kPageEnvelopeBytes);
  const auto num_bytes = static_cast<int64_t>(arrival.bytes.size());
  state_->SetKnown(key, {.put_unix_ms = envelope->put_unix_ms,
                         .num_bytes = num_bytes,
                         .crc = Crc32c(arrival.bytes)});
  XC_ASSIGN_OR_RETURN(PageRef page, MakePage(budget_, key, envelope->parent,
                                             std::move(arrival.bytes)));
  MutexLock lock(state_->mu);
  ++state_->stats.hits;
  state_->stats.get_bytes += num_bytes;
  return page;
}

absl::StatusOr<PageHit> SharedPageStore::Get(const PageKey& key) {
  auto arrival = State::Wait<Arrival>(
      state_, [&](Arrived done) { Fetch(key, std::move(done)); });
  if (!arrival) return Closed();
  XC_ASSIGN_OR_RETURN(PageRef page, Accept(key, *std::move(arrival)));
  return PageHit{std::move(page), tier()};
}

absl::Status SharedPageStore::Put(const PageRef& page) {
  const PageKey& key = page->key();
  PutOptions options{.timeout = state_->options.put_timeout};
  const uint32_t crc = Crc32c(page->bytes());
  bool is_refresh = false;
  {
    MutexLock lock(state_->mu);
    const State::Known* known = state_->known.Find(key);
    if (known != nullptr && known->crc && *known->crc != crc) {
      ++state_->stats.key_conflicts;
      return absl::OkStatus();
    }
    if (!state_->WantsLocked(key)) return absl::OkStatus();
    is_refresh = known != nullptr;
    if (const std::string* damaged = state_->damaged.Find(key)) {
      // This object, and not one that somebody put in its place since.
      options.condition = PutCondition::IfEtag(*damaged);
      state_->damaged.Erase(key);
    } else if (!is_refresh) {
      options.condition = PutCondition::IfAbsent();
    }
  }
  const auto num_bytes = static_cast<int64_t>(page->bytes().size());
  const auto refused = [&](absl::Status status) {
    MutexLock lock(state_->mu);
    ++state_->stats.put_failures;
    return status;
  };
  // Its second copy, until it is sent.
  const auto memory = budget_.TryReserve(MemoryAccount::kHostPages,
                                         PageMemoryBytes(page->bytes().size()));
  if (!memory) {
    return refused(absl::ResourceExhaustedError("no memory to send a page"));
  }
  const auto ticket = state_->breaker.Begin(Clock::now());
  if (!ticket) return refused(Away());
  const int64_t now_ms = state_->UnixMs();
  using Etag = absl::StatusOr<std::string>;
  const auto answer =
      State::Wait<Etag>(state_, [&](std::function<void(Etag)> done) {
        objects_->Put(
            PageObjectName(key),
            WrapPage(
                {.key = key, .parent = page->parent(), .put_unix_ms = now_ms},
                page->bytes()),
            options,
            [state = state_, ticket = *ticket,
             done = std::move(done)](Etag etag) {
              state->breaker.End(ticket, etag.status(), Clock::now());
              done(std::move(etag));
            });
      });
  if (!answer) return refused(Closed());
  const Etag& etag = *answer;
  if (etag.ok()) {
    state_->SetKnown(
        key, {.put_unix_ms = now_ms, .num_bytes = num_bytes, .crc = crc});
    MutexLock lock(state_->mu);
    ++(is_refresh ? state_->shared.refreshed : state_->stats.puts);
    state_->stats.put_bytes += num_bytes;
    return absl::OkStatus();
  }
  if (absl::IsAborted(etag.status())) {
    // The damaged one is another now, or gone.
    if (options.condition.kind == PutCondition::Kind::kEtag) return Put(page);
    // When another machine put it is not known: not too long ago, so that it is
    // wanted again in time, and not just now, so that it is not at once.
    state_->SetKnown(
        key, {.put_unix_ms = now_ms - state_->options.page_life.count() / 4,
              .num_bytes = num_bytes,
              .crc = std::nullopt});
    return absl::OkStatus();
  }
  return refused(etag.status());
}

bool SharedPageStore::Contains(const PageKey& key) const {
  MutexLock lock(state_->mu);
  const State::Known* page = state_->known.Find(key);
  return page != nullptr && !state_->IsPast(1.0, *page);
}

bool SharedPageStore::Wants(const PageKey& key) const {
  MutexLock lock(state_->mu);
  return state_->WantsLocked(key);
}

void SharedPageStore::Look(const PageKey& key, std::function<void()> done) {
  const auto ticket = state_->breaker.Begin(Clock::now());
  if (!ticket) return;
  const std::string name = PageObjectName(key);
  objects_->List(
      {.prefix = name, .max_keys = 1, .timeout = state_->options.get_timeout},
      [state = state_, key, name, ticket = *ticket,
       done = std::move(done)](absl::StatusOr<ObjectList> list) {
        state->breaker.End(ticket, list.status(), Clock::now());
        if (!list.ok()) return;
        state->NoteListed(key, name, *list);
        done();
      });
}

bool SharedPageStore::IsReachable() const {
  return state_->breaker.state() == CircuitBreaker::State::kClosed;
}

void SharedPageStore::Cancel() {
  MutexLock lock(state_->mu);
  state_->is_cancelled = true;
  state_->ended.SignalAll();
}

void SharedPageStore::Housekeep() {
  if (IsReachable()) return;
  const auto ticket = state_->breaker.Begin(Clock::now());
  if (!ticket) return;
  // Whether it is there does not matter: an answer does.
  objects_->Get(kClockKey, {.timeout = state_->options.probe_timeout},
                [state = state_,
                 ticket = *ticket](const absl::StatusOr<StoredObject>& object) {
                  state->breaker.End(ticket, object.status(), Clock::now());
                });
}

absl::Status SharedPageStore::Erase(const PageKey& key) {
  {
    MutexLock lock(state_->mu);
    state_->known.Erase(key);
    state_->damaged.Erase(key);
  }
  const auto ticket = state_->breaker.Begin(Clock::now());
  if (!ticket) return Away();
  objects_->Delete(
      PageObjectName(key), state_->options.get_timeout,
      [state = state_, ticket = *ticket](const absl::Status& status) {
        state->breaker.End(ticket, status, Clock::now());
      });
  return absl::OkStatus();
}

void SharedPageStore::Sweep(int64_t now_ms) {
  const auto now = Clock::now();
  // It takes long: it is not the one call that finds out.
  if (state_->breaker.state() != CircuitBreaker::State::kClosed) return;
  PageSweepOptions sweep;
  {
    MutexLock lock(state_->mu);
    if (state_->options.page_life.count() <= 0 || state_->is_sweeping ||
        now < state_->next_sweep) {
      return;
    }
    const milliseconds pause = state_->options.sweep_pause;
    std::uniform_int_distribution<int64_t> more(0, pause.count());
    state_->next_sweep = now + pause + milliseconds(more(state_->random));
    state_->is_sweeping = true;
    sweep = {.folder = PageFolder(state_->next_folder),
             .clock_key = kClockKey,
             .now_ms = now_ms,
             .life = state_->options.page_life,
             .timeout = state_->options.get_timeout};
    state_->next_folder = (state_->next_folder + 1) % kPageFolders;
  }
  StartPageSweep(
      *objects_, sweep,
      [state = state_](const std::string&) {
        MutexLock lock(state->mu);
        ++state->shared.pages_swept;
        ++state->deleted_now;
      },
      [state = state_, folder = sweep.folder](const absl::Status& status) {
        if (!status.ok()) {
          XC_LOG_WARN("shared pages not swept", "folder={} why={}", folder,
                      LogValue(std::string(status.message())));
        }
        MutexLock lock(state->mu);
        state->is_sweeping = false;
        if (status.ok()) ++state->shared.folders_swept;
        const int64_t num_deleted = std::exchange(state->deleted_now, 0);
        if (num_deleted > 0) {
          XC_LOG_INFO("shared pages swept", "folder={} pages={}", folder,
                      num_deleted);
        }
      });
}

PageStoreStats SharedPageStore::stats() const {
  MutexLock lock(state_->mu);
  PageStoreStats stats = state_->stats;
  state_->known.ForEach([&stats](const PageKey&, const State::Known& page) {
    ++stats.num_pages;
    stats.page_bytes += page.num_bytes;
  });
  return stats;
}

SharedPageStats SharedPageStore::shared_stats() const {
  SharedPageStats stats;
  {
    MutexLock lock(state_->mu);
    stats = state_->shared;
  }
  stats.breaker = state_->breaker.state();
  stats.breaker_opened = state_->breaker.num_opened();
  stats.objects = objects_->stats();
  return stats;
}

}  // namespace xcache
