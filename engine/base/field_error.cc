#include "engine/base/field_error.h"

#include <string>

namespace xcache {

absl::Status FieldError(std::string_view field, std::string_view takes,
                        const absl::AlphaNum& found) {
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(field), " must be ", std::string(takes), ", not ", found));
}

}  // namespace xcache
