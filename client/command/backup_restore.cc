// Backups as they are read: checked, and made a store of.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/command/backup_folder.h"
#include "client/command/files.h"
#include "engine/base/file.h"
#include "engine/base/status_macros.h"

namespace xcache::command {
namespace {

namespace fs = std::filesystem;

constexpr const char* kInfoName = kBackupInfoName;
constexpr const char* kSumsName = kBackupSumsName;
// Of the store: what this version restores.
constexpr uint32_t kStoreFormat = 2;
constexpr size_t kMaxInfoBytes = 64 << 10;
// A million files.
constexpr size_t kMaxSumsBytes = 256 << 20;

// The lock of a store's folder as RocksDB takes it. Held until it goes.
class StoreLock {
 public:
  // FAILED_PRECONDITION: another process has it.
  static absl::StatusOr<std::unique_ptr<StoreLock>> Take(
      const std::string& dir) {
    auto lock = std::make_unique<StoreLock>(dir + "/LOCK");
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    wanted.l_whence = SEEK_SET;
    if (lock->file_.get() < 0) return Errno("cannot lock " + dir);
    if (::fcntl(lock->file_.get(), F_SETLK, &wanted) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("store ", dir, " is in use: stop its server first"));
    }
    return lock;
  }
  explicit StoreLock(const std::string& path) : file_(path, O_RDWR | O_CREAT) {}

 private:
  const File file_;
};

// Copies a file, if `to` is not empty, and checks what was read.
absl::Status CheckFile(const std::string& dir, const SummedFile& file,
                       const std::string& to, uint64_t* num_bytes) {
  Sha256 sum;
  const std::string target = absl::StrCat(to, "/", file.path);
  std::unique_ptr<File> copy;
  if (!to.empty()) {
    copy = std::make_unique<File>(target, O_WRONLY | O_CREAT | O_EXCL);
    if (copy->get() < 0) return Errno("cannot make " + target);
  }
  const absl::Status read =
      ReadPieces(absl::StrCat(dir, "/", file.path),
                 [&](std::string_view piece) -> absl::Status {
                   sum.Update(piece);
                   *num_bytes += piece.size();
                   if (copy == nullptr) return absl::OkStatus();
                   return WriteAll(copy->get(), piece, target);
                 });
  if (absl::IsNotFound(read)) {
    return absl::DataLossError(
        absl::StrCat("backup ", dir, ": ", file.path, " is missing"));
  }
  XC_RETURN_IF_ERROR(read);
  if (ToHex(sum.Finish()) != file.hex) {
    return absl::DataLossError(
        absl::StrCat("backup ", dir, ": ", file.path,
                     " is damaged: its SHA-256 is not that of ", kSumsName));
  }
  if (copy != nullptr && ::fsync(copy->get()) != 0) {
    return Errno("cannot sync " + target);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckedBackup> CheckBackup(const std::string& dir) {
  const auto sums =
      ReadSmallFile(absl::StrCat(dir, "/", kSumsName), kMaxSumsBytes);
  if (!sums.ok()) {
    return absl::Status(
        sums.status().code(),
        absl::StrCat(dir, " is no whole backup: ", sums.status().message()));
  }
  const auto damaged = [&](const absl::Status& why) {
    return absl::DataLossError(
        absl::StrCat("backup ", dir, ": ", why.message()));
  };
  auto files = ParseSums(*sums);
  if (!files.ok()) return damaged(files.status());
  CheckedBackup out;
  uint64_t num_bytes = 0;
  bool has_info = false;
  for (SummedFile& file : *files) {
    if (file.path != kInfoName) {
      XC_RETURN_IF_ERROR(CheckFile(dir, file, "", &num_bytes));
      out.files.push_back(std::move(file));
      continue;
    }
    uint64_t info_bytes = 0;
    XC_RETURN_IF_ERROR(CheckFile(dir, file, "", &info_bytes));
    XC_ASSIGN_OR_RETURN(
        const std::string text,
        ReadSmallFile(absl::StrCat(dir, "/", kInfoName), kMaxInfoBytes));
    auto info = ParseBackupInfo(text);
    if (!info.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("backup ", dir, ": ", info.status().message()));
    }
    out.info = *std::move(info);
    has_info = true;
  }
  if (!has_info || out.info.num_files != out.files.size() ||
      out.info.num_bytes != num_bytes) {
    return damaged(absl::DataLossError(absl::StrCat(
        "expected ", out.info.num_files, " files of ", out.info.num_bytes,
        " bytes as ", kInfoName, " says, found ", out.files.size(), " of ",
        num_bytes, " in ", kSumsName)));
  }
  if (out.info.store_format != kStoreFormat) {
    return absl::FailedPreconditionError(absl::StrCat(
        "backup ", dir, " is of store format ", out.info.store_format,
        "; this xcache restores ", kStoreFormat));
  }
  return out;
}

absl::StatusOr<Restored> RestoreBackup(const std::string& dir,
                                       const std::string& store_dir,
                                       bool replace) {
  const std::string store = Named(store_dir);
  std::error_code error;
  // What costs nothing first.
  const bool is_there = fs::exists(fs::symlink_status(store, error)) &&
                        !fs::is_empty(store, error);
  std::unique_ptr<StoreLock> lock;
  if (is_there) {
    if (!replace) {
      return absl::AlreadyExistsError(absl::StrCat(
          store,
          " is there already, and stays as it is; --replace keeps it "
          "beside the restored one"));
    }
    XC_ASSIGN_OR_RETURN(lock, StoreLock::Take(store));
  }
  XC_ASSIGN_OR_RETURN(const CheckedBackup backup, CheckBackup(dir));
  const std::string fresh = absl::StrCat(store, ".restoring");
  fs::create_directories(ParentOf(store), error);
  XC_RETURN_IF_ERROR(Failed(error, "cannot make " + ParentOf(store)));
  if (::mkdir(fresh.c_str(), 0700) != 0) {
    return Errno(absl::StrCat(
        "cannot make ", fresh,
        " (what a restore that was cut off left there may be deleted)"));
  }
  const auto copy = [&]() -> absl::Status {
    uint64_t num_bytes = 0;
    for (const char* folder : {"/sessions", "/pages"}) {
      if (::mkdir((fresh + folder).c_str(), 0700) != 0) {
        return Errno("cannot make " + fresh + folder);
      }
    }
    for (const SummedFile& file : backup.files) {
      XC_RETURN_IF_ERROR(CheckFile(dir, file, fresh, &num_bytes));
    }
    for (const char* folder : {"/sessions", "/pages", ""}) {
      XC_RETURN_IF_ERROR(SyncFolder(fresh + folder));
    }
    return absl::OkStatus();
  };
  if (absl::Status copied = copy(); !copied.ok()) {
    fs::remove_all(fresh, error);
    return copied;
  }
  Restored out{.info = backup.info, .kept_as = ""};
  if (is_there) {
    out.kept_as =
        absl::StrCat(store, ".replaced-", absl::ToUnixSeconds(absl::Now()));
    if (::rename(store.c_str(), out.kept_as.c_str()) != 0) {
      const absl::Status failed = Errno(
          absl::StrCat("cannot rename ", store, " to ", out.kept_as,
                       " (a mount point cannot be: name a folder in it)"));
      fs::remove_all(fresh, error);
      return failed;
    }
  }
  if (::rename(fresh.c_str(), store.c_str()) != 0) {
    return Errno(absl::StrCat("cannot rename ", fresh, " to ", store,
                              "; it is whole, and may be used as it is"));
  }
  XC_RETURN_IF_ERROR(SyncFolder(ParentOf(store)));
  return out;
}

}  // namespace xcache::command
