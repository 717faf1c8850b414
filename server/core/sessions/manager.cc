// Leases of sessions, and the changes that go beside a turn.
#include "server/core/sessions/manager.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "server/core/reason.h"
#include "server/core/sessions/answer_notes.h"
#include "server/core/sessions/conversation.h"

namespace xcache {
namespace {

constexpr int kUpdateTries = 4;

absl::Status NoSession(std::string_view id) {
  return absl::NotFoundError(absl::StrCat(
      "no session '", absl::string_view(id.data(), id.size()), "'"));
}

absl::Status TurnRuns(const SessionKey& key) {
  return absl::AbortedError(
      absl::StrCat("session '", key.second, "' is in use by another call"));
}

absl::Status OtherTurn(const SessionKey& key, uint64_t turn,
                       uint64_t expected) {
  return WithReason(
      absl::AbortedError(absl::StrCat("session '", key.second, "' has had ",
                                      turn, " turns, not ", expected)),
      Reason::kTurnConflict);
}

std::string UtcTime(int64_t unix_ms) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixMillis(unix_ms),
                          absl::UTCTimeZone());
}

// Random.
std::string MakeSessionId() {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string id;
  for (int i = 0; i < 4; ++i) {
    uint32_t bits = random();
    for (int j = 0; j < 8; ++j, bits >>= 4) id += kDigits[bits & 15];
  }
  return id;
}

int64_t ExpireMs(int64_t used_ms, int64_t ttl_ms) {
  return ttl_ms > 0 ? used_ms + ttl_ms : 0;
}

void Apply(const SessionUpdate& update, int64_t now_ms, SessionRecord* record) {
  if (update.title.has_value()) record->title = *update.title;
  if (update.ttl.has_value()) record->ttl_ms = update.ttl->count();
  if (update.pinned.has_value()) record->pinned = *update.pinned;
  if (update.data.has_value()) SetSessionData(*update.data, record);
  for (const std::string& name : update.forget) EraseAnswerNote(name, record);
  if (update.cut) {
    uint64_t needed = 0;
    for (const AnswerNote& note : AnswerNotesOf(*record)) {
      needed = std::max(needed, note.num_messages);
    }
    KeepFirstMessages(needed, record);
  }
  // From now on, so that a session that was idle for long is not gone the
  // moment it is unpinned or gets a shorter time.
  if (update.ttl.has_value() || update.pinned.has_value()) {
    record->expire_ms = ExpireMs(now_ms, record->ttl_ms);
  }
}

// What `later` changes goes over what `update` does.
void Merge(const SessionUpdate& later, SessionUpdate* update) {
  if (later.title.has_value()) update->title = later.title;
  if (later.ttl.has_value()) update->ttl = later.ttl;
  if (later.pinned.has_value()) update->pinned = later.pinned;
  if (later.data.has_value()) update->data = later.data;
  update->forget.insert(update->forget.end(), later.forget.begin(),
                        later.forget.end());
  update->cut = update->cut || later.cut;
}

}  // namespace

SessionManager::Lease::~Lease() { manager_->GiveBack(key_); }

void SessionManager::Lease::StartFrom(SessionRecord record) {
  record.tenant = key_.first;
  record.id = key_.second;
  record.create_ms = record_.create_ms;
  record_ = std::move(record);
}

absl::StatusOr<Committed> SessionManager::Lease::Commit(SessionRecord next) {
  if (check_ != nullptr) XC_RETURN_IF_ERROR(check_->Wait());
  next.update_ms = manager_->clock_.StampMs();
  MutexLock lock(busy_->commit_mu);
  if (busy_->deleted) {
    return absl::CancelledError(
        absl::StrCat("session '", key_.second, "' is being deleted"));
  }
  Apply(busy_->update, next.update_ms, &next);
  next.expire_ms = ExpireMs(next.update_ms, next.ttl_ms);
  next.version = busy_->version;
  XC_ASSIGN_OR_RETURN(Committed committed, manager_->Store(next));
  next.version = busy_->version = committed.version;
  record_ = std::move(next);
  is_new_ = false;
  return committed;
}

