// Long, because what a session is here, is there, and becomes of it when the
// two differ, is to be read in one place.
#include "cachestore/sessions/shared_session_store.h"

#include <algorithm>

#include "absl/algorithm/container.h"
#include "absl/hash/hash.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

using Found = SessionObjects::Found;
using Outcome = SessionObjects::Outcome;

constexpr auto kFresh = std::chrono::seconds(1);
constexpr size_t kMaxChecked = size_t{1} << 16;
constexpr int kDeleteTries = 4;
// Sessions of the whole store that one sweep looks at, beside those known here.
constexpr int kSweepStep = 100;
// No object has it: a copy of this etag is read anew.
constexpr char kNoEtag[] = "-";
// The longest id that a branch has, as ids of sessions may be.
constexpr size_t kMaxIdBytes = 128;

absl::Status NoSession(std::string_view id) {
  return absl::NotFoundError(absl::StrCat("no session ", std::string(id)));
}

bool IsAhead(const SessionSummary& summary) {
  if (summary.damaged) return false;
  const auto version = DecodeSessionVersion(summary.version);
  return !version.has_value() || version->is_ahead;
}

// As far as that is known.
bool ComesAfter(const SessionSummary& summary, const Revision& revision) {
  const auto version = DecodeSessionVersion(summary.version);
  return version.has_value() &&
         absl::c_linear_search(version->ancestry, revision);
}

SessionSummary Placed(SessionSummary summary) {
  if (!summary.damaged && !IsAhead(summary)) {
    summary.durability = Durability::kShared;
  }
  return summary;
}

}  // namespace

SharedSessionStore::SharedSessionStore(ObjectStore& objects,
                                       SessionStoreImpl& local,
                                       MemoryBudget& budget, Options options)
    : local_(local),
      options_(std::move(options)),
      objects_(objects, options_.timeouts, options_.unix_ms),
      list_(objects_, budget) {
  // A session that was never shared is ahead of nothing.
  for (const SessionSummary& summary : local_.Select(IsAhead)) {
    ahead_.insert(SessionKeyBytes(summary.tenant, summary.id));
  }
  pusher_ = std::thread([this] { PushLoop(); });
}

SharedSessionStore::~SharedSessionStore() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  pusher_.join();
  PushAhead();
}

Mutex& SharedSessionStore::KeyLock(const std::string& key) {
  return key_mu_[absl::Hash<std::string>()(key) % key_mu_.size()];
}

absl::StatusOr<Committed> SharedSessionStore::Commit(
    const SessionRecord& record) {
  XC_RETURN_IF_ERROR(CheckSessionRecord(record));
  const std::string key = SessionKeyBytes(record.tenant, record.id);
  const auto base = DecodeSessionVersion(record.version);
  SessionRecord next = record;
  next.version.clear();
  SessionVersion version = base.has_value()
                               ? base->Next()
                               : SessionVersion{.revision = MakeRevision()};
  const Outcome outcome =
      objects_.Replace(SessionObjectKey(record.tenant, record.id), version,
                       EncodeSessionRecord(next));
  switch (outcome.what) {
    case Outcome::What::kDone:
    case Outcome::What::kOvertaken: {
      version.is_ahead = false;
      version.etag =
          outcome.what == Outcome::What::kDone ? outcome.etag : kNoEtag;
      next.version = EncodeSessionVersion(version);
      MutexLock lock(KeyLock(key));
      local_.KeepCopy(next);
      NoteShared(key);
      return Committed{.durability = Durability::kShared,
                       .why = absl::OkStatus(),
                       .version = next.version};
    }
    case Outcome::What::kLost:
    case Outcome::What::kDeleted: {
      {
        MutexLock lock(mu_);
        ++stats_.conflicts;
      }
      if (!base.has_value()) {
        return absl::AlreadyExistsError(
            absl::StrCat("session '", record.id, "' exists already"));
      }
      const std::string why = outcome.WhatHappened();
      if (base->is_ahead) {
        KeepBranch(record.tenant, record.id, why).IgnoreError();
      }
      return absl::AbortedError(
          absl::StrCat("session '", record.id, "': ", why));
    }
    case Outcome::What::kFailed:
      break;
  }
  if (options_.policy == SharedPolicy::kStrict ||
      !absl::IsUnavailable(outcome.status)) {
    return outcome.status;
  }
  version.is_ahead = true;
  next.version = EncodeSessionVersion(version);
  MutexLock lock(KeyLock(key));
  XC_ASSIGN_OR_RETURN(Committed committed, local_.Commit(next));
  if (committed.why.ok()) committed.why = outcome.status;
  NoteAhead(key);
  return committed;
}

