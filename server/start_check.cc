#include "server/start_check.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cachestore/rocksdb/disk_space.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/isa.h"
#include "engine/model/chat_template.h"
#include "engine/model/gguf.h"
#include "engine/model/hparams.h"
#include "engine/model/tokenizer.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "server/frontend/auth.h"
#include "server/frontend/descriptors.h"
#include "server/frontend/request_bytes.h"
#include "server/frontend/tls.h"
#include "server/frontend/unique_fd.h"
#include "server/shared_stores.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

std::string_view Text(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

absl::Status Errno(std::string_view flag, const std::string& path) {
  return absl::ErrnoToStatus(errno,
                             absl::StrCat(std::string(flag), ": ", path));
}

// A file's bytes, mapped: a model is too large to be read for its first part.
class Mapping {
 public:
  static absl::StatusOr<Mapping> Of(const std::string& path) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    if (fd.get() < 0 || fstat(fd.get(), &info) != 0) {
      return Errno("--model", path);
    }
    if (!S_ISREG(info.st_mode) || info.st_size == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--model: ", path, ": expected a file with something in it, found ",
          S_ISREG(info.st_mode) ? "an empty file" : "no regular file"));
    }
    Mapping mapping;
    mapping.size_ = static_cast<size_t>(info.st_size);
    mapping.data_ =
        mmap(nullptr, mapping.size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (mapping.data_ == MAP_FAILED) return Errno("--model", path);
    return mapping;
  }
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, MAP_FAILED)), size_(other.size_) {}
  ~Mapping() {
    if (data_ != MAP_FAILED) munmap(data_, size_);
  }

  std::span<const uint8_t> bytes() const {
    return {static_cast<const uint8_t*>(data_), size_};
  }

 private:
  Mapping() = default;

  void* data_ = MAP_FAILED;
  size_t size_ = 0;
};

class Check {
 public:
  explicit Check(const Config& config) : config_(config) {}

  StartCheck Run() && {
    Add(Model());
    Add(Codec());
    Add(ChooseIsa(config_.isa).status(), "--isa");
    Tokens();
    Tls();
    Add(Resolves("--listen", config_.listen));
    if (!config_.metrics_listen.empty()) {
      Add(Resolves("--metrics-listen", config_.metrics_listen));
    }
    if (!config_.http_listen.empty()) {
      Add(Resolves("--http-listen", config_.http_listen));
    }
    Store();
    Shared();
    if (!config_.ready_file.empty()) {
      Add(CanWriteBeside("--ready-file", config_.ready_file));
    }
    Memory();
    Add(RaiseDescriptorLimit().status());
    return std::move(out_);
  }

 private:
  void Add(const absl::Status& status, std::string_view flag = "") {
    if (status.ok()) return;
    std::string line(Text(status));
    if (!flag.empty() && !absl::StrContains(line, std::string(flag))) {
      line = absl::StrCat(std::string(flag), ": ", line);
    }
    out_.faults.push_back(std::move(line));
  }

