// One streaming RPC: takes the core's deltas and writes them, one message at a
// time, at the client's pace.
//
// Deltas queue (server/frontend/output_queue.h). A client that does not read
// for long, or lets too much pile up, has its turn cancelled with
// RESOURCE_EXHAUSTED; if it does not even take that, the stream is cut.
#ifndef XCACHE_SERVER_GRPC_STREAM_CALL_H_
#define XCACHE_SERVER_GRPC_STREAM_CALL_H_

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "server/frontend/answer_reader.h"
#include "server/frontend/output_queue.h"
#include "server/frontend/stream_watchdog.h"
#include "server/grpc/call.h"
#include "server/grpc/chat_tools.h"
#include "server/grpc/convert.h"

namespace xcache {

namespace v1 {

// Joins two messages of one stream (server/frontend/output_queue.h).
template <typename Response>
void Join(Response more, Response* into) {
  into->mutable_delta()->append(more.delta());
  into->mutable_logprobs()->MergeFrom(more.logprobs());
  if constexpr (std::is_same_v<Response, ChatResponse>) {
    into->mutable_reasoning()->append(more.reasoning());
    into->mutable_tool_calls()->MergeFrom(more.tool_calls());
  }
}

}  // namespace v1

// Response: ChatResponse or GenerateResponse.
template <typename Response>
class StreamCall final
    : public grpc::ServerWriteReactor<Response>,
      public RequestSink,
      public WatchedStream,
      public std::enable_shared_from_this<StreamCall<Response>> {
 public:
  // Converts the request and submits it with `self` as its sink. An error means
  // that it was not submitted.
  using SubmitFn =
      std::function<absl::Status(Call& call, std::shared_ptr<StreamCall> self)>;

  // Begins the RPC and returns its reactor, which keeps itself alive until gRPC
  // is done with it.
  static StreamCall* Start(const ServiceDeps& deps, Method method,
                           grpc::CallbackServerContext* context,
                           const google::protobuf::Message& request,
                           SubmitFn submit) {
    auto self = std::make_shared<StreamCall>(deps, method, context, request);
    self->self_ = self;
    deps.frontend->watchdog.Add(std::weak_ptr<WatchedStream>(self));
    self->call_.Start(
        [self, fn = std::move(submit)] {
          if (absl::Status s = fn(self->call_, self); !s.ok()) {
            self->Refuse(s, 0);
          }
        },
        [self](const absl::Status& status, int64_t retry_after_ms) {
          self->Refuse(status, retry_after_ms);
        });
    return self.get();
  }

  StreamCall(const ServiceDeps& deps, Method method,
             grpc::CallbackServerContext* context,
             const google::protobuf::Message& request)
      : context_(context),
        cancellation_(std::make_shared<Cancellation>()),
        call_(deps, method, context, request),
        queue_(deps.frontend->stream_limits, cancellation_) {}

  const std::shared_ptr<Cancellation>& cancellation() const {
    return cancellation_;
  }

  // Has a chat's answer told apart. REQUIRES: nothing was submitted.
  void Split(AnswerReader reader) { reader_.emplace(std::move(reader)); }

  // --- RequestSink: the core's threads.

  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override {
    Response delta;
    if (reader_.has_value()) {
      Put(reader_->Add(text), &delta);
    } else {
      delta.set_delta(text.data(), text.size());
    }
    for (const SampledToken& token : tokens) {
      ToProto(token, call_.core().tokenizer(), delta.add_logprobs());
    }
    Push(std::move(delta));
  }

  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    if (status.ok() && reader_.has_value()) {
      Response rest;
      Put(reader_->Finish(), &rest);
      Push(std::move(rest));
    }
    Complete(status, final.retry_after_ms, DescribeFinal(final),
             status.ok() ? &final : nullptr);
  }

  // --- gRPC's threads.

  void OnWriteDone(bool ok) override {
    queue_.WriteDone(ok);
    Pump();
  }
  // The client cancelled, went away, or its deadline passed.
  void OnCancel() override { cancellation_->Cancel(); }
  void OnDone() override {
    std::shared_ptr<StreamCall> self;  // outlives the lock
    MutexLock lock(mu_);
    done_ = true;
    self = std::move(self_);
  }

  void Tick(SteadyTime now) override {
    MutexLock lock(mu_);
    // Under the lock, since the context goes once we are done; gRPC's reactions
    // come on threads of its own.
    if (!done_ && queue_.Check(now)) context_->TryCancel();
  }

 private:
  static void Put(const std::vector<AnswerPart>& parts, Response* out) {
    if constexpr (std::is_same_v<Response, v1::ChatResponse>) {
      ToProto(parts, out);
    }
  }

  void Push(Response message) {
    const size_t bytes = message.ByteSizeLong();
    if (bytes == 0) return;  // its text waits for more
    queue_.Push(std::move(message), bytes);
    Pump();
  }

  void Refuse(const absl::Status& status, int64_t retry_after_ms) {
    Complete(status, retry_after_ms, "", nullptr);
  }

  void Complete(const absl::Status& status, int64_t retry_after_ms,
                std::string_view details, const FinalInfo* final) {
    status_ = call_.Close(queue_.Explain(status), retry_after_ms, details);
    std::optional<Response> last;
    if (final != nullptr) {
      v1::Final* const end = last.emplace().mutable_final();
      ToProto(*final, end);
      if (end->finish_reason() == v1::FINISH_REASON_END &&
          reader_.has_value() && reader_->num_calls() > 0) {
        end->set_finish_reason(v1::FINISH_REASON_TOOL_CALLS);
      }
    }
    // The text of a turn that was rolled back is of no use.
    queue_.SetEnd(/*drop=*/!status.ok(), std::move(last));
    Pump();
  }

  // Starts the next write, or the end, unless one is under way.
  void Pump() {
    auto step = queue_.Next();
    if (step.write) current_ = std::move(step.message);
    // gRPC may call back on this very thread. After the end `this` may be gone.
    if (step.write && step.end) {
      this->StartWriteAndFinish(&current_, grpc::WriteOptions(), status_);
    } else if (step.write) {
      this->StartWrite(&current_);
    } else if (step.end) {
      this->Finish(status_);
    }
  }

  grpc::CallbackServerContext* const context_;  // until done_
  const std::shared_ptr<Cancellation> cancellation_;
  Call call_;
  std::optional<AnswerReader> reader_;  // the core's, from Split on
  Response current_;                    // while a write is under way: gRPC's
  grpc::Status status_;                 // set before the queue's end
  OutputQueue<Response> queue_;

  Mutex mu_;
  std::shared_ptr<StreamCall> self_;
  bool done_ XC_GUARDED_BY(mu_) = false;  // gRPC has let go
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_STREAM_CALL_H_
