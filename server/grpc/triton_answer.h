// A request of Triton's protocol under way: let in, asked of the core, and
// answered with one response or several, whichever RPC it came by.
#ifndef XCACHE_SERVER_GRPC_TRITON_ANSWER_H_
#define XCACHE_SERVER_GRPC_TRITON_ANSWER_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "inference/inference_service.pb.h"
#include "server/core/request.h"
#include "server/frontend/frontend_call.h"
#include "server/grpc/call.h"
#include "server/grpc/triton_request.h"

namespace xcache {

// What clients asked of a model, for ModelStatistics. Thread-safe.
class TritonStatistics {
 public:
  void Count(const absl::Status& status, const FinalInfo& final)
      XC_EXCLUDES(mu_);
  void Fill(::inference::ModelStatistics* out) const XC_EXCLUDES(mu_);

 private:
  mutable Mutex mu_;
  ::inference::ModelStatistics sum_ XC_GUARDED_BY(mu_);
};

// Borrowed; outlives all calls.
struct TritonModel {
  std::string name;  // that clients call it by
  TritonStatistics statistics;
};

class TritonAnswer final : public RequestSink,
                           public std::enable_shared_from_this<TritonAnswer> {
 public:
  // Called one at a time; the end once, after all responses.
  using SendFn = std::function<void(::inference::ModelInferResponse)>;
  using EndFn = std::function<void(const FrontendCall::Ending&)>;

  TritonAnswer(const ServiceDeps& deps, TritonModel& model, CallFacts facts,
               ::inference::ModelInferRequest request, SendFn send, EndFn end);

  // `tenant`: authenticated. Keeps itself alive up to its end.
  void Start(std::string tenant);
  void Cancel() { cancellation_->Cancel(); }
  const std::string& id() const { return id_; }
  const std::string& request_id() const { return call_.request_id(); }

  // The core's.
  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override;
  void OnFinish(const absl::Status& status, const FinalInfo& final) override;

 private:
  absl::Status Submit();
  void Refuse(const absl::Status& status, int64_t retry_after_ms);
  void End(const absl::Status& status, const FinalInfo& final);

  TritonModel& model_;
  const bool may_stream_;
  const std::string id_;
  ::inference::ModelInferRequest message_;  // until it is submitted
  const SendFn send_;
  const EndFn end_;
  const std::shared_ptr<Cancellation> cancellation_ =
      std::make_shared<Cancellation>();
  FrontendCall call_;
  TritonRequest request_;  // once it is submitted
  std::string text_;       // that waits for the end
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_TRITON_ANSWER_H_
