#include "server/server_app.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/cache_store.h"
#include "engine/base/log.h"
#include "engine/base/memory_budget.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "engine/engine_factory.h"
#include "engine/model/chat_template.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"
#include "server/allocator.h"
#include "server/core/cache/quality.h"
#include "server/core/server_core.h"
#include "server/core/sessions/remat_setting.h"
#include "server/core/tenants/tenant_ledger.h"
#include "server/frontend/auth.h"
#include "server/frontend/descriptors.h"
#include "server/frontend/file_watcher.h"
#include "server/frontend/frontend.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/tls.h"
#include "server/grpc/operator_server.h"
#include "server/grpc/rpc_server.h"
#include "server/http/http_server.h"
#include "server/http/openai_api.h"
#include "server/metrics/metrics_endpoint.h"
#include "server/metrics/process_metrics.h"
#include "server/metrics/store_metrics.h"
#include "server/metrics/tenant_metrics.h"
#include "server/model_watch.h"
#include "server/shared_stores.h"

namespace xcache {
namespace {

// How long answers that are finished may take to reach their clients.
constexpr std::chrono::seconds kLastWords(5);

// How often it is looked whether the process has grown, and by which part of
// --memory-bytes it may have before it gives back what is free in its heaps.
constexpr std::chrono::milliseconds kTrimInterval(250);
constexpr int64_t kTrimShare = 32;

// How often the model's file is looked at.
constexpr std::chrono::seconds kModelWatchInterval(2);
// How soon a changed token or TLS file is noticed.
constexpr std::chrono::seconds kCredentialsInterval(1);

// Switches chat off for a model whose template we do not know.
constexpr std::string_view kNoTemplate = "none";

CacheStoreOptions StoreOptions(const Config& config,
                               const SharedStores& shared) {
  CacheStoreOptions options;
  options.shared_pages = shared.pages;
  options.shared_sessions = shared.sessions;
  options.shared_policy = config.shared.policy;
  options.shared_page_life = config.shared.page_life;
  options.dir = config.store_dir;
  options.disk_bytes = static_cast<int64_t>(config.disk_bytes);
  return options;
}

absl::Status MakeFolder(const std::string& path, const char* flag) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(absl::StrCat("cannot make the folder ",
                                                  path, " (", flag,
                                                  "): ", std::strerror(errno)));
}

// Of both doors.
Listener::Stats Sum(Listener::Stats a, const Listener::Stats& b) {
  a.open += b.open;
  a.accepted += b.accepted;
  a.refused_total += b.refused_total;
  a.refused_per_peer += b.refused_per_peer;
  a.evicted += b.evicted;
  a.cut_off += b.cut_off;
  a.accept_failures += b.accept_failures;
  return a;
}

void SampleFrontend(const Listener::Stats& connections, int64_t request_bytes,
                    const std::vector<FileWatcher::Count>& reloads,
                    SampleWriter& writer) {
  const auto refused = [&](uint64_t count, std::string_view reason) {
    writer.Set(Metric::kConnectionsRefused, static_cast<double>(count),
               {reason});
  };
  writer.Set(Metric::kConnections, connections.open);
  writer.Set(Metric::kConnectionsAccepted,
             static_cast<double>(connections.accepted));
  refused(connections.refused_total, "total");
  refused(connections.refused_per_peer, "peer");
  refused(connections.evicted, "evicted");
  refused(connections.cut_off, "flood");
  refused(connections.accept_failures, "descriptors");
  writer.Set(Metric::kRequestBytes, static_cast<double>(request_bytes));
  // Where there is no such file, too: a sample that is missing is no zero.
  for (const std::string_view what : {"tokens", "tls", "shared"}) {
    const auto found = std::find_if(
        reloads.begin(), reloads.end(),
        [&](const FileWatcher::Count& count) { return count.what == what; });
    const bool is_watched = found != reloads.end();
    writer.Set(Metric::kCredentialReloads,
               is_watched ? static_cast<double>(found->reloaded) : 0,
               {what, "ok"});
    writer.Set(Metric::kCredentialReloads,
               is_watched ? static_cast<double>(found->failed) : 0,
               {what, "failed"});
  }
}

class ServerAppImpl final : public ServerApp {
 public:
  explicit ServerAppImpl(const Config& config)
      : config_(config), metrics_(std::make_shared<Metrics>()) {}
  ~ServerAppImpl() override { Stop(std::chrono::seconds(0)); }

