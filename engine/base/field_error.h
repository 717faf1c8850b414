// How a value that came from outside is refused: one sentence for every field
// of every request, document and parameter.
#ifndef XCACHE_ENGINE_BASE_FIELD_ERROR_H_
#define XCACHE_ENGINE_BASE_FIELD_ERROR_H_

#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace xcache {

// INVALID_ARGUMENT "<field> must be <takes>, not <found>":
//
//   return FieldError("ttl", absl::StrCat("in [0, ", kMaxTtl, "]"), ttl);
absl::Status FieldError(std::string_view field, std::string_view takes,
                        const absl::AlphaNum& found);

}  // namespace xcache

#endif  // XCACHE_ENGINE_BASE_FIELD_ERROR_H_
