// Embeddings under way: the texts of one request, a few of which are requests
// of the core at any time, whose vectors become one answer.
#ifndef XCACHE_SERVER_HTTP_EMBEDDING_CALL_H_
#define XCACHE_SERVER_HTTP_EMBEDDING_CALL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/core/request.h"
#include "server/frontend/request_bytes.h"
#include "server/http/exchange.h"
#include "server/http/openai_call.h"
#include "server/http/openai_request.h"
#include "server/metrics/metrics.h"

namespace xcache {

class EmbeddingCall final : public OpenAiCall {
 public:
  EmbeddingCall(const OpenAiOptions& options,
                std::shared_ptr<Exchange> exchange)
      : OpenAiCall(options, Method::kEmbeddings, std::move(exchange)) {}

 private:
  class Sink;

  absl::Status Submit() override;
  // The texts' tokens, and the memory that they and the answer take.
  absl::Status Tokenize();
  // On a worker's thread: submits as many as may be under way.
  void Feed() XC_EXCLUDES(mu_);
  // From the core's threads.
  void OnFinish(size_t index, const absl::Status& status,
                const FinalInfo& final) XC_EXCLUDES(mu_);
  // Something outside the core has failed.
  void Fail(const absl::Status& status, int64_t retry_after_ms)
      XC_EXCLUDES(mu_);
  // Whether nothing is under way and nothing more comes; true once.
  bool TakeEnd() XC_REQUIRES(mu_);
  void Complete() XC_EXCLUDES(mu_);
  std::string Body() XC_REQUIRES(mu_);

  std::shared_ptr<EmbeddingCall> self() {
    return std::static_pointer_cast<EmbeddingCall>(shared_from_this());
  }

  // Set before anything is submitted; each of `inputs_` is taken once.
  Embedding request_;
  std::vector<std::vector<TokenId>> inputs_;
  std::vector<std::shared_ptr<Cancellation>> cancellations_;
  RequestBytes::Held held_;
  size_t window_ = 1;  // requests of the core at once

  size_t next_ XC_GUARDED_BY(mu_) = 0;  // of `inputs_`, to be submitted
  size_t running_ XC_GUARDED_BY(mu_) = 0;
  bool feeding_ XC_GUARDED_BY(mu_) = false;  // Feed is to run
  std::vector<std::vector<float>> vectors_ XC_GUARDED_BY(mu_);
  FinalInfo sum_ XC_GUARDED_BY(mu_);
  absl::Status failure_ XC_GUARDED_BY(mu_);  // the first
  int64_t retry_after_ms_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_HTTP_EMBEDDING_CALL_H_
