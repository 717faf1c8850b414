// A response under way: one turn of the core, which goes on from a stored
// response or a conversation, and is stored by the same commit that its session
// is.
#ifndef XCACHE_SERVER_HTTP_RESPONSE_CALL_H_
#define XCACHE_SERVER_HTTP_RESPONSE_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "server/core/request.h"
#include "server/http/openai_call.h"
#include "server/http/response_output.h"
#include "server/http/responses_request.h"

namespace xcache {

class ResponseCall final : public OpenAiCall {
 public:
  ResponseCall(const OpenAiOptions& options, std::shared_ptr<Exchange> exchange)
      : OpenAiCall(options, Method::kCreateResponse, std::move(exchange)) {}

 private:
  class Sink;

  absl::Status Submit() override;
  void Refuse(const absl::Status& status, int64_t retry_after_ms) override;

  // What the turn goes on from: of `request_`, the session and its part.
  absl::Status Plan();
  // Another session, which begins as the planned one did.
  void PlanBranch();
  // What the conversation is to begin with, where it `had` instructions and the
  // request brings none.
  std::string SystemPrompt(const std::string& had) const;
  void SubmitTurn() XC_EXCLUDES(mu_);

  // From the core's threads.
  void OnDelta(std::string_view text, std::span<const SampledToken> tokens)
      XC_EXCLUDES(mu_);
  void OnFinish(const absl::Status& status, const FinalInfo& final)
      XC_EXCLUDES(mu_);
  void Complete(const absl::Status& status, int64_t retry_after_ms,
                std::string_view details) XC_EXCLUDES(mu_);

  // Events, in the order of their numbers.
  void Emit(std::string_view type, nlohmann::json event) XC_REQUIRES(mu_);
  void EmitFirst() XC_REQUIRES(mu_);
  // More of the output, and the log-probabilities of its tokens.
  void Say(const std::vector<OutputReader::Part>& parts,
           nlohmann::json logprobs) XC_REQUIRES(mu_);
  nlohmann::json Place(size_t index) const XC_REQUIRES(mu_);
  void EmitBegin(size_t index) XC_REQUIRES(mu_);
  void EmitEnd(size_t index, std::string_view status) XC_REQUIRES(mu_);
  void EmitLast() XC_REQUIRES(mu_);
  nlohmann::json Logprobs(std::span<const SampledToken> tokens) const;
  // As far as it is there.
  nlohmann::json Object(std::string_view status) const XC_REQUIRES(mu_);

  // On the worker's thread, until it is submitted, and then read alone.
  ResponseRequest request_;
  ChatTurn plan_;
  // Where another turn of the session wins, this one goes on elsewhere.
  bool may_branch_ = false;
  std::string name_;     // of its note
  std::string session_;  // where it is stored
  nlohmann::json said_;

  bool begun_ XC_GUARDED_BY(mu_) = false;  // an event of it was sent
  int64_t next_event_ XC_GUARDED_BY(mu_) = 0;
  std::optional<OutputReader> output_ XC_GUARDED_BY(mu_);
  std::vector<SampledToken> tokens_ XC_GUARDED_BY(mu_);
  AnswerNote note_ XC_GUARDED_BY(mu_);
  nlohmann::json figures_
      XC_GUARDED_BY(mu_);  // of an event, not of what is stored
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_RESPONSE_CALL_H_
