#include "server/grpc/triton_stream.h"

#include <utility>

#include "server/grpc/status.h"

namespace xcache {
namespace {

using ::inference::ModelInferRequest;
using ::inference::ModelInferResponse;
using ::inference::ModelStreamInferResponse;

}  // namespace

void Join(TritonResponses more, TritonResponses* into) {
  for (ModelStreamInferResponse& response : more.messages) {
    into->messages.push_back(std::move(response));
  }
}

TritonStream* TritonStream::Start(const ServiceDeps& deps, TritonModel& model,
                                  grpc::CallbackServerContext* context) {
  auto self = std::make_shared<TritonStream>(deps, model, context);
  {
    MutexLock lock(self->mu_);
    self->self_ = self;
  }
  self->cancellation_->SetWaker([weak = std::weak_ptr<TritonStream>(self)] {
    const auto stream = weak.lock();
    if (stream == nullptr) return;
    std::set<std::shared_ptr<TritonAnswer>> answers;
    {
      MutexLock lock(stream->mu_);
      answers = stream->under_way_;
    }
    for (const auto& answer : answers) answer->Cancel();
  });
  deps.frontend->watchdog.Add(std::weak_ptr<WatchedStream>(self));
  self->StartRead(&self->reading_);
  return self.get();
}

TritonStream::TritonStream(const ServiceDeps& deps, TritonModel& model,
                           grpc::CallbackServerContext* context)
    : deps_(deps),
      model_(model),
      context_(context),
      queue_(deps.frontend->stream_limits, cancellation_) {}

void TritonStream::OnReadDone(bool ok) {
  if (!ok) {
    bool idle = false;
    {
      MutexLock lock(mu_);
      read_all_ = true;
      idle = under_way_.empty();
    }
    if (idle) EndAll(grpc::Status::OK);
    return;
  }
  if (tenant_.empty()) {
    absl::StatusOr<std::string> tenant = Arrive(deps_, *context_);
    if (!tenant.ok()) return EndAll(ToGrpcStatus(tenant.status(), 0));
    tenant_ = *std::move(tenant);
  }
  Begin(std::exchange(reading_, ModelInferRequest()));
  {
    MutexLock lock(mu_);
    paused_ = under_way_.size() >= kMaxUnderWay;
    if (paused_) return;
  }
  StartRead(&reading_);
}

void TritonStream::Begin(ModelInferRequest request) {
  CallFacts facts = FactsOf(Method::kModelStreamInfer, *context_, request);
  const auto self = shared_from_this();
  // The end knows the answer, which is made with it.
  const auto place = std::make_shared<std::shared_ptr<TritonAnswer>>();
  const auto answer = std::make_shared<TritonAnswer>(
      deps_, model_, std::move(facts), std::move(request),
      [self](ModelInferResponse response) {
        ModelStreamInferResponse message;
        *message.mutable_infer_response() = std::move(response);
        self->Send(std::move(message));
      },
      [self, place](const FrontendCall::Ending& ending) {
        self->End(std::exchange(*place, nullptr), ending);
      });
  *place = answer;
  {
    MutexLock lock(mu_);
    under_way_.insert(answer);
  }
  answer->Start(tenant_);
  if (cancellation_->cancelled()) answer->Cancel();
}

void TritonStream::Send(ModelStreamInferResponse response) {
  const size_t bytes = response.ByteSizeLong();
  TritonResponses one;
  one.messages.push_back(std::move(response));
  queue_.Push(std::move(one), bytes);
  Pump();
}

void TritonStream::End(const std::shared_ptr<TritonAnswer>& answer,
                       const FrontendCall::Ending& ending) {
  if (const absl::Status why = queue_.Explain(ending.status); !why.ok()) {
    ModelStreamInferResponse failed;
    failed.set_error_message(std::string(why.message()));
    ModelInferResponse& response = *failed.mutable_infer_response();
    response.set_model_name(model_.name);
    response.set_id(answer->id());
    (*response.mutable_parameters())["triton_final_response"].set_bool_param(
        true);
    Send(std::move(failed));
  }
  bool read = false, idle = false;
  {
    MutexLock lock(mu_);
    under_way_.erase(answer);
    read = std::exchange(paused_, false);
    idle = read_all_ && under_way_.empty();
  }
  if (read) StartRead(&reading_);
  if (idle) EndAll(grpc::Status::OK);
}

void TritonStream::EndAll(const grpc::Status& status) {
  {
    MutexLock lock(mu_);
    status_ =
        queue_.gave_up()
            ? ToGrpcStatus(queue_.Explain(absl::CancelledError("given up")), 0)
            : status;
  }
  queue_.SetEnd(/*drop=*/false, std::nullopt);
  Pump();
}

// Starts the next write, or the end, unless one is under way. gRPC may call
// back on this very thread; after the end `this` may be gone.
void TritonStream::Pump() {
  auto step = queue_.Next();
  const ModelStreamInferResponse* message = nullptr;
  grpc::Status status;
  {
    MutexLock lock(mu_);
    if (step.write) {
      current_ = std::move(step.message);
      next_ = 1;
      end_after_ = step.end;
      message = &current_.messages.front();
    }
    status = status_;
  }
  if (message != nullptr) {
    StartWrite(message);
  } else if (step.end) {
    Finish(status);
  }
}

void TritonStream::OnWriteDone(bool ok) {
  const ModelStreamInferResponse* message = nullptr;
  bool end = false;
  grpc::Status status;
  {
    MutexLock lock(mu_);
    if (ok && next_ < current_.messages.size()) {
      message = &current_.messages[next_++];
    } else {
      end = end_after_;
      status = status_;
    }
  }
  if (message != nullptr) return StartWrite(message);
  queue_.WriteDone(ok);
  if (end) return Finish(status);
  Pump();
}

void TritonStream::OnDone() {
  cancellation_->SetWaker(nullptr);
  std::shared_ptr<TritonStream> self;  // outlives the lock
  MutexLock lock(mu_);
  done_ = true;
  self = std::move(self_);
}

void TritonStream::Tick(SteadyTime now) {
  MutexLock lock(mu_);
  // Under the lock, since the context goes once we are done; gRPC's reactions
  // come on threads of its own.
  if (!done_ && queue_.Check(now)) context_->TryCancel();
}

}  // namespace xcache
