// SentencePiece-style BPE (tokenizer.ggml.model "llama"): characters are the
// first symbols, neighbours merge into the token with the best score, and what
// is no token becomes byte tokens.
#ifndef XCACHE_ENGINE_MODEL_SPM_TOKENIZER_H_
#define XCACHE_ENGINE_MODEL_SPM_TOKENIZER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace xcache {

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateSpmTokenizer(
    const GgufFile& gguf);

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_SPM_TOKENIZER_H_
