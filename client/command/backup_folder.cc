// The form of a backup's folder, and how it is written.
#include "client/command/backup_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <limits>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "client/command/files.h"
#include "engine/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace xcache::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kInfoName = kBackupInfoName;
constexpr const char* kSumsName = kBackupSumsName;
constexpr char kFormat[] = "xcache-backup";
constexpr int kVersion = 1;

absl::StatusOr<uint64_t> Number(const json& document, const char* key) {
  const auto found = document.find(key);
  if (found == document.end() || !found->is_number_unsigned()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kInfoName, ": expected a number at \"", key, "\""));
  }
  return found->get<uint64_t>();
}

absl::StatusOr<std::string> Words(const json& document, const char* key) {
  const auto found = document.find(key);
  if (found == document.end() || !found->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kInfoName, ": expected a text at \"", key, "\""));
  }
  return found->get<std::string>();
}

bool IsDigest(std::string_view hex) {
  return hex.size() == 64 &&
         hex.find_first_not_of("0123456789abcdef") == hex.npos;
}

}  // namespace

bool IsBackupPath(std::string_view path) {
  const size_t slash = path.find('/');
  if (slash == path.npos) return false;
  const std::string_view folder = path.substr(0, slash);
  const std::string_view name = path.substr(slash + 1);
  return (folder == "sessions" || folder == "pages") && !name.empty() &&
         name.size() <= 100 && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  c == '.' || c == '_' || c == '-';
         });
}

std::string EncodeBackupInfo(const BackupInfo& info) {
  return nlohmann::ordered_json({{"format", kFormat},
                                 {"version", kVersion},
                                 {"store_format", info.store_format},
                                 {"as_of", info.as_of},
                                 {"server_version", info.server_version},
                                 {"sessions", info.sessions},
                                 {"missing_sessions", info.missing_sessions},
                                 {"pages", info.pages},
                                 {"files", info.num_files},
                                 {"bytes", info.num_bytes}})
             .dump(2) +
         "\n";
}

absl::StatusOr<BackupInfo> ParseBackupInfo(std::string_view text) {
  const json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!document.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kInfoName, ": expected a JSON object"));
  }
  XC_ASSIGN_OR_RETURN(const std::string format, Words(document, "format"));
  if (format != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat(kInfoName, ": expected the format \"", kFormat, "\""));
  }
  XC_ASSIGN_OR_RETURN(const uint64_t version, Number(document, "version"));
  if (version != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat(
        kInfoName, ": of version ", version, "; this xcache knows ", kVersion));
  }
  BackupInfo info;
  XC_ASSIGN_OR_RETURN(const uint64_t store, Number(document, "store_format"));
  info.store_format = static_cast<uint32_t>(
      std::min<uint64_t>(store, std::numeric_limits<uint32_t>::max()));
  XC_ASSIGN_OR_RETURN(info.as_of, Words(document, "as_of"));
  XC_ASSIGN_OR_RETURN(info.server_version, Words(document, "server_version"));
  XC_ASSIGN_OR_RETURN(info.sessions, Number(document, "sessions"));
  XC_ASSIGN_OR_RETURN(info.missing_sessions,
                      Number(document, "missing_sessions"));
  XC_ASSIGN_OR_RETURN(info.pages, Number(document, "pages"));
  XC_ASSIGN_OR_RETURN(info.num_files, Number(document, "files"));
  XC_ASSIGN_OR_RETURN(info.num_bytes, Number(document, "bytes"));
  return info;
}

absl::StatusOr<std::vector<SummedFile>> ParseSums(std::string_view text) {
  std::vector<SummedFile> files;
  std::set<std::string> paths;
  int number = 0;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n',
                      absl::SkipEmpty())) {
    ++number;
    // The digest, two spaces (the second for text), the path.
    const std::string_view hex(line.data(), std::min<size_t>(line.size(), 64));
    SummedFile file;
    if (line.size() > 66) file.path = std::string(line.substr(66));
    file.hex = std::string(hex);
    if (!IsDigest(hex) || line.substr(64, 2) != "  " ||
        (file.path != kInfoName && !IsBackupPath(file.path))) {
      return absl::InvalidArgumentError(absl::StrCat(
          kSumsName, ":", number,
          ": expected a SHA-256, two spaces and the name of a backup's file"));
    }
    if (!paths.insert(file.path).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          kSumsName, ":", number, ": ", file.path, " is there a second time"));
    }
    files.push_back(std::move(file));
  }
  return files;
}

BackupWriter::BackupWriter(std::string dir)
    : dir_(std::move(dir)), partial_(absl::StrCat(dir_, ".partial")) {}

