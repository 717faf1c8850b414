#include "server/grpc/operator_server.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/unix_socket.h"
#include "engine/base/utf8.h"
#include "google/protobuf/timestamp.pb.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/config.h"
#include "server/grpc/status.h"
#include "server/metrics/metrics.h"
#include "xcache/v1/operator.grpc.pb.h"

namespace xcache {
namespace {

using std::chrono::steady_clock;

// One that backs up, one that verifies, one that looks, and gRPC's own.
constexpr int kMaxThreads = 8;
// Between two words of how far a look is.
constexpr std::chrono::seconds kProgressInterval(1);

google::protobuf::Timestamp Timestamp(int64_t ms) {
  google::protobuf::Timestamp out;
  out.set_seconds(ms / 1000);
  out.set_nanos(static_cast<int32_t>(ms % 1000) * 1'000'000);
  return out;
}

absl::Status Gone() { return absl::CancelledError("the caller went away"); }

class Sink final : public BackupSink {
 public:
  using Writer = grpc::ServerWriter<v1::BackupStoreResponse>;
  Sink(const grpc::ServerContext& context, Writer& writer)
      : context_(context), writer_(writer) {}

  absl::Status Begin(std::string_view path, uint64_t num_bytes) override {
    v1::BackupStoreResponse part;
    part.mutable_file()->set_path(path.data(), path.size());
    part.mutable_file()->set_bytes(num_bytes);
    return Write(part);
  }
  absl::Status Append(std::string_view bytes) override {
    num_bytes_ += bytes.size();
    v1::BackupStoreResponse part;
    part.set_data(bytes.data(), bytes.size());
    return Write(part);
  }
  absl::Status GoOn() override {
    return context_.IsCancelled() ? Gone() : absl::OkStatus();
  }
  absl::Status Write(const v1::BackupStoreResponse& part) {
    return writer_.Write(part) ? absl::OkStatus() : Gone();
  }
  uint64_t num_bytes() const { return num_bytes_; }

 private:
  const grpc::ServerContext& context_;
  Writer& writer_;
  uint64_t num_bytes_ = 0;
};

class Service final : public v1::Operator::Service {
 public:
  Service(std::string store_dir, CacheStore& store)
      : store_dir_(std::move(store_dir)), store_(store) {}

  grpc::Status GetStoreStats(grpc::ServerContext*,
                             const v1::GetStoreStatsRequest*,
                             v1::GetStoreStatsResponse* response) override {
    const StoreStats stats = store_.stats();
    response->set_store_dir(ToUtf8(store_dir_));
    auto& sessions = *response->mutable_sessions();
    sessions.set_count(stats.sessions.num_sessions);
    sessions.set_in_memory_only(stats.sessions.num_undurable);
    sessions.set_damaged(stats.sessions.corrupt);
    sessions.set_commits(stats.sessions.commits);
    sessions.set_commit_failures(stats.sessions.commit_failures);
    sessions.set_expired(stats.sessions.expired);
    if (stats.sessions.num_sessions > 0) {
      *sessions.mutable_newest_update() =
          Timestamp(stats.sessions.newest_update_ms);
    }
    for (const TierStats& one : stats.tiers) {
      auto& tier = *response->add_tiers();
      tier.set_name(one.tier.name.data(), one.tier.name.size());
      tier.set_pages(one.pages.num_pages);
      tier.set_bytes(one.pages.page_bytes);
      tier.set_hits(one.pages.hits);
      tier.set_misses(one.pages.misses);
      tier.set_puts(one.pages.puts);
      tier.set_evictions(one.pages.evictions);
      tier.set_damaged(one.pages.corrupt);
      tier.set_queued_pages(one.pages.queued_pages);
    }
    const DiskStats& files = stats.files;
    if (!files.present) return grpc::Status::OK;
    auto& disk = *response->mutable_disk();
    disk.set_cap_bytes(files.cap_bytes);
    disk.set_used_bytes(files.used_bytes);
    disk.set_free_bytes(files.free_bytes);
    disk.set_table_bytes(files.sst_bytes);
    disk.set_log_bytes(files.wal_bytes);
    disk.set_blob_bytes(files.blob_bytes);
    disk.set_blob_garbage_bytes(files.blob_garbage_bytes);
    disk.set_pages_set_aside(files.pages_set_aside);
    if (files.degraded) {
      disk.set_stopped_writing(ToUtf8(files.degraded_reason));
    }
    return grpc::Status::OK;
  }

