#include "server/grpc/rpc_server.h"

#include <set>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "google/protobuf/stubs/logging.h"
#include "grpc/support/log.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/frontend/stream_watchdog.h"
#include "server/frontend/worker_pool.h"
#include "server/grpc/convert.h"
#include "server/grpc/health_service.h"
#include "server/grpc/inference_service.h"
#include "server/grpc/sessions_service.h"

namespace xcache {
namespace {

constexpr size_t kMaxQueuedCalls = 4096;
constexpr int kMaxStreamsPerConnection = 1024;
// A dead client is noticed within two minutes, and one that pings more often
// than every ten seconds is told to go away.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 60'000;
constexpr int kMinPingIntervalMs = 10'000;

class RpcServerImpl final : public RpcServer {
 public:
  explicit RpcServerImpl(const RpcServerOptions& options)
      : workers_(options.worker_threads, kMaxQueuedCalls),
        watchdog_(std::max<std::chrono::milliseconds>(
            options.stream_limits.stall / 10, std::chrono::milliseconds(10))),
        deps_{options.metrics, options.auth, &gate_,
              &workers_,       &watchdog_,   options.stream_limits},
        inference_(deps_),
        sessions_(deps_),
        health_({v1::Inference::service_full_name(),
                 v1::Sessions::service_full_name()}) {}

  ~RpcServerImpl() override {
    Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  absl::Status Start(const RpcServerOptions& options) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(options.listen, options.credentials, &port);
    // Else a second server on the port would silently get half of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                               kMaxStreamsPerConnection);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                               kKeepaliveTimeoutMs);
    builder.AddChannelArgument(
        GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
        kMinPingIntervalMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
    // Ours are as long as what was asked for.
    builder.SetMaxSendMessageSize(-1);
    builder.RegisterService(&inference_);
    builder.RegisterService(&sessions_);
    builder.RegisterService(&health_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
      return absl::UnavailableError(absl::StrCat(
          "cannot listen on ", options.listen,
          " (--listen): the port is in use or the address not of this "
          "machine"));
    }
    address_ = absl::StrCat(options.listen.substr(0, options.listen.rfind(':')),
                            ":", port);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }
  void SetProgress(std::string_view what, double fraction) override {
    gate_.SetProgress(what, fraction);
  }
  void Serve(ServerCore* core) override {
    gate_.Open(core);
    if (gate_.is_open()) health_.SetServing(true);
  }
  void StopServing() override {
    gate_.Close();
    health_.SetServing(false);
  }
  void Shutdown(std::chrono::system_clock::time_point deadline) override {
    StopServing();
    health_.Shutdown();
    if (server_ != nullptr) server_->Shutdown(deadline);
  }

 private:
  ReadinessGate gate_;
  WorkerPool workers_;
  StreamWatchdog watchdog_;
  const ServiceDeps deps_;
  InferenceService inference_;
  SessionsService sessions_;
  HealthService health_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Listen(
    const RpcServerOptions& options) {
  auto server = std::make_unique<RpcServerImpl>(options);
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
