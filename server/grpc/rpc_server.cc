#include "server/grpc/rpc_server.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/frontend/frontend_call.h"
#include "server/grpc/call.h"
#include "server/grpc/credentials.h"
#include "server/grpc/health_service.h"
#include "server/grpc/inference_service.h"
#include "server/grpc/sessions_service.h"
#include "server/grpc/triton_service.h"

namespace xcache {
namespace {

// As many as a backend that sends all its turns over one connection waits for.
constexpr int kMaxStreamsPerConnection = 256;
// Calls that have begun, and whose messages are not there, in ten seconds.
constexpr int64_t kMaxUnarrivedPerConnection = 2 * kMaxStreamsPerConnection;
constexpr int kMaxHeaderBytes = 8 << 10;
// A peer's bytes are looked at before more of them are read: they may be the
// beginning of hundreds of calls.
constexpr int kReadBytes = 64 << 10;
// A peer that says nothing, not even TLS's or HTTP/2's first words, goes.
constexpr int kHandshakeTimeoutMs = 10'000;
// A connection without calls goes; clients open another when they need one.
constexpr int kIdleConnectionMs = 10 * 60'000;
// A dead client is noticed within two minutes, and one that pings more often
// than every ten seconds is told to go away.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 60'000;
constexpr int kMinPingIntervalMs = 10'000;
// Of the reflection service alone: it is gRPC's own, a thread for each stream.
constexpr int kMaxReflectionThreads = 8;

// Probes carry no tokens.
constexpr std::string_view kHealthPath = "/grpc.health.v1.Health/";

// "/xcache.v1.Inference/Chat" -> kChat.
std::optional<Method> MethodOfPath(std::string_view path) {
  const std::string_view name = path.substr(path.rfind('/') + 1);
  for (int m = 0; m < static_cast<int>(Method::kCount); ++m) {
    if (MethodName(static_cast<Method>(m)) == name) {
      return static_cast<Method>(m);
    }
  }
  return std::nullopt;
}

class RpcServerImpl final : public RpcServer {
 public:
  RpcServerImpl(const RpcServerOptions& options,
                std::unique_ptr<Listener> listener)
      : frontend_(*options.frontend),
        listener_(std::move(listener)),
        floods_({.per_connection = kMaxUnarrivedPerConnection,
                 .in_all = std::max<int64_t>(
                     kMaxUnarrivedPerConnection,
                     options.arriving_bytes / FloodGuard::kCallBytes)},
                [this](const std::string& peer) {
                  if (peer.empty() || !listener_->Close(peer)) {
                    listener_->CloseUntrusted();
                  }
                }),
        deps_{options.frontend, listener_.get(), &floods_},
        inference_(deps_),
        sessions_(deps_),
        triton_(deps_, options.model_name),
        health_({v1::Inference::service_full_name(),
                 v1::Sessions::service_full_name(),
                 ::inference::GRPCInferenceService::service_full_name()},
                [this](grpc::CallbackServerContext& context) {
                  floods_.Arrive(ConnectionOf(context),
                                 PeerAddress(context.peer()));
                }),
        credentials_(MakeCredentials(
            options.tls,
            [this](const CallHeaders& call) { return AdmitCall(call); })) {}

  ~RpcServerImpl() override {
    Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  absl::Status Start(const RpcServerOptions& options) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        credentials_);
    grpc::ResourceQuota quota("xcache");
    quota.Resize(static_cast<size_t>(options.arriving_bytes));
    quota.SetMaxThreads(kMaxReflectionThreads);
    builder.SetResourceQuota(quota);
    for (const auto& [name, value] :
         std::initializer_list<std::pair<const char*, int>>{
             {GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection},
             {GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes},
             {GRPC_ARG_TCP_MAX_READ_CHUNK_SIZE, kReadBytes},
             {GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeTimeoutMs},
             {GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleConnectionMs},
             {GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs},
             {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs},
             {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
              kMinPingIntervalMs},
             {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
             // gRPC checks a message's size before it inflates it, not after.
             {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0}}) {
      builder.AddChannelArgument(name, value);
    }
    for (const grpc_compression_algorithm algorithm :
         {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(frontend_.request_memory.max_message_bytes()));
    // Ours are as long as what was asked for.
    builder.SetMaxSendMessageSize(-1);
    builder.RegisterService(&inference_);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&triton_);
    builder.RegisterService(&health_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::InternalError("the gRPC server does not start");
    }
    listener_->Start([this](int fd, const std::string&) {
      grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters
          connection;
      connection.fd = fd;
      acceptor_->HandleNewConnection(&connection);
    });
    return absl::OkStatus();
  }

  const std::string& address() const override { return listener_->address(); }
  Listener::Stats connections() override { return listener_->stats(); }
  void SetServing(bool serving) override { health_.SetServing(serving); }
  void Shutdown(std::chrono::system_clock::time_point deadline) override {
    health_.SetServing(false);
    health_.Shutdown();
    listener_->Stop();
    if (server_ != nullptr) server_->Shutdown(deadline);
  }

 private:
  // On gRPC's threads, with a call's headers and nothing else.
  absl::Status AdmitCall(const CallHeaders& call) {
    if (!floods_.Begin(call.connection)) {
      return absl::ResourceExhaustedError("too many calls begun, none sent");
    }
    const std::string_view path = call.path;
    if (path.substr(0, kHealthPath.size()) == kHealthPath) {
      return absl::OkStatus();
    }
    absl::Status status =
        frontend_.auth.Authenticate(call.authorization).status();
    if (status.ok()) return status;
    if (const std::optional<Method> method = MethodOfPath(path)) {
      frontend_.metrics.CountRequest(*method, status.code(), 0.0);
    }
    refusals_.Note(path, status);
    return status;
  }

  Frontend& frontend_;
  const std::unique_ptr<Listener> listener_;
  FloodGuard floods_;
  RefusalLog refusals_;
  const ServiceDeps deps_;
  InferenceService inference_;
  SessionsService sessions_;
  TritonService triton_;
  HealthService health_;
  const std::shared_ptr<grpc::ServerCredentials> credentials_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Listen(
    const RpcServerOptions& options) {
  XC_ASSIGN_OR_RETURN(auto listener, Listener::Bind(options.listen));
  auto server = std::make_unique<RpcServerImpl>(options, std::move(listener));
  if (absl::Status status = server->Start(options); !status.ok()) {
    return status;
  }
  return server;
}

void QuietLibraryLogging() {
  gpr_set_log_function([](gpr_log_func_args* args) {
    XC_LOG_DEBUG("grpc", "at={}:{} message={}", args->file, args->line,
                 LogValue(args->message));
  });
  google::protobuf::SetLogHandler([](google::protobuf::LogLevel,
                                     const char* file, int line,
                                     const std::string& message) {
    XC_LOG_DEBUG("protobuf", "at={}:{} message={}", file, line,
                 LogValue(message));
  });
}

}  // namespace xcache
