// What clients of OpenAI's API ask for, as the core's values. Nothing here
// blocks, and nothing here trusts a byte. What is not offered is refused by its
// name; fields that nobody knows are passed over.
#ifndef XCACHE_SERVER_HTTP_OPENAI_REQUEST_H_
#define XCACHE_SERVER_HTTP_OPENAI_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/chat_template.h"
#include "engine/model/tool_format.h"
#include "engine/pooling.h"
#include "engine/types.h"
#include "nlohmann/json.hpp"
#include "server/http/completion_params.h"

namespace xcache {

struct ChatCompletion : CompletionParams {
  // Calls and results are in their texts (tool_format.h); what the prompt says
  // of `tools` is not there yet (AddTools).
  std::vector<ChatMessage> messages;
  std::vector<ToolDef> tools;  // that the answer may call
};

// Either of the two.
struct Prompt {
  bool is_text = false;
  std::string text;
  std::vector<TokenId> tokens;
};

struct TextCompletion : CompletionParams {
  std::vector<Prompt> prompts;
  bool echo = false;     // the prompt comes before its answer
  bool generate = true;  // false: max_tokens is 0, for the echo alone
  int top_logprobs = 0;
};

struct Embedding {
  std::string model;  // empty: not said
  std::vector<Prompt> inputs;
  std::optional<Pooling> pooling;  // unset: as the model's file has it
  // Of a vector, the first so many, made of unit length again; unset: all.
  std::optional<int64_t> dimensions;
  bool base64 = false;  // of FP32, little-endian; else numbers
};
inline constexpr size_t kMaxEmbeddings = 2048;  // OpenAI's

// `vocab_size`: of the model, for what names tokens. INVALID_ARGUMENT, with
// FieldOf (json_body.h).
absl::StatusOr<ChatCompletion> ToChatCompletion(const nlohmann::json& body,
                                                int vocab_size);
absl::StatusOr<TextCompletion> ToTextCompletion(const nlohmann::json& body,
                                                int vocab_size);
// `width`: of the model, which `dimensions` may be at most.
absl::StatusOr<Embedding> ToEmbedding(const nlohmann::json& body,
                                      int vocab_size, int width);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_REQUEST_H_
