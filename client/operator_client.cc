#include "client/operator_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/base/unix_socket.h"
#include "xcache/v1/operator.grpc.pb.h"

namespace xcache::client {
namespace {

// A backup's pieces are far below gRPC's usual limit; a look's words may name
// many sessions.
constexpr int kMaxMessageBytes = 64 << 20;

// Why the socket cannot be opened, as errno says it; 0: it can.
int Knock(const std::string& socket) {
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  socket.copy(to.sun_path, sizeof(to.sun_path) - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  const int error =
      ::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0
          ? 0
          : errno;
  ::close(fd);
  return error;
}

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

}  // namespace

struct OperatorClient::Impl {
  explicit Impl(const std::string& path) : socket(path), reachable(path) {}

  const std::string socket;
  const ReachableSocket reachable;
  std::unique_ptr<v1::Operator::Stub> stub;

  // What gRPC says of a socket that is not there, or not ours, is for its
  // authors.
  absl::Status ToStatus(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      if (const int error = Knock(reachable.path()); error != 0) {
        const std::string what =
            absl::StrCat("cannot open the operator socket ", socket, ": ",
                         std::strerror(error));
        if (error == EACCES || error == EPERM) {
          return absl::PermissionDeniedError(absl::StrCat(
              what, "; it is for the server's own user, and root"));
        }
        return absl::UnavailableError(
            absl::StrCat(what, "; is xcache-server running, with this store?"));
      }
    }
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        status.error_message());
  }
};

OperatorClient::OperatorClient(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
OperatorClient::~OperatorClient() = default;

absl::StatusOr<std::unique_ptr<OperatorClient>> OperatorClient::Connect(
    const std::string& socket) {
  if (!SocketPathFits(socket)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a socket's name has at most ", kMaxSocketNameBytes,
                     " bytes: ", socket));
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto impl = std::make_unique<Impl>(socket);
  impl->stub = v1::Operator::NewStub(
      grpc::CreateCustomChannel(UnixSocketUri(impl->reachable.path()),
                                grpc::InsecureChannelCredentials(), arguments));
  return std::unique_ptr<OperatorClient>(new OperatorClient(std::move(impl)));
}

absl::StatusOr<StoreFigures> OperatorClient::GetStats() {
  grpc::ClientContext context;
  v1::GetStoreStatsResponse response;
  XC_RETURN_IF_ERROR(
      impl_->ToStatus(impl_->stub->GetStoreStats(&context, {}, &response)));
  const auto& sessions = response.sessions();
  StoreFigures out;
  out.store_dir = response.store_dir();
  out.sessions = sessions.count();
  out.sessions_in_memory_only = sessions.in_memory_only();
  out.damaged_sessions = sessions.damaged();
  out.commits = sessions.commits();
  out.commit_failures = sessions.commit_failures();
  out.expired = sessions.expired();
  if (sessions.has_newest_update()) {
    out.newest_update = TimeOf(sessions.newest_update());
  }
  for (const auto& tier : response.tiers()) {
    out.tiers.push_back({.name = tier.name(),
                         .pages = tier.pages(),
                         .bytes = tier.bytes(),
                         .queued_pages = tier.queued_pages(),
                         .hits = tier.hits(),
                         .misses = tier.misses(),
                         .puts = tier.puts(),
                         .evictions = tier.evictions(),
                         .damaged = tier.damaged()});
  }
  if (response.has_disk()) {
    const auto& disk = response.disk();
    out.disk = {.cap_bytes = disk.cap_bytes(),
                .used_bytes = disk.used_bytes(),
                .free_bytes = disk.free_bytes(),
                .table_bytes = disk.table_bytes(),
                .log_bytes = disk.log_bytes(),
                .blob_bytes = disk.blob_bytes(),
                .blob_garbage_bytes = disk.blob_garbage_bytes(),
                .pages_set_aside = disk.pages_set_aside(),
                .stopped_writing = disk.stopped_writing()};
  }
  return out;
}

absl::StatusOr<VerifyResult> OperatorClient::Verify(
    uint64_t bytes_per_second,
    const std::function<bool(const VerifyResult&)>& progress) {
  grpc::ClientContext context;
  v1::VerifyStoreRequest request;
  request.set_bytes_per_second(bytes_per_second);
  const auto reader = impl_->stub->VerifyStore(&context, request);
  VerifyResult result;
  bool done = false;
  v1::VerifyStoreResponse word;
  while (reader->Read(&word)) {
    result.sessions = word.sessions();
    result.pages = word.pages();
    result.bytes = word.bytes();
    result.unreadable = word.unreadable();
    result.damaged_sessions = word.damaged_sessions();
    result.damaged_pages = word.damaged_pages();
    for (const auto& session : word.damaged()) {
      result.damaged.push_back(
          {session.tenant(), session.id(), session.detail()});
    }
    for (const std::string& file : word.damaged_files()) {
      result.damaged_files.push_back(file);
    }
    done = word.done();
    if (!done && !progress(result)) context.TryCancel();
  }
  XC_RETURN_IF_ERROR(impl_->ToStatus(reader->Finish()));
  if (done) return result;
  return absl::DataLossError("the server did not look at everything");
}

absl::StatusOr<BackupDone> OperatorClient::Backup(bool sessions_only,
                                                  uint64_t bytes_per_second,
                                                  BackupTaker& taker) {
  grpc::ClientContext context;
  v1::BackupStoreRequest request;
  request.set_sessions_only(sessions_only);
  request.set_bytes_per_second(bytes_per_second);
  const auto reader = impl_->stub->BackupStore(&context, request);
  absl::Status taken;
  std::optional<BackupDone> out;
  v1::BackupStoreResponse part;
  while (reader->Read(&part)) {
    if (!taken.ok()) continue;  // what was under way when it was cancelled
    if (part.has_file()) {
      taken = taker.Begin(part.file().path(), part.file().bytes());
    } else if (part.has_done()) {
      const auto& done = part.done();
      out = {.sessions = done.sessions(),
             .pages = done.pages(),
             .missing_sessions = done.missing_sessions(),
             .as_of = TimeOf(done.as_of()),
             .store_format = done.store_format(),
             .server_version = done.server_version()};
    } else {
      taken = taker.Append(part.data());
    }
    if (!taken.ok()) context.TryCancel();
  }
  const absl::Status finished = impl_->ToStatus(reader->Finish());
  XC_RETURN_IF_ERROR(taken);
  XC_RETURN_IF_ERROR(finished);
  if (out.has_value()) return *std::move(out);
  return absl::DataLossError("the backup ended before it was whole");
}

}  // namespace xcache::client
