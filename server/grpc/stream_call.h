// One streaming RPC: takes the core's deltas and writes them, one message at a
// time, at the client's pace.
//
// The core must never wait for a client, so deltas queue here. While one write
// is under way the next ones join into one message. A client that does not read
// for long, or lets too much pile up, has its turn cancelled with
// RESOURCE_EXHAUSTED; if it does not even take that, the stream is cut.
#ifndef XCACHE_SERVER_GRPC_STREAM_CALL_H_
#define XCACHE_SERVER_GRPC_STREAM_CALL_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/mutex.h"
#include "grpcpp/support/server_callback.h"
#include "server/core/reason.h"
#include "server/grpc/call.h"
#include "server/grpc/convert.h"

namespace xcache {

// The log line's part that tells about a finished turn.
std::string DescribeFinal(const FinalInfo& final);

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
    deps.watchdog->Add(std::weak_ptr<WatchedStream>(self));
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
      : limits_(deps.stream_limits),
        context_(context),
        cancellation_(std::make_shared<Cancellation>()),
        call_(deps, method, context, request) {}

  const std::shared_ptr<Cancellation>& cancellation() const {
    return cancellation_;
  }

  // --- RequestSink: the core's threads.

  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override {
    Response delta;
    delta.set_delta(text.data(), text.size());
    for (const SampledToken& token : tokens) {
      ToProto(token, call_.core().tokenizer(), delta.add_logprobs());
    }
    const size_t bytes = delta.ByteSizeLong();
    {
      MutexLock lock(mu_);
      if (finish_.has_value() || slow_) return;
      if (!queue_.empty() && queue_.back().bytes + bytes <= kMaxJoinedBytes) {
        queue_.back().bytes += bytes;
        queue_.back().message.mutable_delta()->append(text);
        queue_.back().message.mutable_logprobs()->MergeFrom(delta.logprobs());
      } else {
        queue_.push_back({std::move(delta), bytes});
      }
      queued_bytes_ += bytes;
      if (queued_bytes_ > limits_.queued_bytes) GiveUpOnReader();
    }
    Pump();
  }

  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    Complete(status, final.retry_after_ms, DescribeFinal(final),
             status.ok() ? &final : nullptr);
  }

  // --- gRPC's threads.

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mu_);
      writing_ = false;
      if (!ok) DropQueue();
    }
    if (!ok) cancellation_->Cancel();
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
    if (done_ || !writing_) return;
    if (now - write_start_ > 2 * limits_.stall) {
      // It does not take the status either. Under the lock, since the context
      // goes once we are done; gRPC's reactions come on threads of its own.
      context_->TryCancel();
    } else if (now - write_start_ > limits_.stall) {
      GiveUpOnReader();
    }
  }

 private:
  // Big enough to join many tokens, small beside gRPC's flow-control window.
  static constexpr size_t kMaxJoinedBytes = 16 << 10;

  struct Queued {
    Response message;
    size_t bytes = 0;
  };

  void Refuse(const absl::Status& status, int64_t retry_after_ms) {
    Complete(status, retry_after_ms, "", nullptr);
  }

  void Complete(absl::Status status, int64_t retry_after_ms,
                std::string_view details, const FinalInfo* final) {
    {
      MutexLock lock(mu_);
      if (slow_ && absl::IsCancelled(status)) {
        status =
            WithReason(absl::ResourceExhaustedError(absl::StrCat(
                           "the client does not read its answer: nothing for ",
                           limits_.stall.count(), " ms, or more than ",
                           limits_.queued_bytes, " bytes waiting")),
                       Reason::kSlowReader);
      }
    }
    const grpc::Status grpc_status =
        call_.Close(status, retry_after_ms, details);
    {
      MutexLock lock(mu_);
      // The text of a turn that was rolled back is of no use.
      if (!status.ok()) DropQueue();
      if (final != nullptr) {
        Queued last;
        ToProto(*final, last.message.mutable_final());
        queue_.push_back(std::move(last));
      }
      finish_ = grpc_status;
    }
    Pump();
  }

  void DropQueue() XC_REQUIRES(mu_) {
    queue_.clear();
    queued_bytes_ = 0;
  }

  void GiveUpOnReader() XC_REQUIRES(mu_) {
    if (slow_ || finish_.has_value()) return;
    slow_ = true;
    DropQueue();
    cancellation_->Cancel();
  }

  // Starts the next write, or the end, unless one is under way.
  void Pump() XC_EXCLUDES(mu_) {
    bool write = false, finish = false;
    grpc::Status status;
    {
      MutexLock lock(mu_);
      if (writing_ || ended_) return;
      if (!queue_.empty()) {
        current_ = std::move(queue_.front().message);
        queued_bytes_ -= queue_.front().bytes;
        queue_.pop_front();
        write = writing_ = true;
        write_start_ = std::chrono::steady_clock::now();
      }
      if (queue_.empty() && finish_.has_value()) {
        finish = ended_ = true;
        status = *finish_;
      }
      if (!write && !finish) return;
    }
    // Outside the lock: gRPC may call back on this very thread. After the end
    // `this` may be gone.
    if (write && finish) {
      this->StartWriteAndFinish(&current_, grpc::WriteOptions(), status);
    } else if (write) {
      this->StartWrite(&current_);
    } else {
      this->Finish(status);
    }
  }

  const StreamLimits limits_;
  grpc::CallbackServerContext* const context_;  // until done_
  const std::shared_ptr<Cancellation> cancellation_;
  Call call_;
  Response current_;  // while writing_: gRPC's

  Mutex mu_;
  std::shared_ptr<StreamCall> self_;
  std::deque<Queued> queue_ XC_GUARDED_BY(mu_);
  size_t queued_bytes_ XC_GUARDED_BY(mu_) = 0;
  bool writing_ XC_GUARDED_BY(mu_) = false;
  SteadyTime write_start_ XC_GUARDED_BY(mu_);
  bool slow_ XC_GUARDED_BY(mu_) = false;  // the reader was given up
  std::optional<grpc::Status> finish_ XC_GUARDED_BY(mu_);
  bool ended_ XC_GUARDED_BY(mu_) = false;  // the end was given to gRPC
  bool done_ XC_GUARDED_BY(mu_) = false;   // gRPC has let go
};

}  // namespace xcache

#endif  // XCACHE_SERVER_GRPC_STREAM_CALL_H_
