#include "server/frontend/file_watcher.h"

#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"

namespace xcache {
namespace {

// Differs where a file was written, replaced, removed or put back.
std::string StampOf(const std::vector<std::string>& files) {
  std::string stamp;
  for (const std::string& file : files) {
    struct stat info {};
    if (stat(file.c_str(), &info) != 0) {
      stamp += "none;";
      continue;
    }
    absl::StrAppend(&stamp, info.st_dev, ",", info.st_ino, ",", info.st_size,
                    ",", info.st_mode, ",", info.st_mtim.tv_sec, ",",
                    info.st_mtim.tv_nsec, ";");
  }
  return stamp;
}

}  // namespace

struct FileWatcher::Entry {
  explicit Entry(Watched in)
      : watched(std::move(in)), loaded(StampOf(watched.files)), seen(loaded) {}
  Entry(Entry&& other) noexcept
      : watched(std::move(other.watched)),
        loaded(std::move(other.loaded)),
        seen(std::move(other.seen)) {}

  const Watched watched;
  std::string loaded, seen;  // stamps; the thread's
  std::atomic<uint64_t> reloaded{0}, failed{0};
};

FileWatcher::FileWatcher(std::vector<Watched> watched,
                         std::chrono::milliseconds interval)
    : interval_(interval) {
  for (Watched& one : watched) entries_.emplace_back(std::move(one));
  thread_ = std::thread([this] { Run(); });
}

FileWatcher::~FileWatcher() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  stopping_.SignalAll();
  thread_.join();
}

void FileWatcher::Run() {
  while (true) {
    {
      MutexLock lock(mu_);
      if (!stop_) stopping_.WaitFor(mu_, interval_);
      if (stop_) return;
    }
    for (Entry& entry : entries_) {
      std::string now = StampOf(entry.watched.files);
      // Only once it is still: a certificate and its key are replaced one
      // after the other.
      if (now == entry.seen && now != entry.loaded) {
        entry.loaded = now;
        Reload(entry);
      }
      entry.seen = std::move(now);
    }
  }
}

void FileWatcher::ReloadAll() {
  for (Entry& entry : entries_) Reload(entry);
}

void FileWatcher::Reload(Entry& entry) {
  const absl::Status status = entry.watched.reload();
  ++(status.ok() ? entry.reloaded : entry.failed);
  if (status.ok()) {
    XC_LOG_INFO("credentials reloaded", "what={}",
                LogValue(entry.watched.what));
  } else {
    XC_LOG_ERROR("credentials not reloaded", "what={} error={} using=old",
                 LogValue(entry.watched.what),
                 LogValue(std::string(status.message())));
  }
}

std::vector<FileWatcher::Count> FileWatcher::counts() const {
  std::vector<Count> out;
  for (const Entry& entry : entries_) {
    out.push_back({entry.watched.what, entry.reloaded, entry.failed});
  }
  return out;
}

}  // namespace xcache
