// ModelStreamInfer: requests as they come, several at once, and their responses
// as they are made, at the client's pace (server/frontend/output_queue.h).
#ifndef XCACHE_SERVER_GRPC_TRITON_STREAM_H_
#define XCACHE_SERVER_GRPC_TRITON_STREAM_H_

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "inference/inference_service.pb.h"
#include "server/frontend/output_queue.h"
#include "server/frontend/stream_watchdog.h"
#include "server/grpc/triton_answer.h"

namespace xcache {

// What is written one after the other.
struct TritonResponses {
  std::vector<::inference::ModelStreamInferResponse> messages;
};
void Join(TritonResponses more, TritonResponses* into);

class TritonStream final
    : public grpc::ServerBidiReactor<::inference::ModelInferRequest,
                                     ::inference::ModelStreamInferResponse>,
      public WatchedStream,
      public std::enable_shared_from_this<TritonStream> {
 public:
  // Begins the RPC and returns its reactor, which keeps itself alive until gRPC
  // is done with it.
  static TritonStream* Start(const ServiceDeps& deps, TritonModel& model,
                             grpc::CallbackServerContext* context);

  TritonStream(const ServiceDeps& deps, TritonModel& model,
               grpc::CallbackServerContext* context);

  // gRPC's threads.
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override { cancellation_->Cancel(); }
  void OnDone() override;

  void Tick(SteadyTime now) override;

 private:
  // At once; the next is read when one of them has its answer.
  static constexpr size_t kMaxUnderWay = 64;

  void Begin(::inference::ModelInferRequest request) XC_EXCLUDES(mu_);
  void Send(::inference::ModelStreamInferResponse response);
  void End(const std::shared_ptr<TritonAnswer>& answer,
           const FrontendCall::Ending& ending) XC_EXCLUDES(mu_);
  void EndAll(const grpc::Status& status) XC_EXCLUDES(mu_);
  void Pump() XC_EXCLUDES(mu_);

  const ServiceDeps& deps_;
  TritonModel& model_;
  grpc::CallbackServerContext* const context_;  // until done_
  // The stream's; and with it, of each that is under way.
  const std::shared_ptr<Cancellation> cancellation_ =
      std::make_shared<Cancellation>();
  OutputQueue<TritonResponses> queue_;
  std::string tenant_;                      // once the first was read
  ::inference::ModelInferRequest reading_;  // while it is read: gRPC's

  Mutex mu_;
  std::shared_ptr<TritonStream> self_ XC_GUARDED_BY(mu_);
  bool done_ XC_GUARDED_BY(mu_) = false;  // gRPC has let go
  std::set<std::shared_ptr<TritonAnswer>> under_way_ XC_GUARDED_BY(mu_);
  bool read_all_ XC_GUARDED_BY(mu_) = false;
  bool paused_ XC_GUARDED_BY(mu_) = false;
  grpc::Status status_ XC_GUARDED_BY(mu_);  // before the queue's end
  // What is being written, and what comes right after it.
  TritonResponses current_ XC_GUARDED_BY(mu_);
  size_t next_ XC_GUARDED_BY(mu_) = 0;
  bool end_after_ XC_GUARDED_BY(mu_) = false;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_TRITON_STREAM_H_