absl::StatusOr<std::unique_ptr<BackupWriter>> BackupWriter::Create(
    const std::string& dir) {
  std::unique_ptr<BackupWriter> writer(new BackupWriter(Named(dir)));
  std::error_code error;
  if (fs::exists(fs::symlink_status(writer->dir_, error))) {
    return absl::AlreadyExistsError(absl::StrCat(
        writer->dir_, " is there already: a backup makes its folder"));
  }
  // mkdir, and nothing that would take one of another backup under way.
  if (::mkdir(writer->partial_.c_str(), 0700) != 0) {
    const absl::Status failed = Errno("cannot make " + writer->partial_);
    if (!absl::IsAlreadyExists(failed)) return failed;
    return absl::AlreadyExistsError(
        absl::StrCat(writer->partial_,
                     " is there already: another backup is under way, or "
                     "was cut off; delete it then"));
  }
  writer->is_made_ = true;
  return writer;
}

BackupWriter::~BackupWriter() {
  if (fd_ >= 0) ::close(fd_);
  std::error_code error;
  if (is_made_) fs::remove_all(partial_, error);
}

absl::Status BackupWriter::Begin(const std::string& path, uint64_t num_bytes) {
  XC_RETURN_IF_ERROR(End());
  if (!IsBackupPath(path)) {
    return absl::DataLossError(
        absl::StrCat("the server sent a file of the name \"", path, "\""));
  }
  const std::string folder =
      absl::StrCat(partial_, "/", path.substr(0, path.find('/')));
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return Errno("cannot make " + folder);
  }
  const std::string full = absl::StrCat(partial_, "/", path);
  File file(full, O_WRONLY | O_CREAT | O_EXCL);
  if (file.get() < 0) return Errno("cannot make " + full);
  fd_ = file.Release();
  path_ = path;
  left_ = num_bytes;
  sum_ = std::make_unique<Sha256>();
  return absl::OkStatus();
}

absl::Status BackupWriter::Append(std::string_view bytes) {
  if (fd_ < 0 || bytes.size() > left_) {
    return absl::DataLossError(
        absl::StrCat("the server sent ", bytes.size(), " bytes for ",
                     path_.empty() ? "no file" : path_, ", expected ", left_));
  }
  left_ -= bytes.size();
  num_bytes_ += bytes.size();
  sum_->Update(bytes);
  return WriteAll(fd_, bytes, path_);
}

// The file that was begun last is whole, and on disk.
absl::Status BackupWriter::End() {
  if (fd_ < 0) return absl::OkStatus();
  if (left_ > 0) {
    return absl::DataLossError(
        absl::StrCat("the server sent ", left_, " bytes too few of ", path_));
  }
  if (::fsync(fd_) != 0) return Errno("cannot sync " + path_);
  if (::close(std::exchange(fd_, -1)) != 0)
    return Errno("cannot close " + path_);
  sums_.push_back({path_, ToHex(sum_->Finish())});
  return absl::OkStatus();
}

absl::Status BackupWriter::WriteWhole(const std::string& name,
                                      std::string_view text) {
  const std::string path = absl::StrCat(partial_, "/", name);
  const File file(path, O_WRONLY | O_CREAT | O_EXCL);
  if (file.get() < 0) return Errno("cannot make " + path);
  XC_RETURN_IF_ERROR(WriteAll(file.get(), text, path));
  return ::fsync(file.get()) == 0 ? absl::OkStatus()
                                  : Errno("cannot sync " + path);
}

absl::Status BackupWriter::Finish(const client::BackupDone& done) {
  XC_RETURN_IF_ERROR(End());
  const std::string info = EncodeBackupInfo(
      {.sessions = done.sessions,
       .pages = done.pages,
       .missing_sessions = done.missing_sessions,
       .num_files = num_files(),
       .num_bytes = num_bytes_,
       .store_format = done.store_format,
       .as_of = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", done.as_of,
                                 absl::UTCTimeZone()),
       .server_version = done.server_version});
  XC_RETURN_IF_ERROR(WriteWhole(kInfoName, info));
  std::string sums = absl::StrCat(ToHex(Sha256Of(info)), "  ", kInfoName, "\n");
  for (const SummedFile& file : sums_) {
    absl::StrAppend(&sums, file.hex, "  ", file.path, "\n");
  }
  XC_RETURN_IF_ERROR(WriteWhole(kSumsName, sums));
  for (const char* folder : {"/sessions", "/pages", ""}) {
    std::error_code error;
    const std::string path = partial_ + folder;
    if (fs::exists(path, error)) XC_RETURN_IF_ERROR(SyncFolder(path));
  }
  std::error_code error;
  fs::rename(partial_, dir_, error);
  XC_RETURN_IF_ERROR(Failed(error, "cannot make " + dir_));
  is_made_ = false;
  return SyncFolder(ParentOf(dir_));
}

}  // namespace xcache::command
