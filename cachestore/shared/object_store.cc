#include "cachestore/shared/object_store.h"

#include <charconv>
#include <future>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

constexpr char kRetryAfterUrl[] = "xcache/retry-after-ms";

// Starts a call with a callback, and waits for what that is given.
template <typename Result, typename Start>
Result Await(const Start& start) {
  std::promise<Result> promise;
  auto result = promise.get_future();
  start([&promise](Result r) { promise.set_value(std::move(r)); });
  return result.get();
}

}  // namespace

absl::StatusOr<StoredObject> ObjectStore::Get(const std::string& key,
                                              const GetOptions& options) {
  return Await<absl::StatusOr<StoredObject>>(
      [&](GetDone done) { Get(key, options, std::move(done)); });
}

absl::StatusOr<std::string> ObjectStore::Put(const std::string& key,
                                             std::string bytes,
                                             const PutOptions& options) {
  return Await<absl::StatusOr<std::string>>([&](PutDone done) {
    Put(key, std::move(bytes), options, std::move(done));
  });
}

absl::Status ObjectStore::Delete(const std::string& key,
                                 std::chrono::milliseconds timeout) {
  return Await<absl::Status>(
      [&](DeleteDone done) { Delete(key, timeout, std::move(done)); });
}

absl::StatusOr<ObjectList> ObjectStore::List(const ListOptions& options) {
  return Await<absl::StatusOr<ObjectList>>(
      [&](ListDone done) { List(options, std::move(done)); });
}

std::optional<std::chrono::milliseconds> RetryAfter(
    const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  if (!payload) return std::nullopt;
  const std::string text(*payload);
  int64_t ms = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), ms);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return std::chrono::milliseconds(ms);
}

void SetRetryAfter(absl::Status& status, std::chrono::milliseconds after) {
  status.SetPayload(kRetryAfterUrl,
                    absl::Cord(absl::StrCat(int64_t{after.count()})));
}

}  // namespace xcache
