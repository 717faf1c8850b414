#include "cachestore/sessions/session_objects.h"

#include <algorithm>
#include <latch>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr int kMaxTries = 4;
constexpr size_t kGetsAtOnce = 16;
// How long a mark of deletion stays. In its last day nothing takes its place:
// whoever removes it must not remove what came instead.
constexpr int64_t kMarkLifeMs = int64_t{30} * 24 * 3600 * 1000;
constexpr int64_t kMarkRestMs = int64_t{24} * 3600 * 1000;

absl::Status Away(const absl::Status& status) {
  return absl::UnavailableError(absl::StrCat("the shared store is away: ",
                                             std::string(status.message())));
}

SessionObjects::Found FoundIn(const StoredObject& got,
                              const std::string& known_etag) {
  using Found = SessionObjects::Found;
  Found found;
  found.etag = got.not_modified ? known_etag : got.etag;
  if (got.not_modified) {
    found.what = Found::What::kSame;
    return found;
  }
  absl::StatusOr<SessionObject> object = DecodeSessionObject(got.bytes);
  if (!object.ok()) {
    found.what = Found::What::kUnreadable;
    found.why = object.status();
    return found;
  }
  found.object = *std::move(object);
  found.what =
      found.object.is_deleted ? Found::What::kDeleted : Found::What::kSession;
  return found;
}

}  // namespace

std::string SessionObjects::Outcome::WhatHappened() const {
  return what == What::kDeleted
             ? "another server has deleted it"
             : absl::StrCat("another server has taken it to turn ", turn);
}

template <typename T>
absl::StatusOr<T> SessionObjects::Ask(
    const std::function<absl::StatusOr<T>()>& call, bool also_if_away) {
  const auto ticket = breaker_.Begin(Clock::now());
  if (!ticket.has_value()) {
    if (also_if_away) return call();
    return absl::UnavailableError("it did not answer lately");
  }
  absl::StatusOr<T> result = call();
  // Where it is not known what was done, it did answer.
  breaker_.End(
      *ticket,
      absl::IsUnknown(result.status()) ? absl::OkStatus() : result.status(),
      Clock::now());
  return result;
}

absl::StatusOr<SessionObjects::Found> SessionObjects::Look(
    const std::string& key, const std::string& known_etag, bool also_if_away) {
  const auto get = [&] {
    return objects_.Get(
        key, {.if_none_match = known_etag, .timeout = timeouts_.look});
  };
  std::string unreadable;  // what was read before
  for (int num_tries = 0; num_tries < kMaxTries; ++num_tries) {
    absl::StatusOr<StoredObject> got = Ask<StoredObject>(get, also_if_away);
    if (absl::IsNotFound(got.status())) return Found();
    if (!got.ok()) return Away(got.status());
    Found found = FoundIn(*got, known_etag);
    if (found.what != Found::What::kUnreadable) return found;
    // One reading may have been damaged on its way (rule R11).
    if (got->bytes == unreadable) return found;
    unreadable = std::move(got->bytes);
  }
  return Away(absl::DataLossError("what it sends is damaged on the way"));
}

SessionObjects::Outcome SessionObjects::Replace(const std::string& key,
                                                const SessionVersion& version,
                                                std::string manifest) {
  using What = Outcome::What;
  const SessionObject object = {.revision = version.revision,
                                .ancestry = version.ancestry,
                                .written_ms = unix_ms_(),
                                .manifest = std::move(manifest)};
  std::string etag = version.etag;
  const std::string bytes = EncodeSessionObject(object);
  const bool is_new = etag.empty();
  absl::Status put_status;
  for (int num_tries = 0; num_tries < kMaxTries; ++num_tries) {
    const absl::StatusOr<std::string> put = Ask<std::string>([&] {
      return objects_.Put(
          key, bytes,
          {.condition = etag.empty() ? PutCondition::IfAbsent()
                                     : PutCondition::IfEtag(etag),
           .timeout = timeouts_.change});
    });
    if (put.ok()) return {.what = What::kDone, .etag = *put};
    put_status = put.status();
    // Whatever it says, what is there decides: its answer may have been lost.
    const absl::StatusOr<Found> found = Look(key, "", /*also_if_away=*/true);
    if (!found.ok()) return {.what = What::kFailed, .status = found.status()};
    const bool did_not_hold =
        absl::IsAborted(put_status) || absl::IsNotFound(put_status);
    switch (found->what) {
      case Found::What::kSame:
        break;  // nothing was said to be known
      case Found::What::kUnreadable:
        return {.what = What::kFailed, .status = found->why};
      case Found::What::kNothing:
        if (!did_not_hold) {
          return {.what = What::kFailed, .status = Away(put_status)};
        }
        if (!etag.empty()) {
          XC_LOG_WARN("the shared store has lost a session: it is put again",
                      "object={}", key);
        }
        etag.clear();
        break;
      case Found::What::kDeleted: {
        if (!is_new) return {.what = What::kDeleted};
        const int64_t age_ms = unix_ms_() - found->object.written_ms;
        if (age_ms > kMarkLifeMs - kMarkRestMs) {
          return {.what = What::kFailed,
                  .status = absl::UnavailableError(
                      "a session of this id was deleted a month ago: it can be "
                      "used again within two days")};
        }
        etag = found->etag;
        break;
      }
      case Found::What::kSession:
        if (found->object.revision == object.revision) {
          return {.what = What::kDone, .etag = found->etag};
        }
        if (found->object.Holds(object.revision)) {
          return {.what = What::kOvertaken};
        }
        if (found->etag == etag) {
          if (!did_not_hold) {
            return {.what = What::kFailed, .status = Away(put_status)};
          }
        } else if (object.Holds(found->object.revision)) {
          etag = found->etag;  // an earlier one of ours, its answer lost
        } else {
          const auto head = DecodeSessionHead(found->object.manifest);
          return {.what = What::kLost, .turn = head.ok() ? head->turn : 0};
        }
        break;
    }
  }
  return {.what = What::kFailed, .status = Away(put_status)};
}