  absl::Status Open() {
    XC_ASSIGN_OR_RETURN(const int64_t descriptors, RaiseDescriptorLimit());
    budget_ = std::make_unique<MemoryBudget>(
        static_cast<int64_t>(config_.memory_bytes));
    Frontend::Options front;
    front.request_memory =
        RequestMemory::Of(static_cast<int64_t>(config_.memory_bytes));
    auto reserved = budget_->Reserve(MemoryAccount::kRequests,
                                     front.request_memory.total_bytes);
    if (!reserved.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--memory-bytes ", config_.memory_bytes,
                       " is too little: expected at least ",
                       front.request_memory.total_bytes,
                       " bytes for what clients send, and more for the store "
                       "and for a conversation"));
    }
    request_memory_ = *std::move(reserved);
    XC_ASSIGN_OR_RETURN(auth_,
                        Authenticator::Create(config_.token_file, &tenants_));
    if (!config_.tls_cert.empty()) {
      XC_ASSIGN_OR_RETURN(tls_,
                          TlsIdentity::Load({config_.tls_cert, config_.tls_key,
                                             config_.tls_client_ca}));
    }
    RpcServerOptions options;
    options.listen.address = config_.listen;
    const bool has_http = !config_.http_listen.empty();
    options.listen.max_connections = ConnectionsWithin(
        descriptors, config_.max_connections, has_http ? 2 : 1);
    options.listen.max_connections_per_peer =
        config_.max_connections_per_peer > 0
            ? config_.max_connections_per_peer
            : std::max(1, options.listen.max_connections / 2);
    options.tls = tls_;
    options.model_name = config_.model_name;
    front.metrics = metrics_.get();
    front.auth = auth_.get();
    front.tenants = &tenants_;
    frontend_ = std::make_unique<Frontend>(front);
    options.frontend = frontend_.get();
    // Each door has its own part.
    options.arriving_bytes =
        front.request_memory.arriving_bytes() / (has_http ? 2 : 1);
    heap_trimmer_ = std::make_unique<HeapTrimmer>(
        kTrimInterval, budget_->cap_bytes() / kTrimShare);
    process_source_ = metrics_->AddSource([this](SampleWriter& writer) {
      SampleProcess(writer);
      writer.Set(Metric::kReady, ready_ ? 1 : 0);
      writer.Set(Metric::kModelFileChanged,
                 ready_ && model_watch_->changed() ? 1 : 0);
    });
    XC_ASSIGN_OR_RETURN(rpc_, RpcServer::Listen(options));
    address_ = rpc_->address();
    if (has_http) {
      XC_RETURN_IF_ERROR(OpenHttp(options.listen, options.arriving_bytes));
    }
    credentials_watcher_ = WatchCredentials();
    frontend_source_ = metrics_->AddSource([this](SampleWriter& writer) {
      Listener::Stats connections = rpc_->connections();
      if (http_ != nullptr) {
        connections = Sum(connections, http_->connections());
      }
      SampleFrontend(connections, frontend_->request_bytes.held(),
                     credentials_watcher_->counts(), writer);
    });
    if (!config_.metrics_listen.empty()) {
      XC_ASSIGN_OR_RETURN(
          metrics_endpoint_,
          MetricsEndpoint::Listen(config_.metrics_listen, metrics_));
      metrics_address_ = metrics_endpoint_->address();
    }
    return absl::OkStatus();
  }

  absl::Status Load() override {
    const auto start = std::chrono::steady_clock::now();
    const ProgressFn progress = [this](std::string_view what, double fraction) {
      frontend_->gate.SetProgress(what, fraction);
    };
    progress("reading the model", 0.0);
    XC_ASSIGN_OR_RETURN(model_, Model::Load(config_.model_path));
    XC_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(model_->gguf()));
    if (config_.chat_template != kNoTemplate) {
      XC_ASSIGN_OR_RETURN(template_,
                          ChatTemplate::Create(model_->gguf(), *tokenizer_,
                                               config_.chat_template));
    }
    progress("opening the store", 0.0);
    XC_RETURN_IF_ERROR(OpenStore());
    EngineOptions engine_options;
    engine_options.device = config_.device;
    engine_options.device_memory_bytes = config_.device_memory_bytes;
    engine_options.weights = config_.weights;
    engine_options.num_threads = config_.num_threads;
    engine_options.isa = config_.isa;
    engine_options.profile_dir = config_.profile_dir;
    engine_options.last_of_model = true;
    if (!config_.profile_dir.empty()) {
      XC_RETURN_IF_ERROR(MakeFolder(config_.profile_dir, "--profile-dir"));
    }
    engine_options.weights_cache_dir = config_.weights_cache_dir;
    if (!config_.weights_cache_dir.empty()) {
      XC_RETURN_IF_ERROR(
          MakeFolder(config_.weights_cache_dir, "--weights-cache"));
    }
    XC_ASSIGN_OR_RETURN(engine_,
                        CreateEngine(model_, engine_options, progress));
    const std::string& choice =
        config_.codec.empty() ? config_.quality : config_.codec;
    XC_RETURN_IF_ERROR(StartCore(
        std::string(CodecOfChoice(
            choice.empty() ? kDefaultQuality : std::string_view(choice),
            engine_->info())),
        progress));
    AddSources();
    OpenOperatorSocket();
    model_watch_ = std::make_unique<ModelWatch>(
        config_.model_path, *model_->gguf().stamp(), kModelWatchInterval);
    ready_ = true;
    frontend_->gate.Open(core_.get());
    rpc_->SetServing(frontend_->gate.is_open());
    const ModelInfo& info = engine_->info();
    XC_LOG_INFO(
        "serving",
        "listen={} http={} metrics={} model={} codec={} device={} store={} "
        "load_ms={}",
        address_, http_address_.empty() ? "none" : http_address_,
        metrics_address_.empty() ? "none" : metrics_address_,
        LogValue(info.name), LogValue(core_->default_codec().spec()),
        LogValue(info.device),
        config_.store_dir.empty() ? "none" : LogValue(config_.store_dir),
        std::chrono::duration_cast<std::chrono::milliseconds>(
            std::chrono::steady_clock::now() - start)
            .count());
    return absl::OkStatus();
  }

  int Stop(std::chrono::seconds drain) override {
    if (rpc_ == nullptr) return 0;
    ready_ = false;
    frontend_->gate.Close();
    rpc_->SetServing(false);
    if (http_ != nullptr) http_->StopServing();
    int cut_short = 0;
    if (core_ != nullptr) {
      cut_short = core_->Drain(std::chrono::steady_clock::now() + drain);
    }
    if (http_ != nullptr) {
      http_->Shutdown(std::chrono::steady_clock::now() + kLastWords);
    }
    rpc_->Shutdown(std::chrono::system_clock::now() + kLastWords);
    operator_.reset();
    frontend_source_ = {};
    credentials_watcher_.reset();
    http_.reset();
    rpc_.reset();
    metrics_endpoint_.reset();
    core_source_ = {};
    build_source_ = {};
    process_source_ = {};
    core_.reset();
    engine_.reset();
    store_.reset();
    return cut_short;
  }

  void ReloadCredentials() override { credentials_watcher_->ReloadAll(); }
  const std::string& address() const override { return address_; }
  const std::string& http_address() const override { return http_address_; }
  const std::string& metrics_address() const override {
    return metrics_address_;
  }
  const Metrics& metrics() const override { return *metrics_; }

 private:
  // `like`: the limits of its connections.
  absl::Status OpenHttp(const ListenerOptions& like, int64_t arriving_bytes) {
    HttpServerOptions options;
    options.listen = like;
    options.listen.address = config_.http_listen;
    options.listen.flag = "--http-listen";
    options.tls = tls_;
    options.arriving_bytes = arriving_bytes;
    options.max_body_bytes = frontend_->request_memory.max_message_bytes();
    options.frontend = frontend_.get();
    OpenAiOptions api;
    api.model = config_.model_name;
    api.frontend = frontend_.get();
    XC_ASSIGN_OR_RETURN(http_, HttpServer::Listen(options, MakeOpenAiApi(api)));
    http_address_ = http_->address();
    return absl::OkStatus();
  }

  std::unique_ptr<FileWatcher> WatchCredentials() {
    std::vector<FileWatcher::Watched> watched;
    if (!config_.token_file.empty()) {
      watched.push_back(
          {"tokens", {config_.token_file}, [this] { return auth_->Reload(); }});
    }
    if (tls_ != nullptr) {
      std::vector<std::string> files = {config_.tls_cert, config_.tls_key};
      if (!config_.tls_client_ca.empty()) {
        files.push_back(config_.tls_client_ca);
      }
      watched.push_back(
          {"tls", std::move(files), [this] { return tls_->Reload(); }});
    }
    if (const std::string& file = config_.shared.credentials_file;
        config_.shared.enabled() && !file.empty()) {
      // The client of the store reads it by itself, when it next needs it.
      watched.push_back(
          {"shared", {file}, [file] { return CheckSharedCredentials(file); }});
    }
    return std::make_unique<FileWatcher>(std::move(watched),
                                         kCredentialsInterval);
  }

  absl::Status OpenStore() {
    XC_ASSIGN_OR_RETURN(const SharedStores shared,
                        OpenSharedStores(config_.shared));
    const CacheStoreOptions options = StoreOptions(config_, shared);
    if (config_.repair && !config_.store_dir.empty()) {
      XC_ASSIGN_OR_RETURN(const CacheStore::RepairReport report,
                          CacheStore::Repair(options));
      XC_LOG_WARN("store repaired",
                  "store={} sessions_kept={} sessions_dropped={} "
                  "tables_dropped={}",
                  LogValue(config_.store_dir), report.sessions_kept,
                  report.sessions_dropped, report.tables_dropped);
    }
    XC_ASSIGN_OR_RETURN(store_, CacheStore::Open(options, *budget_));
    return absl::OkStatus();
  }

  absl::Status StartCore(const std::string& codec, const ProgressFn& progress) {
    ServerCoreDeps deps;
    deps.engine = engine_.get();
    deps.tokenizer = tokenizer_.get();
    deps.chat_template = template_.get();
    deps.store = store_.get();
    deps.memory = budget_.get();
    deps.metrics = metrics_.get();
    deps.tenants = &tenants_;
    ServerCoreOptions options;
    options.default_codec = codec;
    options.step_rows = config_.batch_rows;
    options.answers_bytes = static_cast<int64_t>(
        std::min(config_.answers_bytes, config_.memory_bytes));
    // On a GPU the bits of a row may depend on how many there are.
    options.speculate = config_.speculate == "ngram" ||
                        (config_.speculate == "auto" &&
                         engine_->info().device.starts_with("cpu"));
    options.max_codecs = config_.max_codecs;
    options.max_queue_requests = config_.max_queue_requests;
    options.max_queue_tokens = config_.max_queue_tokens;
    options.default_ttl = config_.session_ttl;
    XC_ASSIGN_OR_RETURN(options.default_remat, ParseRematPolicy(config_.remat));
    if (config_.restore != "auto") {
      options.restore = config_.restore == "always"
                            ? ServerCoreOptions::Restore::kAlways
                            : ServerCoreOptions::Restore::kNever;
    }
    XC_ASSIGN_OR_RETURN(core_, ServerCore::Create(deps, options, progress));
    return absl::OkStatus();
  }

  // Serving does not hang on it.
  void OpenOperatorSocket() {
    if (config_.operator_socket.empty()) return;
    auto opened = OperatorServer::Listen(config_.operator_socket,
                                         config_.store_dir, *store_);
    if (opened.ok()) {
      operator_ = *std::move(opened);
      return;
    }
    XC_LOG_WARN("no operator socket: `xcache store` cannot reach this server",
                "socket={} error={}", LogValue(config_.operator_socket),
                LogValue(std::string(opened.status().message())));
  }

  void AddSources() {
    core_source_ = metrics_->AddSource([this](SampleWriter& writer) {
      SampleCore(core_->Snapshot(), writer);
      SampleStore(store_->stats(), writer);
      SampleMemory(*budget_, writer);
      SampleTenants(tenants_, store_->sessions(), writer);
    });
    build_source_ = metrics_->AddSource([name = engine_->info().name,
                                         fp = ToHex(engine_->info().model_fp),
                                         id = engine_->info().numerics_id,
                                         codec = std::string(
                                             core_->default_codec().spec())](
                                            SampleWriter& writer) {
      writer.Set(Metric::kBuildInfo, 1, {kServerVersion, name, fp, codec, id});
    });
  }

  const Config config_;
  const std::shared_ptr<Metrics> metrics_;
  std::atomic<bool> ready_{false};
  TenantLedger tenants_;
  std::unique_ptr<Authenticator> auth_;
  std::shared_ptr<TlsIdentity> tls_;
  std::unique_ptr<FileWatcher> credentials_watcher_;
  std::shared_ptr<const Model> model_;  // the tokenizer borrows its strings
  std::unique_ptr<ModelWatch> model_watch_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<const ChatTemplate> template_;
  std::unique_ptr<MemoryBudget> budget_;
  MemoryReservation request_memory_;
  std::unique_ptr<HeapTrimmer> heap_trimmer_;
  std::unique_ptr<CacheStore> store_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ServerCore> core_;
  Metrics::SourceHandle process_source_, frontend_source_, core_source_,
      build_source_;
  std::unique_ptr<Frontend> frontend_;
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<OperatorServer> operator_;
  std::unique_ptr<MetricsEndpoint> metrics_endpoint_;
  std::string address_, http_address_, metrics_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerApp>> ServerApp::Listen(
    const Config& config) {
  auto app = std::make_unique<ServerAppImpl>(config);
  XC_RETURN_IF_ERROR(app->Open());
  return app;
}

}  // namespace xcache
