#include "cachestore/shared/page_sweep.h"

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace xcache {
namespace {

// Its calls hold on to it, one at a time.
class Sweep : public std::enable_shared_from_this<Sweep> {
 public:
  Sweep(ObjectStore& store, PageSweepOptions options,
        std::function<void(const std::string& key)> deleted,
        std::function<void(absl::Status)> done)
      : store_(store),
        options_(std::move(options)),
        deleted_(std::move(deleted)),
        done_(std::move(done)) {}

  // What the store says it is now: the time of an object that is put now.
  void ReadClock() {
    store_.Put(options_.clock_key, absl::StrCat(options_.now_ms),
               {.timeout = options_.timeout},
               [self = shared_from_this()](absl::StatusOr<std::string> etag) {
                 if (!etag.ok()) return self->done_(etag.status());
                 self->ListClock();
               });
  }

 private:
  void ListClock() {
    store_.List({.prefix = options_.clock_key,
                 .max_keys = 1,
                 .timeout = options_.timeout},
                [self = shared_from_this()](absl::StatusOr<ObjectList> list) {
                  self->CompareClocks(std::move(list));
                });
  }

  void CompareClocks(absl::StatusOr<ObjectList> list) {
    if (!list.ok()) return done_(list.status());
    if (list->objects.empty() ||
        list->objects.front().key != options_.clock_key) {
      return done_(absl::UnavailableError(
          absl::StrCat("sweep: expected the object ", options_.clock_key,
                       " that was put, found none")));
    }
    store_now_ms_ = list->objects.front().modified_unix_ms;
    const int64_t apart = store_now_ms_ - options_.now_ms;
    if (std::abs(apart) > options_.tolerance.count()) {
      return done_(absl::FailedPreconditionError(absl::StrCat(
          "sweep: expected the shared store's clock within ",
          options_.tolerance.count(), " ms of this machine's, found it ",
          std::abs(apart), " ms ", apart > 0 ? "ahead" : "behind")));
    }
    ListFrom("");
  }

  void ListFrom(std::string start_after) {
    store_.List({.prefix = options_.folder,
                 .start_after = std::move(start_after),
                 .timeout = options_.timeout},
                [self = shared_from_this()](absl::StatusOr<ObjectList> list) {
                  if (!list.ok()) return self->done_(list.status());
                  self->next_start_after_ = list->next_start_after;
                  for (ListedObject& object : list->objects) {
                    const int64_t age =
                        self->store_now_ms_ - object.modified_unix_ms;
                    if (age >= self->options_.life.count()) {
                      self->old_.push_back(std::move(object.key));
                    }
                  }
                  self->DeleteNext();
                });
  }

  void DeleteNext() {
    if (old_.empty()) {
      if (next_start_after_.empty()) return done_(absl::OkStatus());
      return ListFrom(std::exchange(next_start_after_, {}));
    }
    std::string key = std::move(old_.back());
    old_.pop_back();
    store_.Delete(key, options_.timeout,
                  [self = shared_from_this(), key](const absl::Status& status) {
                    if (!status.ok()) return self->done_(status);
                    self->deleted_(key);
                    self->DeleteNext();
                  });
  }

  ObjectStore& store_;
  const PageSweepOptions options_;
  const std::function<void(const std::string& key)> deleted_;
  const std::function<void(absl::Status)> done_;
  int64_t store_now_ms_ = 0;
  std::string next_start_after_;
  std::vector<std::string> old_;
};

}  // namespace

void StartPageSweep(ObjectStore& store, PageSweepOptions options,
                    std::function<void(const std::string& key)> deleted,
                    std::function<void(absl::Status)> done) {
  std::make_shared<Sweep>(store, std::move(options), std::move(deleted),
                          std::move(done))
      ->ReadClock();
}

}  // namespace xcache
