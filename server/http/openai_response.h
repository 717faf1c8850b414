// The core's answers as OpenAI's objects.
#ifndef XCACHE_SERVER_HTTP_OPENAI_RESPONSE_H_
#define XCACHE_SERVER_HTTP_OPENAI_RESPONSE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tokenizer.h"
#include "engine/sampler.h"
#include "nlohmann/json.hpp"
#include "server/core/request.h"

namespace xcache {

// "stop", "length" or, of an answer with calls that came to its end,
// "tool_calls".
std::string_view FinishName(FinishReason reason, bool calls = false);

// Of the tokens that are text (an end token is not, unless `with_end`):
// {"content": [{"token", "logprob", "bytes", "top_logprobs"}], "refusal":
// null}.
nlohmann::json ChatLogprobs(std::span<const SampledToken> tokens, bool with_end,
                            const Tokenizer& tokenizer);

// The older shape: "tokens", "token_logprobs", "top_logprobs", "text_offset",
// in parts as they come.
class TextLogprobs {
 public:
  // The next tokens' texts begin at the sum of those before.
  void Add(std::span<const SampledToken> tokens, bool with_end, int num_top,
           const Tokenizer& tokenizer);
  // A prompt's first token, which has no probability.
  void AddFirst(TokenId token, const Tokenizer& tokenizer);
  // What was added since the last call.
  nlohmann::json Take();

 private:
  void AddToken(const std::string& bytes);

  int64_t offset_ = 0;  // in code points
  nlohmann::json tokens_ = nlohmann::json::array();
  nlohmann::json logprobs_ = nlohmann::json::array();
  nlohmann::json top_ = nlohmann::json::array();
  nlohmann::json offsets_ = nlohmann::json::array();
};

struct Usage {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
  uint64_t cached_tokens = 0;  // of the prompt's: not computed again
};
nlohmann::json ToJson(const Usage& usage);

// What the cache did for an answer, as the member "xcache" that every front end
// of ours may add to OpenAI's objects: names as in Final of proto/xcache/v1.
nlohmann::json CacheFigures(const FinalInfo& final);

// What every object of one request begins with.
struct ObjectHead {
  std::string id;
  std::string object;  // "chat.completion.chunk"
  int64_t created = 0;
  std::string model;
  std::string fingerprint;
};
nlohmann::json ToJson(const ObjectHead& head);

// The same, as the beginning of a stream's chunk: `{"id":...,"choices":[`.
std::string ChunkBegin(const ObjectHead& head);
// `]}` with what comes between: "usage" is null in every chunk but the last of
// a stream that asked for it.
std::string ChunkEnd(bool with_null_usage);

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_OPENAI_RESPONSE_H_