void SharedSessionStore::NoteShared(const std::string& key) {
  MutexLock lock(mu_);
  ++stats_.commits;
  stats_.last_commit_ms = options_.unix_ms();
  ahead_.erase(key);
  NoteChecked(key);
  list_.Changed();
}

void SharedSessionStore::NoteAhead(const std::string& key) {
  MutexLock lock(mu_);
  ++stats_.commit_failures;
  ahead_.insert(key);
  list_.Changed();
}

void SharedSessionStore::NoteChecked(const std::string& key) {
  if (checked_.size() >= kMaxChecked) checked_.clear();
  checked_[key] = Clock::now();
}

absl::Status SharedSessionStore::KeepBranch(const std::string& tenant,
                                            const std::string& id,
                                            std::string_view why) {
  const std::string key = SessionKeyBytes(tenant, id);
  MutexLock lock(KeyLock(key));
  XC_ASSIGN_OR_RETURN(SessionRecord branch, local_.Load(tenant, id));
  const auto version = DecodeSessionVersion(branch.version);
  if (version.has_value() && !version->is_ahead) return absl::OkStatus();
  const SessionVersion fresh = {.is_ahead = true, .revision = MakeRevision()};
  const std::string suffix = absl::StrCat(
      ".fork-",
      absl::BytesToHexString(absl::string_view(fresh.revision.data(), 4)));
  branch.id =
      absl::StrCat(branch.id.substr(0, kMaxIdBytes - suffix.size()), suffix);
  branch.version = EncodeSessionVersion(fresh);
  XC_ASSIGN_OR_RETURN(const Committed kept, local_.Commit(branch));
  local_.Delete(tenant, id).IgnoreError();
  XC_LOG_WARN("a session went on elsewhere: what this server had is kept",
              "id={} kept_as={} turn={} durability={} why={}", LogValue(id),
              LogValue(branch.id), branch.turn, DurabilityName(kept.durability),
              LogValue(why));
  MutexLock stats_lock(mu_);
  ++stats_.branches;
  ahead_.erase(key);
  ahead_.insert(SessionKeyBytes(tenant, branch.id));
  list_.Changed();
  return absl::OkStatus();
}

absl::Status SharedSessionStore::Push(const std::string& tenant,
                                      const std::string& id) {
  const std::string key = SessionKeyBytes(tenant, id);
  SessionRecord record;
  SessionVersion version;
  {
    MutexLock lock(KeyLock(key));
    absl::StatusOr<SessionRecord> loaded = local_.Load(tenant, id);
    if (absl::IsNotFound(loaded.status()) ||
        absl::IsDataLoss(loaded.status())) {
      MutexLock ahead_lock(mu_);
      ahead_.erase(key);
      return absl::OkStatus();
    }
    XC_RETURN_IF_ERROR(loaded.status());
    record = *std::move(loaded);
    const auto known = DecodeSessionVersion(record.version);
    if (known.has_value() && !known->is_ahead) {
      MutexLock ahead_lock(mu_);
      ahead_.erase(key);
      return absl::OkStatus();
    }
    if (known.has_value()) {
      version = *known;
    } else {
      // It was never shared. Its name first, so that it is known again.
      version = {.is_ahead = true, .revision = MakeRevision()};
      record.version = EncodeSessionVersion(version);
      XC_RETURN_IF_ERROR(local_.Commit(record).status());
    }
  }
  record.version.clear();  // of what is put in the store
  const Outcome outcome = objects_.Replace(
      SessionObjectKey(tenant, id), version, EncodeSessionRecord(record));
  switch (outcome.what) {
    case Outcome::What::kFailed:
      return outcome.status;
    case Outcome::What::kLost:
    case Outcome::What::kDeleted:
      return KeepBranch(tenant, id, outcome.WhatHappened());
    case Outcome::What::kDone:
    case Outcome::What::kOvertaken:
      break;
  }
  XC_LOG_INFO("session pushed to the shared store", "id={} turn={}",
              LogValue(id), record.turn);
  // What is here now may be ahead of what was pushed.
  MutexLock lock(KeyLock(key));
  absl::StatusOr<SessionRecord> now = local_.Load(tenant, id);
  if (!now.ok()) return absl::OkStatus();
  auto current = DecodeSessionVersion(now->version);
  if (!current.has_value() || !current->is_ahead) return absl::OkStatus();
  current->etag = outcome.what == Outcome::What::kDone ? outcome.etag : kNoEtag;
  if (current->revision == version.revision) {
    current->is_ahead = false;
    now->version = EncodeSessionVersion(*current);
    local_.KeepCopy(*now);
    NoteShared(key);
  } else {
    now->version = EncodeSessionVersion(*current);
    local_.Commit(*now).IgnoreError();
  }
  return absl::OkStatus();
}

