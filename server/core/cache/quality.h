// The choice for users who need not know codecs: three names, and the codec
// that each stands for. The codecs themselves are the engine's.
#ifndef XCACHE_SERVER_CORE_CACHE_QUALITY_H_
#define XCACHE_SERVER_CORE_CACHE_QUALITY_H_

#include <optional>
#include <string_view>

#include "engine/engine.h"

namespace xcache {

struct Quality {
  std::string_view name;
  // For models with fewer K/V heads than query heads, and for others.
  std::string_view gqa_codec, mha_codec;
};

// The one table of it. What each costs and saves is measured by xcache-eval
// (tests/bench/results/README.md). CONFIGURATION.md repeats it; a test compares
// them.
inline constexpr Quality kQualities[] = {
    {"lossless", "kv-fp16", "kv-fp16"},
    {"balanced", "xquant-gqa:bits=4", "xquant:bits=4"},
    {"compact", "xquant-cl-gqa:bits=2", "xquant-cl:bits=2"},
};
inline constexpr std::string_view kDefaultQuality = "balanced";

// The spec of the codec that `choice` names for this model: a quality's, or
// `choice` itself, which is then a spec already (or wrong: the engine says so).
// Borrows from `choice` or from the table.
std::string_view CodecOfChoice(std::string_view choice, const ModelInfo& model);

// How many times the values that the codec's GQA form would store the codec of
// `spec` stores on this model: more than 1 for the forms made for MHA models,
// which store X itself, on a model whose K and V together are narrower than X.
// nullopt: it costs nothing more.
std::optional<double> CostOfMhaForm(std::string_view spec,
                                    const ModelInfo& model);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_QUALITY_H_
