// The codecs that are open, by their canonical specs: at most so many, their
// memory promised by the budget before it is taken (rule R5). One more closes
// the one that was used longest ago and that nobody holds; specs come from
// clients, so without an end they would take any amount.
//
// Thread-safe, but for Open, which is the engine's thread's.
#ifndef XCACHE_SERVER_CORE_CACHE_CODEC_TABLE_H_
#define XCACHE_SERVER_CORE_CACHE_CODEC_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"

namespace xcache {

// Keeps a codec open. Sequences do not: who holds one of a codec holds this.
using CodecRef = std::shared_ptr<const CodecHandle>;

class CodecTable {
 public:
  // `max_open` is at least 1.
  CodecTable(MemoryBudget& memory, int max_open)
      : memory_(memory), max_open_(max_open) {}

  // Null: not open.
  CodecRef Find(std::string_view spec) const;
  // Bytes of a page of the codec; 0 where it was never opened.
  size_t PageBytes(std::string_view spec) const;

  // Warns, once, of a codec that costs more than it has to. RESOURCE_EXHAUSTED:
  // all that may be open are held, or there is no memory; else the engine's
  // errors. REQUIRES: the engine is this thread's.
  absl::StatusOr<CodecRef> Open(Engine& engine, std::string_view spec,
                                const ProgressFn& progress);

 private:
  struct Entry {
    CodecRef codec;
    MemoryReservation memory;
    uint64_t used = 0;  // tick
  };

  CodecRef FindLocked(std::string_view spec) const XC_REQUIRES(mu_);
  // False: every codec is held.
  bool CloseOldest(Engine& engine) XC_EXCLUDES(mu_);
  absl::StatusOr<MemoryReservation> MakeRoom(Engine& engine,
                                             std::string_view spec);
  std::string OpenSpecs() const;

  MemoryBudget& memory_;
  const int max_open_;
  mutable Mutex mu_;
  mutable uint64_t tick_ XC_GUARDED_BY(mu_) = 0;
  mutable std::map<std::string, Entry, std::less<>> entries_ XC_GUARDED_BY(mu_);
  // Spellings of canonical specs, and sizes of pages also of closed codecs:
  // small, and started anew where they have become many.
  std::map<std::string, std::string, std::less<>> spellings_ XC_GUARDED_BY(mu_);
  std::map<std::string, size_t, std::less<>> page_bytes_ XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_CODEC_TABLE_H_
