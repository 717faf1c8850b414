// Levels of xquant-tc by what pages come to.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_LEVEL_CHOICE_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_LEVEL_CHOICE_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "engine/xcache/transform/symbol_tables.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {

// About what the symbols of a block take at a level: the entropy of the tables
// that tokens of the middle step and activity take.
size_t ExpectSymbolBytes(const TransformLevel& level,
                         const SymbolTables& tables);

// The level, between two of the profile's, at which pages are about `ratio`
// times smaller than FP16 K/V. INVALID_ARGUMENT: beyond its coarsest or finest.
absl::StatusOr<TransformLevel> LevelOfRatio(const TransformData& data,
                                            const SymbolTables& tables,
                                            int ratio);

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_LEVEL_CHOICE_H_
