// The codecs that were opened so far, by their canonical specs.
// Thread-safe. Only the scheduler's thread opens new ones.
#ifndef XCACHE_SERVER_CORE_CODEC_TABLE_H_
#define XCACHE_SERVER_CORE_CODEC_TABLE_H_

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"

namespace xcache {

class CodecTable {
 public:
  // Null: not opened yet.
  const CodecHandle* Find(std::string_view spec) const {
    MutexLock lock(mu_);
    const auto it = handles_.find(spec);
    return it == handles_.end() ? nullptr : it->second;
  }

  // REQUIRES: the engine is this thread's.
  absl::StatusOr<const CodecHandle*> Open(Engine& engine, std::string_view spec,
                                          const ProgressFn& progress) {
    if (const CodecHandle* handle = Find(spec)) return handle;
    absl::StatusOr<const CodecHandle*> handle =
        engine.OpenCodec(spec, progress);
    if (!handle.ok()) return handle;
    MutexLock lock(mu_);
    handles_.emplace((*handle)->spec(), *handle);
    return handle;
  }

 private:
  mutable Mutex mu_;
  std::map<std::string, const CodecHandle*, std::less<>> handles_
      XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CODEC_TABLE_H_
