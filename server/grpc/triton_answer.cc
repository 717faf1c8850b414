#include "server/grpc/triton_answer.h"

#include <chrono>
#include <utility>

#include "engine/base/status_macros.h"
#include "server/frontend/work_classes.h"

namespace xcache {
namespace {

void Add(int64_t us, ::inference::StatisticDuration* to) {
  to->set_count(to->count() + 1);
  to->set_ns(to->ns() + static_cast<uint64_t>(std::max<int64_t>(0, us)) * 1000);
}

}  // namespace

void TritonStatistics::Count(const absl::Status& status,
                             const FinalInfo& final) {
  MutexLock lock(mu_);
  ::inference::InferStatistics& sum = *sum_.mutable_inference_stats();
  const Timings& t = final.timings;
  if (!status.ok()) return Add(t.total_us, sum.mutable_fail());
  Add(t.total_us, sum.mutable_success());
  Add(t.queue_us, sum.mutable_queue());
  Add(t.restore_us + t.prefill_us, sum.mutable_compute_input());
  Add(t.decode_us, sum.mutable_compute_infer());
  Add(t.commit_us, sum.mutable_compute_output());
  sum_.set_inference_count(sum_.inference_count() + 1);
  sum_.set_execution_count(sum_.execution_count() + 1);
  sum_.set_last_inference(static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(
          std::chrono::system_clock::now().time_since_epoch())
          .count()));
}

void TritonStatistics::Fill(::inference::ModelStatistics* out) const {
  MutexLock lock(mu_);
  *out = sum_;
}

TritonAnswer::TritonAnswer(const ServiceDeps& deps, TritonModel& model,
                           CallFacts facts,
                           ::inference::ModelInferRequest request, SendFn send,
                           EndFn end)
    : model_(model),
      may_stream_(facts.method == Method::kModelStreamInfer),
      id_(request.id()),
      message_(std::move(request)),
      send_(std::move(send)),
      end_(std::move(end)),
      call_(*deps.frontend, std::move(facts)) {}

void TritonAnswer::Start(std::string tenant) {
  const auto bytes = static_cast<int64_t>(message_.SpaceUsedLong());
  if (absl::Status status =
          call_.Admit(std::move(tenant), bytes * kRequestCopies);
      !status.ok()) {
    return Refuse(status, FrontendCall::RetryAfter(status));
  }
  const auto self = shared_from_this();
  call_.Run(
      TextClassOf(message_.ByteSizeLong()),
      [cancellation = cancellation_] { return cancellation->cancelled(); },
      [self] {
        if (absl::Status s = self->Submit(); !s.ok()) self->Refuse(s, 0);
      },
      [self](const absl::Status& status, int64_t retry_after_ms) {
        self->Refuse(status, retry_after_ms);
      });
}

absl::Status TritonAnswer::Submit() {
  XC_ASSIGN_OR_RETURN(request_, ToTriton(message_, model_.name, may_stream_));
  message_.Clear();
  RequestBase base;
  call_.SetBase(cancellation_, &base);
  return xcache::Submit(request_, base, call_.core(), shared_from_this());
}

void TritonAnswer::OnDelta(std::string_view text,
                           std::span<const SampledToken> /*tokens*/) {
  if (!request_.stream) {
    text_ += text;
  } else if (!text.empty()) {
    send_(ToResponse(request_, model_.name, text, FinishReason::kNone,
                     /*final=*/false));
  }
}

void TritonAnswer::OnFinish(const absl::Status& status,
                            const FinalInfo& final) {
  if (!status.ok() || !request_.session_ends) return End(status, final);
  const auto self = shared_from_this();
  call_.Run(
      WorkClass::kStore, [] { return false; },
      [self, final] {
        self->End(self->call_.core().DeleteSession(self->call_.tenant(),
                                                   self->request_.session),
                  final);
      },
      [self, final](const absl::Status& why, int64_t) {
        self->End(why, final);
      });
}

void TritonAnswer::Refuse(const absl::Status& status, int64_t retry_after_ms) {
  FinalInfo none;
  none.retry_after_ms = retry_after_ms;
  End(status, none);
}

void TritonAnswer::End(const absl::Status& status, const FinalInfo& final) {
  if (status.ok()) {
    if (request_.prepend_input) text_.insert(0, request_.text);
    send_(ToResponse(request_, model_.name, text_, final.finish_reason,
                     /*final=*/true));
  }
  model_.statistics.Count(status, final);
  end_(call_.Close(status, final.retry_after_ms,
                   status.ok() ? DescribeFinal(final) : ""));
}

}  // namespace xcache
