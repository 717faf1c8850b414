// The RPCs of xcache.v1.Inference, each a thin door to the core.
#ifndef XCACHE_SERVER_GRPC_INFERENCE_SERVICE_H_
#define XCACHE_SERVER_GRPC_INFERENCE_SERVICE_H_

#include "server/grpc/call.h"
#include "xcache/v1/inference.grpc.pb.h"

namespace xcache {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(const ServiceDeps& deps) : deps_(deps) {}

  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(
      grpc::CallbackServerContext* context,
      const v1::ChatRequest* request) override;
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(
      grpc::CallbackServerContext* context,
      const v1::DetokenizeRequest* request,
      v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(
      grpc::CallbackServerContext* context,
      const v1::GetModelInfoRequest* request,
      v1::GetModelInfoResponse* response) override;

 private:
  const ServiceDeps deps_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_INFERENCE_SERVICE_H_