void SharedSessionStore::PushAhead() {
  std::vector<std::string> keys;
  {
    MutexLock lock(mu_);
    keys.assign(ahead_.begin(), ahead_.end());
  }
  for (const std::string& key : keys) {
    const auto name = ParseSessionKey(key);
    if (!name.has_value()) continue;
    // The store is away for the others too.
    if (!Push(name->tenant, name->id).ok()) return;
  }
}

void SharedSessionStore::PushLoop() {
  for (;;) {
    {
      MutexLock lock(mu_);
      if (!stop_) changed_.WaitFor(mu_, options_.push_interval);
      if (stop_) return;
      if (ahead_.empty()) continue;
    }
    PushAhead();
  }
}

absl::StatusOr<SessionRecord> SharedSessionStore::Take(const std::string& key,
                                                       const Found& found) {
  XC_ASSIGN_OR_RETURN(SessionRecord record,
                      DecodeSessionRecord(found.object.manifest, key));
  record.version = EncodeSessionVersion({.etag = found.etag,
                                         .revision = found.object.revision,
                                         .ancestry = found.object.ancestry});
  MutexLock lock(KeyLock(key));
  const auto here = local_.Find(record.tenant, record.id);
  // A turn may have been committed since that was read.
  if (!here.ok() ||
      (!IsAhead(*here) && !ComesAfter(*here, found.object.revision))) {
    local_.KeepCopy(record);
  }
  return record;
}

absl::StatusOr<SessionRecord> SharedSessionStore::Load(std::string_view tenant,
                                                       std::string_view id) {
  if (!IsSessionName(tenant, id)) return NoSession(id);
  const std::string key = SessionKeyBytes(tenant, id);
  const auto find_here = [&]() -> std::optional<SessionSummary> {
    auto found = local_.Find(tenant, id);
    if (!found.ok()) return std::nullopt;
    return *std::move(found);
  };
  std::optional<SessionSummary> here = find_here();
  const auto from_here =
      [&](const absl::Status& away) -> absl::StatusOr<SessionRecord> {
    if (options_.policy == SharedPolicy::kStrict || !here.has_value()) {
      return away;
    }
    return local_.Load(tenant, id);
  };
  if (here.has_value() && IsAhead(*here)) {
    if (const absl::Status pushed = Push(here->tenant, here->id);
        !pushed.ok()) {
      return from_here(pushed);
    }
    here = find_here();
  }
  const auto version =
      here.has_value() ? DecodeSessionVersion(here->version) : std::nullopt;
  std::string known_etag = version.has_value() ? version->etag : "";
  for (;;) {
    const absl::StatusOr<Found> found =
        objects_.Look(SessionObjectKey(tenant, id), known_etag);
    if (!found.ok()) return from_here(found.status());
    {
      MutexLock lock(mu_);
      NoteChecked(key);
    }
    switch (found->what) {
      case Found::What::kSame: {
        absl::StatusOr<SessionRecord> copy = local_.Load(tenant, id);
        if (copy.ok() && copy->version == here->version) return copy;
        known_etag.clear();  // it cannot be read, or has changed meanwhile
        break;
      }
      case Found::What::kNothing:
        // A session that was deleted leaves a mark: this one the store lost.
        return here.has_value() ? local_.Load(tenant, id) : NoSession(id);
      case Found::What::kDeleted: {
        MutexLock lock(KeyLock(key));
        if (here.has_value() && !IsAhead(*here)) {
          local_.Delete(tenant, id).IgnoreError();
        }
        return NoSession(id);
      }
      case Found::What::kUnreadable:
        return found->why;
      case Found::What::kSession:
        return Take(key, *found);
    }
  }
}