  // Its description, tokenizer and template, as a start reads them.
  absl::Status Model() {
    if (config_.model_path.empty()) return absl::OkStatus();  // told before
    XC_ASSIGN_OR_RETURN(const Mapping file, Mapping::Of(config_.model_path));
    model_bytes_ = file.bytes().size();
    XC_ASSIGN_OR_RETURN(const auto gguf,
                        GgufFile::Parse(file.bytes(), config_.model_path));
    XC_ASSIGN_OR_RETURN(const Architecture* architecture,
                        FindArchitecture(*gguf));
    XC_ASSIGN_OR_RETURN(const HyperParams params,
                        ReadHyperParams(*gguf, *architecture));
    XC_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Create(*gguf));
    std::string chat = "without chat";
    if (config_.chat_template != "none") {
      XC_ASSIGN_OR_RETURN(
          const auto chat_template,
          ChatTemplate::Create(*gguf, *tokenizer, config_.chat_template));
      chat =
          absl::StrCat("chat template ", std::string(chat_template->family()));
    }
    out_.notes.push_back(
        absl::StrCat("model: ", params.name.empty() ? "(no name)" : params.name,
                     ", ", std::string(architecture->name), ", ",
                     params.num_layers, " layers of width ", params.d_model,
                     ", context ", params.context_length, ", ", chat, ", ",
                     model_bytes_, " bytes; its weights were not read"));
    return absl::OkStatus();
  }

  absl::Status Codec() {
    if (config_.codec.empty()) return absl::OkStatus();
    const auto spec = CodecSpec::Parse(config_.codec);
    if (!spec.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--codec: ", spec.status().message()));
    }
    if (FindCodec(spec->name) != nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--codec: no codec is named \"", spec->name, "\""));
  }

  void Tokens() {
    if (config_.token_file.empty()) {
      out_.notes.emplace_back("tokens: none, everybody is one tenant");
      return;
    }
    const auto table = TokenTable::Load(config_.token_file);
    Add(table.status(), "--token-file");
    if (table.ok()) {
      out_.notes.push_back(absl::StrCat("tokens: ", (*table)->size()));
    }
  }

  void Tls() {
    if (config_.tls_cert.empty() || config_.tls_key.empty()) {
      out_.notes.emplace_back("TLS: none");
      return;
    }
    const auto identity = TlsIdentity::Load(
        {config_.tls_cert, config_.tls_key, config_.tls_client_ca});
    Add(identity.status());
    if (identity.ok()) {
      out_.notes.emplace_back(
          config_.tls_client_ca.empty()
              ? "TLS: the certificate and its key belong together"
              : "TLS: the certificate and its key belong together; clients "
                "must show a certificate");
    }
  }

  static absl::Status Resolves(std::string_view flag,
                               const std::string& address) {
    const auto parsed = ParseHostPort(address);
    if (!parsed.ok()) return absl::OkStatus();  // told before
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    const int error =
        getaddrinfo(parsed->host.c_str(), nullptr, &hints, &found);
    if (error == 0) {
      freeaddrinfo(found);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(flag), ": ", parsed->host, ": ", gai_strerror(error)));
  }

  // What there is of a path, from its end: itself or a folder above it.
  static std::string Nearest(const std::string& path) {
    std::error_code error;
    fs::path at = fs::absolute(path, error);
    while (!fs::exists(at, error) && at.has_relative_path()) {
      at = at.parent_path();
    }
    return at.string();
  }

  // OK: the folder can be used, or made by this user.
  static absl::Status FolderFits(std::string_view flag,
                                 const std::string& folder) {
    const std::string nearest = Nearest(folder);
    struct stat info {};
    if (stat(nearest.c_str(), &info) != 0) return Errno(flag, nearest);
    if (!S_ISDIR(info.st_mode)) {
      return absl::FailedPreconditionError(
          absl::StrCat(std::string(flag), ": ", nearest, " is not a folder"));
    }
    if (access(nearest.c_str(), R_OK | W_OK | X_OK) != 0) {
      return Errno(flag, nearest);
    }
    return absl::OkStatus();
  }

  // A file that a start writes. Only the store's folder is made for it.
  absl::Status CanWriteBeside(std::string_view flag,
                              const std::string& path) const {
    std::error_code error;
    const std::string folder = fs::absolute(path, error).parent_path().string();
    if (folder == fs::absolute(config_.store_dir, error).string()) {
      return absl::OkStatus();  // the store's own check
    }
    if (!fs::is_directory(folder, error)) {
      return absl::NotFoundError(
          absl::StrCat(std::string(flag), ": there is ", "no folder ", folder));
    }
    return FolderFits(flag, folder);
  }

  void Store() {
    if (config_.store_dir.empty()) {
      out_.notes.emplace_back("store: none, conversations are in memory only");
    } else {
      StoreFolder();
    }
    if (!config_.profile_dir.empty()) {
      Add(CanWriteBeside("--profile-dir", config_.profile_dir));
    }
    if (!config_.weights_cache_dir.empty()) {
      Add(CanWriteBeside("--weights-cache", config_.weights_cache_dir));
    }
    const std::string& socket = config_.operator_socket;
    if (!socket.empty()) Add(CanWriteBeside("--operator-socket", socket));
  }

  void StoreFolder() {
    const std::string& dir = config_.store_dir;
    Add(FolderFits("--store-dir", dir));
    std::error_code error;
    if (!fs::exists(dir, error)) {
      out_.notes.push_back(absl::StrCat("store: would be made in ", dir));
    } else if (const pid_t owner = LockOwner(dir + "/LOCK"); owner != 0) {
      out_.warnings.push_back(
          absl::StrCat("store ", dir, " is in use by process ", owner,
                       ": while that runs, no other starts on it"));
    } else {
      out_.notes.push_back(absl::StrCat(
          "store: ", dir,
          fs::exists(dir + "/sessions", error) || fs::exists(dir + "/db", error)
              ? ", with conversations"
              : ", nothing in it"));
    }
    const auto disk = static_cast<int64_t>(config_.disk_bytes);
    if (disk < kMinDiskBytes) {
      out_.faults.push_back(absl::StrCat("--disk-bytes is ", disk,
                                         ", the least is ", kMinDiskBytes));
    }
    const FileSystemBytes space = FileSystemOf(Nearest(dir));
    if (space.free >= 0 && space.free < disk) {
      out_.warnings.push_back(absl::StrCat(
          "--disk-bytes is ", disk, ", and the file system of ", dir, " has ",
          space.total, " bytes, ", space.free, " of them free"));
    }
  }

  // Who holds the lock; 0: nobody. It is asked for, never taken.
  static pid_t LockOwner(const std::string& path) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (fd.get() < 0 || fcntl(fd.get(), F_GETLK, &lock) != 0 ||
        lock.l_type == F_UNLCK) {
      return 0;
    }
    return lock.l_pid;
  }

  // Its client is made, and asks for nothing.
  void Shared() {
    if (!config_.shared.enabled()) return;
    Add(OpenSharedStores(config_.shared).status(), "--shared");
    out_.notes.emplace_back("shared tier: it was not asked for anything");
  }

  void Memory() {
    const auto cap = static_cast<int64_t>(config_.memory_bytes);
    const int64_t requests = RequestMemory::Of(cap).total_bytes;
    if (cap < requests) {
      out_.faults.push_back(
          absl::StrCat("--memory-bytes ", cap,
                       " is too little: expected at least ", requests,
                       " bytes for what clients send, and more for the store "
                       "and for a conversation"));
    }
    struct sysinfo machine {};
    if (sysinfo(&machine) != 0) return;
    const uint64_t total = uint64_t{machine.totalram} * machine.mem_unit;
    if (config_.memory_bytes + model_bytes_ > total) {
      out_.warnings.push_back(absl::StrCat(
          "--memory-bytes ", cap, " and the model's ", model_bytes_,
          " bytes are more than the machine's ", total));
    }
  }

  const Config& config_;
  StartCheck out_;
  uint64_t model_bytes_ = 0;
};

}  // namespace

StartCheck CheckStart(const Config& config) { return Check(config).Run(); }

}  // namespace xcache
