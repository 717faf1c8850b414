// The codecs that were opened so far, by their canonical specs.
// Thread-safe. Only the scheduler's thread opens new ones.
#ifndef XCACHE_SERVER_CORE_CODEC_TABLE_H_
#define XCACHE_SERVER_CORE_CODEC_TABLE_H_

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/core/quality.h"

namespace xcache {

class CodecTable {
 public:
  // Null: not opened yet.
  const CodecHandle* Find(std::string_view spec) const {
    MutexLock lock(mu_);
    const auto it = handles_.find(spec);
    return it == handles_.end() ? nullptr : it->second;
  }

  // Warns, once, of a codec that costs more than it has to.
  // REQUIRES: the engine is this thread's.
  absl::StatusOr<const CodecHandle*> Open(Engine& engine, std::string_view spec,
                                          const ProgressFn& progress) {
    if (const CodecHandle* handle = Find(spec)) return handle;
    absl::StatusOr<const CodecHandle*> handle =
        engine.OpenCodec(spec, progress);
    if (!handle.ok()) return handle;
    // The canonical spec may be known where this spelling was not.
    if (Find((*handle)->spec()) == nullptr) WarnOfCost(engine, **handle);
    MutexLock lock(mu_);
    handles_.emplace((*handle)->spec(), *handle);
    return handle;
  }

 private:
  static void WarnOfCost(const Engine& engine, const CodecHandle& codec) {
    const ModelInfo& model = engine.info();
    const auto cost = CostOfMhaForm(codec.spec(), model);
    if (!cost.has_value()) return;
    const double page_bytes_per_token =
        static_cast<double>(codec.page_bytes()) / kBlockTokens;
    const std::string_view name =
        codec.spec().substr(0, codec.spec().find(':'));
    XC_LOG_WARN("codec for MHA models on a GQA model",
                "codec={} stores_times_the_values_of_gqa_form={:.2f} "
                "gqa_form={}-gqa page_bytes_per_token={:.0f} "
                "kv_fp16_bytes_per_token={} ratio={:.2f}",
                LogValue(codec.spec()), *cost, name, page_bytes_per_token,
                model.kv_fp16_bytes_per_token,
                model.kv_fp16_bytes_per_token / page_bytes_per_token);
  }

  mutable Mutex mu_;
  std::map<std::string, const CodecHandle*, std::less<>> handles_
      XC_GUARDED_BY(mu_);
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CODEC_TABLE_H_