std::optional<SessionRecord> SharedSessionStore::LoadCopy(
    std::string_view tenant, std::string_view id) {
  if (!IsSessionName(tenant, id)) return std::nullopt;
  const auto here = local_.Find(tenant, id);
  if (!here.ok() || here->damaged || IsAhead(*here)) return std::nullopt;
  auto copy = local_.Load(tenant, id);
  if (!copy.ok() || copy->version != here->version) return std::nullopt;
  return *std::move(copy);
}

absl::StatusOr<SessionSummary> SharedSessionStore::Find(std::string_view tenant,
                                                        std::string_view id) {
  if (!IsSessionName(tenant, id)) return NoSession(id);
  const std::string key = SessionKeyBytes(tenant, id);
  bool is_fresh = false;
  {
    MutexLock lock(mu_);
    const auto it = checked_.find(key);
    is_fresh = it != checked_.end() && Clock::now() - it->second < kFresh;
  }
  if (is_fresh) {
    if (auto here = local_.Find(tenant, id); here.ok()) {
      return Placed(*std::move(here));
    }
  }
  const absl::StatusOr<SessionRecord> record = Load(tenant, id);
  if (absl::IsDataLoss(record.status()) ||
      absl::IsFailedPrecondition(record.status())) {
    SessionSummary summary;
    summary.tenant = tenant;
    summary.id = id;
    summary.damaged = true;
    return summary;
  }
  XC_RETURN_IF_ERROR(record.status());
  SessionSummary summary = SummaryOf(*record);
  if (const auto here = local_.Find(tenant, id); here.ok()) {
    summary.durability = here->durability;
  }
  return Placed(std::move(summary));
}

Durability SharedSessionStore::DurabilityOf(const SessionRecord& record) const {
  const auto version = DecodeSessionVersion(record.version);
  return version.has_value() && !version->is_ahead
             ? Durability::kShared
             : local_.DurabilityOf(record);
}

absl::StatusOr<SessionPage> SharedSessionStore::List(
    std::string_view tenant, std::string_view page_token, int limit) {
  const auto shared = list_.Of(tenant);
  if (absl::IsUnavailable(shared.status()) &&
      options_.policy == SharedPolicy::kPrefer) {
    return local_.List(tenant, page_token, limit);
  }
  XC_RETURN_IF_ERROR(shared.status());
  SharedSessionList::Sessions ahead;
  for (SessionSummary& summary :
       local_.Select([&](const SessionSummary& session) {
         return session.tenant == tenant && IsAhead(session);
       })) {
    ahead[summary.id] = std::move(summary);
  }
  std::set<ListPlace> order;
  for (const auto& [id, summary] : ahead) order.insert(PlaceOf(summary));
  for (const auto& [id, summary] : **shared) {
    if (!ahead.contains(id)) order.insert(PlaceOf(summary));
  }
  return PageOf(order, page_token, limit, [&](const std::string& id) {
    const auto it = ahead.find(id);
    return it != ahead.end() ? it->second : (*shared)->at(id);
  });
}

absl::Status SharedSessionStore::Delete(std::string_view tenant,
                                        std::string_view id) {
  if (!IsSessionName(tenant, id)) return NoSession(id);
  const std::string key = SessionKeyBytes(tenant, id);
  const std::string object_key = SessionObjectKey(tenant, id);
  const auto delete_here = [&] {
    MutexLock lock(KeyLock(key));
    const absl::Status deleted = local_.Delete(tenant, id);
    MutexLock stats_lock(mu_);
    ahead_.erase(key);
    checked_.erase(key);
    list_.Changed();
    return deleted;
  };
  const Revision mark = MakeRevision();
  for (int num_tries = 0; num_tries < kDeleteTries; ++num_tries) {
    XC_ASSIGN_OR_RETURN(const Found found, objects_.Look(object_key, ""));
    switch (found.what) {
      case Found::What::kSame:
      case Found::What::kNothing:
        return delete_here();
      case Found::What::kDeleted:
        delete_here().IgnoreError();
        if (found.object.revision != mark) return NoSession(id);
        return absl::OkStatus();  // the answer was lost
      case Found::What::kUnreadable:
      case Found::What::kSession: {
        const absl::Status buried = objects_.Bury(object_key, found.etag, mark);
        if (buried.ok()) {
          delete_here().IgnoreError();
          return absl::OkStatus();
        }
        if (absl::IsUnavailable(buried)) return buried;
        break;  // somebody had a turn meanwhile, or nobody heard the answer
      }
    }
  }
  return absl::UnavailableError(
      absl::StrCat("session ", std::string(id), " changes all the time"));
}

