#include "server/grpc/call.h"

#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_replace.h"
#include "engine/base/status_macros.h"
#include "inference/inference_service.pb.h"
#include "server/grpc/credentials.h"
#include "server/grpc/status.h"

namespace xcache {
namespace {

// The value of the header, where it is there.
std::optional<std::string_view> Header(
    const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(name);
  if (found == metadata.end()) return std::nullopt;
  return std::string_view(found->second.data(), found->second.size());
}

// A call that names two traces is of neither.
std::optional<TraceContext> TraceOf(
    const grpc::CallbackServerContext& context) {
  const auto value = Header(context, kTraceparentHeader);
  if (!value.has_value() ||
      context.client_metadata().count(kTraceparentHeader) != 1) {
    return std::nullopt;
  }
  return ParseTraceparent(*value);
}

// The session that a request of any of our methods names, or "".
std::string SessionOf(const google::protobuf::Message& request) {
  if (const auto* infer =
          dynamic_cast<const ::inference::ModelInferRequest*>(&request)) {
    const auto id = infer->parameters().find("sequence_id");
    return id == infer->parameters().end() ? "" : id->second.string_param();
  }
  for (const char* name : {"session_id", "id"}) {
    const google::protobuf::FieldDescriptor* field =
        request.GetDescriptor()->FindFieldByName(name);
    if (field != nullptr && !field->is_repeated() &&
        field->type() == google::protobuf::FieldDescriptor::TYPE_STRING) {
      return request.GetReflection()->GetString(request, field);
    }
  }
  return "";
}

}  // namespace

CallFacts FactsOf(Method method, const grpc::CallbackServerContext& context,
                  const google::protobuf::Message& request) {
  CallFacts facts;
  facts.method = method;
  facts.peer = context.peer();
  if (const auto id = Header(context, kRequestIdHeader)) {
    facts.request_id = std::string(*id);
  }
  facts.trace = TraceOf(context);
  facts.session = SessionOf(request);
  facts.deadline = ToSteady(context.raw_deadline(),
                            gpr_now(context.raw_deadline().clock_type),
                            std::chrono::steady_clock::now());
  return facts;
}

std::string PeerAddress(std::string_view grpc_peer) {
  const size_t scheme = grpc_peer.find(':');
  if (scheme != grpc_peer.npos) grpc_peer.remove_prefix(scheme + 1);
  std::string out(grpc_peer.data(), grpc_peer.size());
  absl::StrReplaceAll({{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}}, &out);
  return out;
}

SteadyTime ToSteady(gpr_timespec deadline, gpr_timespec now,
                    SteadyTime steady_now) {
  const gpr_timespec left = gpr_time_sub(deadline, now);
  // Beyond a year is no deadline, and would overflow further on.
  constexpr int64_t kYear = int64_t{365} * 24 * 3600;
  if (left.tv_sec > kYear) return SteadyTime::max();
  return steady_now + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

Call::Call(const ServiceDeps& deps, Method method,
           grpc::CallbackServerContext* context,
           const google::protobuf::Message& request)
    : deps_(deps),
      method_(method),
      context_(context),
      request_(request),
      call_(*deps.frontend, FactsOf(method, *context, request)) {}

absl::StatusOr<std::string> Arrive(const ServiceDeps& deps,
                                   grpc::CallbackServerContext& context) {
  const std::string peer = PeerAddress(context.peer());
  deps.floods->Arrive(ConnectionOf(context), peer);
  const std::optional<std::string_view> token =
      Header(context, "authorization");
  XC_ASSIGN_OR_RETURN(std::string tenant, deps.frontend->auth.Authenticate(
                                              token ? &*token : nullptr));
  deps.listener->MarkTrusted(peer);
  return tenant;
}

grpc::Status ToGrpcStatus(const FrontendCall::Ending& ending,
                          const std::string& request_id,
                          grpc::CallbackServerContext& context) {
  if (ending.progress.loading) {
    context.AddTrailingMetadata(kLoadingPercentTrailer,
                                std::to_string(ending.progress.percent));
    context.AddTrailingMetadata(kLoadingWhatTrailer,
                                PrintableHeader(ending.progress.what));
  }
  AddRetryAfter(context, ending.retry_after_ms);
  context.AddTrailingMetadata(kRequestIdHeader, request_id);
  return ToGrpcStatus(ending.status, ending.retry_after_ms);
}

absl::Status Call::Admit() {
  XC_ASSIGN_OR_RETURN(std::string tenant, Arrive(deps_, *context_));
  return call_.Admit(
      std::move(tenant),
      static_cast<int64_t>(request_.SpaceUsedLong()) * kRequestCopies);
}

WorkClass Call::work_class() const {
  switch (method_) {
    case Method::kChat:
    case Method::kGenerate:
    case Method::kTokenize:
    case Method::kDetokenize:
    case Method::kScore:
    case Method::kImportSession:
      return TextClassOf(request_.ByteSizeLong());
    case Method::kMigrateSession:  // a whole conversation
      return WorkClass::kLargeText;
    case Method::kGetSession:
    case Method::kGetModelInfo:
      return WorkClass::kLookup;
    default:
      return WorkClass::kStore;
  }
}

void Call::Start(std::function<void()> body, const RefuseFn& refuse) {
  if (absl::Status status = Admit(); !status.ok()) {
    refuse(status, FrontendCall::RetryAfter(status));
    return;
  }
  call_.Run(
      work_class(), [this] { return context_->IsCancelled(); }, std::move(body),
      refuse);
}

grpc::Status Call::Close(absl::Status status, int64_t retry_after_ms,
                         std::string_view details) {
  return ToGrpcStatus(call_.Close(std::move(status), retry_after_ms, details),
                      call_.request_id(), *context_);
}

}  // namespace xcache
