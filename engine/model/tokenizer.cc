#include "engine/model/tokenizer.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/bpe_tokenizer.h"
#include "engine/model/spm_tokenizer.h"

namespace xcache {
namespace {

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateByModel(
    const GgufFile& gguf) {
  XC_ASSIGN_OR_RETURN(const std::string model,
                      gguf.GetString("tokenizer.ggml.model"));
  if (model == "gpt2") return CreateBpeTokenizer(gguf);
  if (model == "llama") return CreateSpmTokenizer(gguf);
  return absl::UnimplementedError(
      absl::StrCat(gguf.path(),
                   ": tokenizer.ggml.model: expected gpt2 (byte-level BPE) or "
                   "llama (SentencePiece), found ",
                   absl::CHexEscape(model)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Create(
    const GgufFile& gguf) {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      CreateByModel(gguf);
  // A missing key is a malformed vocabulary.
  if (absl::IsNotFound(tokenizer.status())) {
    return absl::InvalidArgumentError(tokenizer.status().message());
  }
  return tokenizer;
}

}  // namespace xcache