int64_t SharedSessionStore::Sweep(
    int64_t now_ms,
    const std::function<bool(std::string_view, std::string_view)>& in_use) {
  int64_t num_deleted = 0;
  const auto expire = [&](const std::string& object_key, const Found& found,
                          const SessionHead& session) {
    if (in_use && in_use(session.tenant, session.id)) return;
    if (!objects_.Bury(object_key, found.etag, MakeRevision()).ok()) return;
    const std::string key = SessionKeyBytes(session.tenant, session.id);
    MutexLock lock(KeyLock(key));
    local_.Delete(session.tenant, session.id).IgnoreError();
    ++num_deleted;
  };
  for (const SessionSummary& summary :
       local_.Select([&](const SessionSummary& here) {
         return !here.damaged && !IsAhead(here) && IsExpired(here, now_ms);
       })) {
    const std::string object_key = SessionObjectKey(summary.tenant, summary.id);
    const absl::StatusOr<Found> found = objects_.Look(object_key, "");
    if (!found.ok()) break;
    if (found->what == Found::What::kSession) {
      // What is here is but a copy, and may be an old one.
      const auto head = DecodeSessionHead(found->object.manifest);
      if (head.ok() && !IsExpired(*head, now_ms)) {
        Take(SessionKeyBytes(summary.tenant, summary.id), *found)
            .status()
            .IgnoreError();
      } else if (head.ok()) {
        expire(object_key, *found, *head);
      }
    } else if (found->what != Found::What::kUnreadable) {
      MutexLock lock(KeyLock(SessionKeyBytes(summary.tenant, summary.id)));
      local_.Delete(summary.tenant, summary.id).IgnoreError();
    }
  }
  // A part of those that no server may know any more.
  ListOptions options = {.prefix = std::string(kSessionObjects),
                         .start_after = "",
                         .max_keys = kSweepStep,
                         .timeout = options_.timeouts.look};
  {
    MutexLock lock(mu_);
    options.start_after = sweep_after_;
  }
  const absl::StatusOr<ObjectList> list = objects_.List(options);
  if (!list.ok()) return num_deleted;
  for (const ListedObject& object : list->objects) {
    // What an object of this etag says it says for ever.
    const size_t name = absl::HashOf(object.key, object.etag);
    if (const auto due = sweep_due_ms_.find(name);
        due != sweep_due_ms_.end() && now_ms < due->second) {
      continue;
    }
    const absl::StatusOr<Found> found = objects_.Look(object.key, "");
    if (!found.ok()) break;
    int64_t due_ms = now_ms;
    if (found->what == Found::What::kDeleted) {
      due_ms = objects_.RemoveOldMark(object.key, found->object);
    } else if (found->what == Found::What::kSession) {
      const auto head = DecodeSessionHead(found->object.manifest);
      if (head.ok() && IsExpired(*head, now_ms)) {
        expire(object.key, *found, *head);
      } else if (head.ok()) {
        due_ms =
            head->pinned || head->expire_ms == 0 ? INT64_MAX : head->expire_ms;
      }
    }
    if (found->etag != object.etag) continue;  // replaced meanwhile
    if (sweep_due_ms_.size() >= kMaxChecked) sweep_due_ms_.clear();
    sweep_due_ms_[name] = due_ms;
  }
  MutexLock lock(mu_);
  sweep_after_ = list->next_start_after;
  stats_.expired += num_deleted;
  if (num_deleted > 0) list_.Changed();
  return num_deleted;
}

SessionStoreStats SharedSessionStore::stats() const {
  SessionStoreStats stats = local_.stats();
  MutexLock lock(mu_);
  stats.commits = stats_.commits;
  stats.last_commit_ms = std::max(stats.last_commit_ms, stats_.last_commit_ms);
  stats.commit_failures = stats_.commit_failures;
  stats.expired = stats_.expired;
  stats.conflicts = stats_.conflicts;
  stats.branches = stats_.branches;
  stats.num_ahead = static_cast<int64_t>(ahead_.size());
  return stats;
}

}  // namespace xcache