absl::Status SessionManager::Lease::ReadRecord() {
  // No update comes between the record and its version.
  MutexLock lock(busy_->commit_mu);
  XC_ASSIGN_OR_RETURN(record_, manager_->Read(key_.first, key_.second));
  busy_->version = record_.version;
  return absl::OkStatus();
}

bool SessionManager::Lease::TakeCopy(uint64_t turn) {
  MutexLock lock(busy_->commit_mu);
  std::optional<SessionRecord> copy =
      manager_->store_.LoadCopy(key_.first, key_.second);
  if (!copy.has_value() || copy->turn != turn ||
      manager_->Expired(SummaryOf(*copy))) {
    return false;
  }
  record_ = *std::move(copy);
  busy_->version = record_.version;
  check_ = std::shared_ptr<Check>(new Check(manager_, key_, turn, busy_));
  return true;
}

absl::Status SessionManager::Check::Ask() const {
  // What is updated here meanwhile is no other version than is expected.
  MutexLock lock(busy_->commit_mu);
  XC_ASSIGN_OR_RETURN(const SessionRecord now,
                      manager_->Read(key_.first, key_.second));
  if (now.turn != turn_) return OtherTurn(key_, now.turn, turn_);
  if (now.version == busy_->version) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(
      "session '", key_.second, "' was changed at another server: try again"));
}

void SessionManager::Check::Run() {
  const absl::Status status = Ask();
  {
    MutexLock lock(mu_);
    result_ = status;
    known_.SignalAll();
  }
  manager_->wake_();
}

std::optional<absl::Status> SessionManager::Check::result() const {
  MutexLock lock(mu_);
  return result_;
}

absl::Status SessionManager::Check::Wait() const {
  MutexLock lock(mu_);
  while (!result_.has_value()) known_.Wait(mu_);
  return *result_;
}

absl::StatusOr<Committed> SessionManager::Store(
    const SessionRecord& record) const {
  absl::StatusOr<Committed> committed = store_.Commit(record);
  if (committed.ok() && !committed->why.ok()) {
    XC_LOG_WARN("session not durable", "id={} turn={} durability={} why={}",
                LogValue(record.id), record.turn,
                DurabilityName(committed->durability),
                LogValue(std::string(committed->why.message())));
  } else if (absl::IsAborted(committed.status())) {
    return WithReason(committed.status(), Reason::kTurnConflict);
  }
  return committed;
}

SessionManager::SessionManager(SessionStore& store, CoreMetrics& metrics,
                               SessionClock& clock, std::function<void()> wake)
    : store_(store), metrics_(metrics), clock_(clock), wake_(std::move(wake)) {}

bool SessionManager::Expired(const SessionSummary& summary) const {
  return !summary.damaged && IsExpired(summary, clock_.ExpiryMs());
}

std::unique_ptr<SessionManager::Lease> SessionManager::TryLease(
    const SessionKey& key) {
  auto busy = std::make_shared<Busy>();
  MutexLock lock(mu_);
  if (!busy_.emplace(key, busy).second) return nullptr;
  return std::unique_ptr<Lease>(new Lease(this, key, std::move(busy)));
}

void SessionManager::GiveBack(const SessionKey& key) {
  MutexLock lock(mu_);
  busy_.erase(key);
  given_back_.SignalAll();
}

