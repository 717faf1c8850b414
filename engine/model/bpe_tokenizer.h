// Byte-level BPE (tokenizer.ggml.model "gpt2"): text is split into words, each
// word's UTF-8 bytes are the first symbols, and pairs merge in the order in
// which the merges were learnt.
#ifndef XCACHE_ENGINE_MODEL_BPE_TOKENIZER_H_
#define XCACHE_ENGINE_MODEL_BPE_TOKENIZER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace xcache {

absl::StatusOr<std::unique_ptr<const Tokenizer>> CreateBpeTokenizer(
    const GgufFile& gguf);

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_BPE_TOKENIZER_H_
