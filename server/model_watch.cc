#include "server/model_watch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"

namespace xcache {
namespace {

// What differs, for a person.
std::string Difference(const FileStamp& loaded,
                       const absl::StatusOr<FileStamp>& now) {
  if (!now.ok()) return std::string(now.status().message());
  if (now->inode != loaded.inode || now->device != loaded.device) {
    return "another file stands there";
  }
  if (now->size != loaded.size) {
    return absl::StrCat("it has ", now->size, " bytes, had ", loaded.size);
  }
  return "it was written to";
}

}  // namespace

ModelWatch::ModelWatch(std::string path, const FileStamp& loaded,
                       std::chrono::milliseconds interval)
    : path_(std::move(path)),
      loaded_(loaded),
      interval_(interval),
      thread_([this] { Loop(); }) {}

ModelWatch::~ModelWatch() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    stopping_.SignalAll();
  }
  thread_.join();
}

void ModelWatch::Loop() {
  while (true) {
    Look();
    MutexLock lock(mu_);
    if (!stop_) stopping_.WaitFor(mu_, interval_);
    if (stop_) return;
  }
}

void ModelWatch::Look() {
  const absl::StatusOr<FileStamp> now = StampOf(path_);
  const bool changed = !now.ok() || *now != loaded_;
  if (changed == changed_.exchange(changed)) return;
  if (changed) {
    XC_LOG_WARN(
        "the model's file has changed; what was loaded is served on, a restart "
        "would load what is there now",
        "file={} why={}", LogValue(path_), LogValue(Difference(loaded_, now)));
  } else {
    XC_LOG_INFO("the model's file is the one that was loaded again", "file={}",
                LogValue(path_));
  }
}

}  // namespace xcache