absl::StatusOr<std::unique_ptr<SessionManager::Lease>> SessionManager::Begin(
    std::string_view tenant, std::string_view id,
    std::optional<uint64_t> expected_turn) {
  const SessionKey key(tenant, id);
  std::unique_ptr<Lease> lease = TryLease(key);
  if (lease == nullptr) {
    // One that is only being made, or was never there, is not in use.
    XC_RETURN_IF_ERROR(Find(tenant, id).status());
    return TurnRuns(key);
  }
  if (expected_turn.has_value()) {
    XC_RETURN_IF_ERROR(ValidateSessionId(id));
    if (lease->TakeCopy(*expected_turn)) return lease;
  }
  XC_RETURN_IF_ERROR(lease->ReadRecord());
  if (expected_turn.has_value() && *expected_turn != lease->record_.turn) {
    return OtherTurn(key, lease->record_.turn, *expected_turn);
  }
  return lease;
}

absl::StatusOr<std::unique_ptr<SessionManager::Lease>> SessionManager::BeginNew(
    std::string_view tenant, std::string_view id, bool is_random) {
  const SessionKey key(tenant, id.empty() ? MakeSessionId() : std::string(id));
  XC_RETURN_IF_ERROR(ValidateSessionId(key.second));
  std::unique_ptr<Lease> lease = TryLease(key);
  const absl::Status found = id.empty() || is_random
                                 ? absl::NotFoundError("")
                                 : Find(tenant, id).status();
  if (lease == nullptr || found.ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat("session '", key.second, "' exists already"));
  }
  // What is not known to be free is not given away.
  if (!absl::IsNotFound(found)) return found;
  lease->record_.tenant = key.first;
  lease->record_.id = key.second;
  lease->record_.create_ms = clock_.StampMs();
  lease->is_new_ = true;
  return lease;
}

absl::StatusOr<SessionRecord> SessionManager::Read(std::string_view tenant,
                                                   std::string_view id) const {
  XC_RETURN_IF_ERROR(ValidateSessionId(id));
  absl::StatusOr<SessionRecord> record = store_.Load(tenant, id);
  if (absl::IsDataLoss(record.status())) {
    metrics_.Add(CoreCounter::kSessionsCorrupt, 1);
  }
  if (absl::IsNotFound(record.status())) return NoSession(id);
  if (record.ok() && Expired(SummaryOf(*record))) return NoSession(id);
  return record;
}

absl::StatusOr<SessionSummary> SessionManager::Find(std::string_view tenant,
                                                    std::string_view id) const {
  XC_RETURN_IF_ERROR(ValidateSessionId(id));
  absl::StatusOr<SessionSummary> summary = store_.Find(tenant, id);
  if (absl::IsNotFound(summary.status())) return NoSession(id);
  if (summary.ok() && Expired(*summary)) return NoSession(id);
  return summary;
}

absl::StatusOr<SessionPage> SessionManager::List(std::string_view tenant,
                                                 std::string_view page_token,
                                                 int limit) const {
  SessionPage list;
  list.next_page_token = page_token;
  do {
    const int more = limit - static_cast<int>(list.sessions.size());
    XC_ASSIGN_OR_RETURN(SessionPage page,
                        store_.List(tenant, list.next_page_token, more));
    list.next_page_token = std::move(page.next_page_token);
    for (SessionSummary& summary : page.sessions) {
      if (!Expired(summary)) list.sessions.push_back(std::move(summary));
    }
  } while (static_cast<int>(list.sessions.size()) < limit &&
           !list.next_page_token.empty());
  return list;
}

absl::Status SessionManager::Delete(std::string_view tenant,
                                    std::string_view id) {
  const SessionKey key(tenant, id);
  XC_RETURN_IF_ERROR(Find(tenant, id).status());
  std::unique_ptr<Lease> lease;
  while ((lease = TryLease(key)) == nullptr) {
    std::shared_ptr<Busy> busy;
    {
      MutexLock lock(mu_);
      const auto it = busy_.find(key);
      if (it == busy_.end()) continue;
      busy = it->second;
    }
    {
      // A commit that has begun is finished; after it there is none.
      MutexLock lock(busy->commit_mu);
      busy->deleted = true;
    }
    wake_();
    MutexLock lock(mu_);
    while (busy_.contains(key) && busy_.at(key) == busy) given_back_.Wait(mu_);
  }
  return Erase(key);
}

