#include "server/grpc/triton_service.h"

#include <memory>
#include <utility>

#include "server/config.h"
#include "server/grpc/status.h"
#include "server/grpc/triton_request.h"
#include "server/grpc/triton_stream.h"

namespace xcache {
namespace {

class InferCall final : public grpc::ServerUnaryReactor {
 public:
  void Start(const ServiceDeps& deps, TritonModel& model,
             grpc::CallbackServerContext* context,
             const ::inference::ModelInferRequest& request,
             ::inference::ModelInferResponse* response) {
    absl::StatusOr<std::string> tenant = Arrive(deps, *context);
    if (!tenant.ok()) return Finish(ToGrpcStatus(tenant.status(), 0));
    answer_ = std::make_shared<TritonAnswer>(
        deps, model, FactsOf(Method::kModelInfer, *context, request), request,
        [response](::inference::ModelInferResponse whole) {
          *response = std::move(whole);
        },
        [this, context](const FrontendCall::Ending& ending) {
          Finish(ToGrpcStatus(ending, answer_->request_id(), *context));
        });
    const auto answer = answer_;  // `this` may go before it returns
    answer->Start(*std::move(tenant));
  }
  void OnCancel() override {
    if (answer_ != nullptr) answer_->Cancel();
  }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<TritonAnswer> answer_;
};

}  // namespace

TritonService::Reactor* TritonService::Answer(
    Context& context, const absl::Status& status) const {
  Reactor* const reactor = context.DefaultReactor();
  const absl::StatusOr<std::string> tenant = Arrive(deps_, context);
  reactor->Finish(ToGrpcStatus(tenant.ok() ? status : tenant.status(), 0));
  return reactor;
}

TritonService::Reactor* TritonService::ServerLive(
    Context* context, const ::inference::ServerLiveRequest* /*request*/,
    ::inference::ServerLiveResponse* response) {
  response->set_live(true);
  return Answer(*context, absl::OkStatus());
}

TritonService::Reactor* TritonService::ServerReady(
    Context* context, const ::inference::ServerReadyRequest* /*request*/,
    ::inference::ServerReadyResponse* response) {
  response->set_ready(deps_.frontend->gate.is_open());
  return Answer(*context, absl::OkStatus());
}

TritonService::Reactor* TritonService::ModelReady(
    Context* context, const ::inference::ModelReadyRequest* request,
    ::inference::ModelReadyResponse* response) {
  response->set_ready(
      deps_.frontend->gate.is_open() &&
      CheckTritonModel(request->name(), request->version(), model_.name).ok());
  return Answer(*context, absl::OkStatus());
}

TritonService::Reactor* TritonService::ServerMetadata(
    Context* context, const ::inference::ServerMetadataRequest* /*request*/,
    ::inference::ServerMetadataResponse* response) {
  response->set_name("xcache");
  response->set_version(std::string(kServerVersion));
  for (const char* extension :
       {"binary_tensor_data", "model_configuration", "model_repository",
        "parameters", "sequence", "statistics"}) {
    response->add_extensions(extension);
  }
  return Answer(*context, absl::OkStatus());
}

TritonService::Reactor* TritonService::ModelMetadata(
    Context* context, const ::inference::ModelMetadataRequest* request,
    ::inference::ModelMetadataResponse* response) {
  Describe(model_.name, response);
  return Answer(*context, CheckTritonModel(request->name(), request->version(),
                                           model_.name));
}

TritonService::Reactor* TritonService::ModelConfig(
    Context* context, const ::inference::ModelConfigRequest* request,
    ::inference::ModelConfigResponse* response) {
  Describe(model_.name, response->mutable_config());
  return Answer(*context, CheckTritonModel(request->name(), request->version(),
                                           model_.name));
}

TritonService::Reactor* TritonService::ModelStatistics(
    Context* context, const ::inference::ModelStatisticsRequest* request,
    ::inference::ModelStatisticsResponse* response) {
  ::inference::ModelStatistics& of_model = *response->add_model_stats();
  model_.statistics.Fill(&of_model);
  of_model.set_name(model_.name);
  of_model.set_version(std::string(kTritonVersion));
  return Answer(
      *context,
      request->name().empty()
          ? absl::OkStatus()
          : CheckTritonModel(request->name(), request->version(), model_.name));
}

TritonService::Reactor* TritonService::RepositoryIndex(
    Context* context, const ::inference::RepositoryIndexRequest* request,
    ::inference::RepositoryIndexResponse* response) {
  const bool ready = deps_.frontend->gate.is_open();
  if (ready || !request->ready()) {
    auto* const model = response->add_models();
    model->set_name(model_.name);
    model->set_version(std::string(kTritonVersion));
    model->set_state(ready ? "READY" : "LOADING");
  }
  return Answer(*context, absl::OkStatus());
}

TritonService::Reactor* TritonService::ModelInfer(
    Context* context, const ::inference::ModelInferRequest* request,
    ::inference::ModelInferResponse* response) {
  auto* const call = new InferCall;
  call->Start(deps_, model_, context, *request, response);
  return call;
}

grpc::ServerBidiReactor<::inference::ModelInferRequest,
                        ::inference::ModelStreamInferResponse>*
TritonService::ModelStreamInfer(Context* context) {
  return TritonStream::Start(deps_, model_, context);
}

}  // namespace xcache
