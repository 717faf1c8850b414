#include "server/frontend/text_input.h"

#include "absl/strings/str_cat.h"
#include "engine/base/field_error.h"
#include "engine/base/status_macros.h"
#include "engine/base/utf8.h"

namespace xcache {

absl::Status CheckText(std::string_view field, const std::string& text,
                       size_t max_bytes) {
  if (text.size() > max_bytes) {
    return FieldError(field, absl::StrCat("at most ", max_bytes, " bytes"),
                      absl::StrCat(text.size()));
  }
  // A wire's library checks what it parses; what is made in the process it
  // does not.
  if (!IsUtf8(text)) return FieldError(field, "UTF-8", "other bytes");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> EncodeText(std::string_view field,
                                                const std::string& text,
                                                bool parse_special,
                                                bool add_bos,
                                                const Tokenizer& tokenizer) {
  XC_RETURN_IF_ERROR(CheckText(field, text, kMaxTextBytes));
  XC_ASSIGN_OR_RETURN(std::vector<TokenId> out,
                      parse_special ? tokenizer.EncodeWithSpecial(text)
                                    : tokenizer.Encode(text));
  if (add_bos && tokenizer.bos() >= 0) {
    out.insert(out.begin(), tokenizer.bos());
  }
  return out;
}

}  // namespace xcache