absl::Status SessionManager::Erase(const SessionKey& key) {
  // Somebody else may have deleted it meanwhile.
  const absl::Status status = store_.Delete(key.first, key.second);
  if (absl::IsNotFound(status)) return NoSession(key.second);
  if (status.ok()) {
    XC_LOG_INFO("session deleted", "id={} tenant={}", LogValue(key.second),
                LogValue(key.first));
  }
  return status;
}

absl::Status SessionManager::DeleteIfEmpty(std::string_view tenant,
                                           std::string_view id) {
  const SessionKey key(tenant, id);
  const std::unique_ptr<Lease> lease = TryLease(key);
  if (lease == nullptr) return absl::OkStatus();
  const absl::StatusOr<SessionRecord> record = Read(tenant, id);
  if (absl::IsNotFound(record.status())) return absl::OkStatus();
  XC_RETURN_IF_ERROR(record.status());
  return record->messages.empty() ? Erase(key) : absl::OkStatus();
}

absl::StatusOr<SessionRecord> SessionManager::Update(
    std::string_view tenant, std::string_view id, const SessionUpdate& update) {
  const SessionKey key(tenant, id);
  const std::unique_ptr<Lease> lease = TryLease(key);
  std::shared_ptr<Busy> busy;
  if (lease != nullptr) {
    busy = lease->busy_;
  } else {
    MutexLock lock(mu_);
    const auto it = busy_.find(key);
    if (it != busy_.end()) busy = it->second;
  }
  // Given back between the two: what was under way is done, so try again.
  if (busy == nullptr) return Update(tenant, id, update);
  MutexLock lock(busy->commit_mu);
  if (busy->deleted) return NoSession(id);
  for (int num_tries = 1;; ++num_tries) {
    XC_ASSIGN_OR_RETURN(SessionRecord record, Read(tenant, id));
    const bool follows = record.version == busy->version;
    Apply(update, clock_.StampMs(), &record);
    const absl::StatusOr<Committed> committed = Store(record);
    // What a turn of another server made of the session, it applies to as well.
    if (absl::IsAborted(committed.status()) && num_tries < kUpdateTries) {
      continue;
    }
    XC_RETURN_IF_ERROR(committed.status());
    // A turn that runs here goes on from it, unless another has gone before.
    if (follows) busy->version = committed->version;
    Merge(update, &busy->update);
    return record;
  }
}

int64_t SessionManager::Sweep() {
  std::vector<SessionSummary> expired;
  const int64_t num_expired = store_.Sweep(
      clock_.ExpiryMs(), [&](std::string_view tenant, std::string_view id) {
        {
          MutexLock lock(mu_);
          if (busy_.contains(SessionKey(tenant, id))) return true;
        }
        const absl::StatusOr<SessionSummary> summary = store_.Find(tenant, id);
        if (summary.ok()) expired.push_back(*summary);
        return false;
      });
  for (const SessionSummary& summary : expired) {
    if (store_.Find(summary.tenant, summary.id).ok()) continue;  // it was used
    XC_LOG_INFO("session expired",
                "id={} tenant={} expire_time={} last_used={}",
                LogValue(summary.id), LogValue(summary.tenant),
                UtcTime(summary.expire_ms), UtcTime(summary.update_ms));
  }
  metrics_.Add(CoreCounter::kSessionsExpired,
               static_cast<uint64_t>(num_expired));
  return num_expired;
}

absl::Status ValidateSessionId(std::string_view id) {
  bool valid = !id.empty() && id.size() <= 128;
  for (const char c : id) {
    valid = valid && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                      c == '.' || c == '_' || c == '-');
  }
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a session's id must be 1 to 128 of [A-Za-z0-9._-], not \"",
                   absl::CHexEscape(absl::string_view(
                       id.data(), std::min<size_t>(id.size(), 64))),
                   "\" (", id.size(), " bytes)"));
}

}  // namespace xcache
