// A codec whose layers depend on each other: it takes all of them at once. Not
// for other rooms.
#ifndef XCACHE_ENGINE_XCACHE_DEPENDENT_LAYERS_H_
#define XCACHE_ENGINE_XCACHE_DEPENDENT_LAYERS_H_

#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/codec.h"

namespace xcache {

class DependentLayers : public Codec {
 public:
  using Codec::Codec;

  bool layers_independent() const final { return false; }
  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          BlockInfo block,
                          std::span<uint8_t> payload) const final {
    XC_RETURN_IF_ERROR(CheckRange(range));
    return SealRemat(rows, block, payload, nullptr, nullptr);
  }
  // Without a default: Codec's would come back to SealLayers.
  absl::Status SealRemat(const std::function<LayerRows(int layer)>& rows,
                         BlockInfo block, std::span<uint8_t> payload,
                         const RematSink& sink,
                         const ParallelForFn& parallel) const override = 0;

 protected:
  absl::Status CheckRange(LayerRange range) const {
    if (range.begin == 0 && range.end == num_layers()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(
        "codec ", spec().name, ": its layers depend on each other: expected ",
        "all of them, found [", range.begin, ", ", range.end, ")"));
  }
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_DEPENDENT_LAYERS_H_
