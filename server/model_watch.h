// Notices that the model's file is no longer the one that was loaded: replaced,
// written over, cut short or gone. Serving does not depend on it - the weights
// are the process's own, and the fingerprint is of the bytes they were read
// from - so answers and pages stay true and sealing goes on. What it tells is
// that a restart would serve another model, or none.
#ifndef XCACHE_SERVER_MODEL_WATCH_H_
#define XCACHE_SERVER_MODEL_WATCH_H_

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "engine/base/file.h"
#include "engine/base/mutex.h"

namespace xcache {

class ModelWatch {
 public:
  // Looks every `interval`, from now on, and logs each change once.
  ModelWatch(std::string path, const FileStamp& loaded,
             std::chrono::milliseconds interval);
  ~ModelWatch();
  ModelWatch(const ModelWatch&) = delete;
  ModelWatch& operator=(const ModelWatch&) = delete;

  // Whether the file differs now. It may be put back.
  bool changed() const { return changed_; }

 private:
  void Loop();
  void Look();

  const std::string path_;
  const FileStamp loaded_;
  const std::chrono::milliseconds interval_;
  std::atomic<bool> changed_{false};

  Mutex mu_;
  CondVar stopping_;
  bool stop_ XC_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace xcache

#endif  // XCACHE_SERVER_MODEL_WATCH_H_
