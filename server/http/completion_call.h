// A completion under way: one or more requests of the core, whose answers
// become one answer, whole or as a stream of events.
#ifndef XCACHE_SERVER_HTTP_COMPLETION_CALL_H_
#define XCACHE_SERVER_HTTP_COMPLETION_CALL_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/core/request.h"
#include "server/frontend/answer_reader.h"
#include "server/frontend/frontend_call.h"
#include "server/http/exchange.h"
#include "server/http/openai_call.h"
#include "server/http/openai_request.h"
#include "server/http/openai_response.h"
#include "server/metrics/metrics.h"

namespace xcache {

class CompletionCall final : public OpenAiCall {
 public:
  // `method`: kChatCompletions or kCompletions.
  CompletionCall(const OpenAiOptions& options, Method method,
                 std::shared_ptr<Exchange> exchange)
      : OpenAiCall(options, method, std::move(exchange)) {}

 private:
  class Sink;
  class EchoSink;

  // What becomes of one request of the core.
  struct Choice {
    std::string text;                  // not of a stream
    std::vector<SampledToken> tokens;  // the same, where they are asked for
    std::string echo;                  // the prompt's text
    std::vector<TokenId> prompt;       // where its logprobs are asked for
    std::vector<SampledToken> prompt_tokens;
    TextLogprobs old_logprobs;
    bool begun = false;                  // something of it was sent
    std::optional<AnswerReader> reader;  // of chats
    FinalInfo final;
    bool has_calls() const { return reader && reader->num_calls() > 0; }
  };

  bool is_chat() const { return method_ == Method::kChatCompletions; }
  const CompletionParams& params() const {
    return is_chat() ? static_cast<const CompletionParams&>(chat_) : text_;
  }

  std::shared_ptr<CompletionCall> self() {
    return std::static_pointer_cast<CompletionCall>(shared_from_this());
  }

  absl::Status Submit() override;
  absl::Status SubmitTexts();
  void SetHead();

  // From the core's threads: a choice's next text; its end, and, for a prompt's
  // logprobs, theirs.
  void OnDelta(size_t index, std::string_view text,
               std::span<const SampledToken> tokens) XC_EXCLUDES(mu_);
  void OnPart(size_t index, const absl::Status& status, const FinalInfo* final,
              std::vector<SampledToken> prompt_tokens) XC_EXCLUDES(mu_);

  void Complete() XC_EXCLUDES(mu_);
  void EndStream(const FrontendCall::Ending& ending) XC_REQUIRES(mu_);

  // A choice's delta for each part of the text that it has next.
  std::vector<std::string> Deltas(Choice& choice, std::string_view text,
                                  bool at_end) const;
  void SendChunk(size_t index, Choice& choice, std::string_view text,
                 std::span<const SampledToken> tokens, const FinalInfo* final)
      XC_REQUIRES(mu_);
  nlohmann::json WholeChoice(size_t index, Choice& choice) const;
  nlohmann::json WholeMessage(Choice& choice) const;
  nlohmann::json WholeAnswer() XC_REQUIRES(mu_);
  Usage UsageOf() const XC_REQUIRES(mu_);

  // Set before anything is submitted.
  ChatCompletion chat_;
  TextCompletion text_;
  ObjectHead head_;
  std::string chunk_begin_, chunk_end_;

  std::vector<Choice> choices_ XC_GUARDED_BY(mu_);
  size_t parts_left_ XC_GUARDED_BY(mu_) = 0;
  absl::Status failure_ XC_GUARDED_BY(mu_);  // the first
  int64_t retry_after_ms_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_COMPLETION_CALL_H_
