// Notices that files have changed (tokens, certificates), and has them read
// again. It looks once a second: cheap, and right for every kind of file
// system and of replacing, a mounted Kubernetes secret's symbolic links too.
#ifndef XCACHE_SERVER_FRONTEND_FILE_WATCHER_H_
#define XCACHE_SERVER_FRONTEND_FILE_WATCHER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"

namespace xcache {

// Thread-safe.
class FileWatcher {
 public:
  // One thing that is read from files. `reload` may be called from any thread.
  struct Watched {
    std::string what;  // "tokens", "tls", "shared"
    std::vector<std::string> files;
    std::function<absl::Status()> reload;
  };
  FileWatcher(std::vector<Watched> watched, std::chrono::milliseconds interval);
  ~FileWatcher();
  FileWatcher(const FileWatcher&) = delete;
  FileWatcher& operator=(const FileWatcher&) = delete;

  // Reads everything again now, changed or not; logs what came of it.
  void ReloadAll();

  struct Count {
    std::string what;
    uint64_t reloaded = 0;
    uint64_t failed = 0;  // what was read before is still in use
  };
  std::vector<Count> counts() const;

 private:
  struct Entry;

  void Run() XC_EXCLUDES(mu_);
  static void Reload(Entry& entry);

  const std::chrono::milliseconds interval_;
  std::vector<Entry> entries_;
  mutable Mutex mu_;
  CondVar stopping_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_FRONTEND_FILE_WATCHER_H_
