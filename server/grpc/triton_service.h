// The RPCs of inference.GRPCInferenceService, for clients of Triton: thin doors
// to the core, as those of xcache.v1 are.
#ifndef XCACHE_SERVER_GRPC_TRITON_SERVICE_H_
#define XCACHE_SERVER_GRPC_TRITON_SERVICE_H_

#include <string>

#include "inference/inference_service.grpc.pb.h"
#include "server/grpc/call.h"
#include "server/grpc/triton_answer.h"

namespace xcache {

class TritonService final
    : public ::inference::GRPCInferenceService::CallbackService {
 public:
  // `model`: the name that clients call it by.
  TritonService(const ServiceDeps& deps, const std::string& model)
      : deps_(deps) {
    model_.name = model;
  }

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* ServerLive(Context* context,
                      const ::inference::ServerLiveRequest* request,
                      ::inference::ServerLiveResponse* response) override;
  Reactor* ServerReady(Context* context,
                       const ::inference::ServerReadyRequest* request,
                       ::inference::ServerReadyResponse* response) override;
  Reactor* ModelReady(Context* context,
                      const ::inference::ModelReadyRequest* request,
                      ::inference::ModelReadyResponse* response) override;
  Reactor* ServerMetadata(
      Context* context, const ::inference::ServerMetadataRequest* request,
      ::inference::ServerMetadataResponse* response) override;
  Reactor* ModelMetadata(Context* context,
                         const ::inference::ModelMetadataRequest* request,
                         ::inference::ModelMetadataResponse* response) override;
  Reactor* ModelConfig(Context* context,
                       const ::inference::ModelConfigRequest* request,
                       ::inference::ModelConfigResponse* response) override;
  Reactor* ModelStatistics(
      Context* context, const ::inference::ModelStatisticsRequest* request,
      ::inference::ModelStatisticsResponse* response) override;
  Reactor* RepositoryIndex(
      Context* context, const ::inference::RepositoryIndexRequest* request,
      ::inference::RepositoryIndexResponse* response) override;
  Reactor* ModelInfer(Context* context,
                      const ::inference::ModelInferRequest* request,
                      ::inference::ModelInferResponse* response) override;
  grpc::ServerBidiReactor<::inference::ModelInferRequest,
                          ::inference::ModelStreamInferResponse>*
  ModelStreamInfer(Context* context) override;

 private:
  // Of what is known without a core, loading or not: nothing is counted.
  Reactor* Answer(Context& context, const absl::Status& status) const;

  const ServiceDeps deps_;
  TritonModel model_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_TRITON_SERVICE_H_