  grpc::Status VerifyStore(
      grpc::ServerContext* context, const v1::VerifyStoreRequest* request,
      grpc::ServerWriter<v1::VerifyStoreResponse>* writer) override {
    const auto start = steady_clock::now();
    v1::VerifyStoreResponse word;
    const auto fill = [&word](const VerifyReport& report) {
      word.set_sessions(report.sessions);
      word.set_pages(report.pages);
      word.set_bytes(report.bytes);
      word.set_damaged_sessions(report.damaged_sessions);
      word.set_damaged_pages(report.damaged_pages);
      word.set_unreadable(report.unreadable);
    };
    VerifyOptions options;
    options.bytes_per_s = Rate(request->bytes_per_second());
    options.on_damaged_session = [&](std::string_view tenant,
                                     std::string_view id,
                                     const absl::Status& why) {
      auto& session = *word.add_damaged();
      session.set_tenant(ToUtf8(tenant));
      session.set_id(id.data(), id.size());
      session.set_detail(std::string(why.message()));
      XC_LOG_ERROR("a session is damaged", "tenant={} session={} detail={}",
                   LogValue(ToUtf8(tenant)), LogValue(ToUtf8(id)),
                   LogValue(std::string(why.message())));
    };
    options.on_damaged_file = [&](std::string_view path) {
      word.add_damaged_files(ToUtf8(path));
      XC_LOG_ERROR("a table of the store is damaged", "store={} file={}",
                   LogValue(store_dir_), LogValue(ToUtf8(path)));
    };
    auto told = start;
    options.progress = [&](const VerifyReport& report) {
      if (context->IsCancelled()) return Gone();
      if (steady_clock::now() - told < kProgressInterval) {
        return absl::OkStatus();
      }
      told = steady_clock::now();
      fill(report);
      const bool written = writer->Write(word);
      word.Clear();
      return written ? absl::OkStatus() : Gone();
    };
    const auto report = store_.Verify(options);
    if (!report.ok()) return Closed("store not verified", report.status());
    fill(*report);
    word.set_done(true);
    writer->Write(word);
    XC_LOG_INFO("store verified",
                "sessions={} damaged_sessions={} pages={} damaged_pages={} "
                "damaged_files={} unreadable={} bytes={} ms={}",
                report->sessions, report->damaged_sessions, report->pages,
                report->damaged_pages, report->damaged_files,
                report->unreadable, report->bytes, MsSince(start));
    return grpc::Status::OK;
  }

  grpc::Status BackupStore(
      grpc::ServerContext* context, const v1::BackupStoreRequest* request,
      grpc::ServerWriter<v1::BackupStoreResponse>* writer) override {
    const auto start = steady_clock::now();
    Sink sink(*context, *writer);
    BackupOptions options;
    options.sessions_only = request->sessions_only();
    options.bytes_per_s = Rate(request->bytes_per_second());
    const auto report = store_.Backup(options, sink);
    if (!report.ok()) return Closed("store not backed up", report.status());
    v1::BackupStoreResponse last;
    auto& done = *last.mutable_done();
    done.set_sessions(static_cast<uint64_t>(report->sessions));
    done.set_pages(static_cast<uint64_t>(report->pages));
    done.set_missing_sessions(static_cast<uint64_t>(report->missing_sessions));
    *done.mutable_as_of() = Timestamp(report->as_of_ms);
    done.set_store_format(report->store_format);
    done.set_server_version(kServerVersion.data(), kServerVersion.size());
    if (absl::Status status = sink.Write(last); !status.ok()) {
      return Closed("store not backed up", status);
    }
    XC_LOG_INFO("store backed up",
                "sessions={} missing_sessions={} pages={} bytes={} ms={}",
                report->sessions, report->missing_sessions, report->pages,
                sink.num_bytes(), MsSince(start));
    return grpc::Status::OK;
  }

 private:
  static int64_t Rate(uint64_t bytes_per_s) {
    return static_cast<int64_t>(
        std::min<uint64_t>(bytes_per_s, uint64_t{1} << 50));
  }
  static int64_t MsSince(steady_clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               steady_clock::now() - start)
        .count();
  }
  static grpc::Status Closed(std::string_view event,
                             const absl::Status& status) {
    XC_LOG_WARN(event, "code={} error={}", CodeName(status.code()),
                LogValue(std::string(status.message())));
    return ToGrpcStatus(status, /*retry_after_ms=*/0);
  }

  const std::string store_dir_;
  CacheStore& store_;
};

class OperatorServerImpl final : public OperatorServer {
 public:
  OperatorServerImpl(const std::string& socket, const std::string& store_dir,
                     CacheStore& store)
      : socket_(socket), service_(store_dir, store) {}
  ~OperatorServerImpl() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  absl::Status Start() {
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("xcache operator");
    quota.SetMaxThreads(kMaxThreads);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(64 << 10);
    builder.AddListeningPort(UnixSocketUri(socket_.path()),
                             grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    // Nobody else's from the first instant on. Other threads' files that are
    // made meanwhile get no more than that, either.
    const mode_t before = ::umask(0177);
    server_ = builder.BuildAndStart();
    ::umask(before);
    if (server_ == nullptr) {
      return absl::UnavailableError("gRPC cannot listen on it");
    }
    return absl::OkStatus();
  }

 private:
  const ReachableSocket socket_;
  Service service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<OperatorServer>> OperatorServer::Listen(
    const std::string& socket, const std::string& store_dir,
    CacheStore& store) {
  auto server = std::make_unique<OperatorServerImpl>(socket, store_dir, store);
  XC_RETURN_IF_ERROR(server->Start());
  return server;
}

}  // namespace xcache