absl::Status SessionObjects::Bury(const std::string& key,
                                  const std::string& etag,
                                  const Revision& mark) {
  const std::string bytes = EncodeSessionObject({.revision = mark,
                                                 .ancestry = {},
                                                 .written_ms = unix_ms_(),
                                                 .is_deleted = true,
                                                 .manifest = ""});
  const absl::Status buried =
      Ask<std::string>([&] {
        return objects_.Put(key, bytes,
                            {.condition = PutCondition::IfEtag(etag),
                             .timeout = timeouts_.change});
      }).status();
  return IsAnswer(buried) || absl::IsUnknown(buried) ? buried : Away(buried);
}

int64_t SessionObjects::RemoveOldMark(const std::string& key,
                                      const SessionObject& mark) {
  const int64_t due_ms = mark.written_ms + kMarkLifeMs;
  if (unix_ms_() > due_ms) {
    objects_.Delete(key, timeouts_.look).IgnoreError();  // it is found again
  }
  return due_ms;
}

absl::StatusOr<ObjectList> SessionObjects::List(const ListOptions& options) {
  absl::StatusOr<ObjectList> list =
      Ask<ObjectList>([&] { return objects_.List(options); });
  if (!list.ok()) return Away(list.status());
  return list;
}

absl::StatusOr<std::vector<ListedObject>> SessionObjects::ListAll(
    const std::string& prefix) {
  std::vector<ListedObject> objects;
  ListOptions options = {.prefix = prefix, .timeout = timeouts_.change};
  do {
    XC_ASSIGN_OR_RETURN(const ObjectList list, List(options));
    objects.insert(objects.end(), list.objects.begin(), list.objects.end());
    options.start_after = list.next_start_after;
  } while (!options.start_after.empty());
  return objects;
}

absl::StatusOr<std::vector<SessionObjects::Found>> SessionObjects::LookAtAll(
    const std::vector<std::string>& keys) {
  std::vector<Found> found;
  for (size_t begin = 0; begin < keys.size(); begin += kGetsAtOnce) {
    const size_t n = std::min(kGetsAtOnce, keys.size() - begin);
    std::vector<absl::StatusOr<StoredObject>> answers(n, StoredObject());
    std::latch done(static_cast<ptrdiff_t>(n));
    for (size_t i = 0; i < n; ++i) {
      objects_.Get(keys[begin + i],
                   {.if_none_match = "", .timeout = timeouts_.change},
                   [&, i](absl::StatusOr<StoredObject> answer) {
                     answers[i] = std::move(answer);
                     done.count_down();
                   });
    }
    done.wait();
    for (size_t i = 0; i < n; ++i) {
      const absl::StatusOr<StoredObject>& answer = answers[i];
      if (absl::IsNotFound(answer.status())) {
        found.emplace_back();
        continue;
      }
      if (!answer.ok()) return Away(answer.status());
      found.push_back(FoundIn(*answer, ""));
      if (found.back().what == Found::What::kUnreadable) {
        XC_ASSIGN_OR_RETURN(found.back(), Look(keys[begin + i], ""));
      }
    }
  }
  return found;
}

}  // namespace xcache
