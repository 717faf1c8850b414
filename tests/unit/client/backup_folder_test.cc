// Backups as folders: written whole or not at all, found out where a byte of
// them has changed, and never put over a store.
#include "client/command/backup_folder.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace xcache::command {
namespace {

namespace fs = std::filesystem;

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void WriteAll(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

class BackupFolderTest : public ::testing::Test {
 protected:
  BackupFolderTest() {
    std::string name = ::testing::TempDir() + "backup_folder_XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    dir_ = name + "/backup";
    store_ = name + "/store";
  }
  ~BackupFolderTest() override { fs::remove_all(folder_); }

  static client::BackupDone Done() {
    return {.sessions = 3,
            .pages = 5,
            .missing_sessions = 0,
            .as_of = absl::FromUnixSeconds(1'700'000'000),
            .store_format = 2,
            .server_version = "0.1.0"};
  }
  // Like a store's, and one that is empty.
  void Make(const client::BackupDone& done = Done()) {
    auto writer = BackupWriter::Create(dir_);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const auto& [path, text] :
         {std::pair<std::string, std::string>{"sessions/CURRENT",
                                              "MANIFEST-4\n"},
          {"sessions/000007.sst", std::string(3'000'000, 'x') + "y"},
          {"sessions/000008.log", ""},
          {"pages/000009.blob", std::string("\0\1\2", 3)}}) {
      ASSERT_TRUE((*writer)->Begin(path, text.size()).ok());
      const size_t half = text.size() / 2;
      if (half > 0) {
        ASSERT_TRUE((*writer)->Append(text.substr(0, half)).ok());
      }
      if (half < text.size()) {
        ASSERT_TRUE((*writer)->Append(text.substr(half)).ok());
      }
    }
    const absl::Status finished = (*writer)->Finish(done);
    ASSERT_TRUE(finished.ok()) << finished;
  }
  bool IsEmptyBut(const std::string& name) const {
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (entry.path().filename() != name) return false;
    }
    return true;
  }

  std::string folder_, dir_, store_;
};

TEST_F(BackupFolderTest, WhatWasWrittenIsWholeAndIsRestored) {
  Make();
  EXPECT_TRUE(IsEmptyBut("backup"));
  const auto checked = CheckBackup(dir_);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_EQ(checked->files.size(), 4u);
  EXPECT_EQ(checked->info.sessions, 3u);
  EXPECT_EQ(checked->info.as_of, "2023-11-14T22:13:20.000Z");
  const auto restored = RestoreBackup(dir_, store_ + "/", false);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->kept_as, "");
  for (const char* path : {"sessions/CURRENT", "sessions/000007.sst",
                           "sessions/000008.log", "pages/000009.blob"}) {
    EXPECT_EQ(ReadAll(fs::path(store_) / path), ReadAll(fs::path(dir_) / path))
        << path;
  }
  // Nothing else of the backup's is a store's.
  EXPECT_FALSE(fs::exists(store_ + "/SHA256SUMS"));
  EXPECT_EQ(fs::status(store_).permissions(), fs::perms::owner_all);
}

TEST_F(BackupFolderTest, CoreutilsCheckIt) {
  Make();
  EXPECT_EQ(std::system(
                ("cd " + dir_ + " && sha256sum -c --strict --quiet SHA256SUMS")
                    .c_str()),
            0);
}

TEST_F(BackupFolderTest, AnyChangedByteIsFound) {
  Make();
  for (const auto& entry : fs::recursive_directory_iterator(dir_)) {
    if (!entry.is_regular_file()) continue;
    const std::string good = ReadAll(entry.path());
    // Of the long one some bytes, of the others all.
    const size_t step = good.size() > 10'000 ? good.size() / 7 : 1;
    for (size_t at = 0; at < good.size(); at += step) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 1);
      WriteAll(entry.path(), bad);
      const auto checked = CheckBackup(dir_);
      ASSERT_FALSE(checked.ok()) << entry.path() << " at " << at;
      EXPECT_FALSE(RestoreBackup(dir_, store_, false).ok());
      EXPECT_FALSE(fs::exists(store_));
    }
    if (!good.empty()) {
      WriteAll(entry.path(), good.substr(0, good.size() - 1));
      // A last line without its end is a line.
      if (entry.path().filename() != "SHA256SUMS") {
        EXPECT_TRUE(absl::IsDataLoss(CheckBackup(dir_).status()));
      }
    }
    WriteAll(entry.path(), good);
    ASSERT_TRUE(CheckBackup(dir_).ok());
  }
}

TEST_F(BackupFolderTest, MissingFilesAndLinesAreFound) {
  Make();
  const std::string sums = ReadAll(dir_ + "/SHA256SUMS");
  for (size_t end = sums.find('\n'); end < sums.size() - 1;
       end = sums.find('\n', end + 1)) {
    WriteAll(dir_ + "/SHA256SUMS", sums.substr(0, end + 1));
    EXPECT_TRUE(absl::IsDataLoss(CheckBackup(dir_).status())) << end;
  }
  WriteAll(dir_ + "/SHA256SUMS", sums);
  fs::remove(dir_ + "/pages/000009.blob");
  const absl::Status status = CheckBackup(dir_).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "pages/000009.blob"));
  fs::remove(dir_ + "/SHA256SUMS");
  EXPECT_TRUE(absl::IsNotFound(CheckBackup(dir_).status()));
}

TEST_F(BackupFolderTest, OneThatWasCutOffLeavesNothing) {
  {
    auto writer = BackupWriter::Create(dir_);
    ASSERT_TRUE(writer.ok());
    // Another one under way is not disturbed.
    EXPECT_TRUE(absl::IsAlreadyExists(BackupWriter::Create(dir_).status()));
    ASSERT_TRUE((*writer)->Begin("sessions/CURRENT", 10).ok());
    ASSERT_TRUE((*writer)->Append("12345").ok());
    EXPECT_TRUE(absl::IsDataLoss((*writer)->Finish(Done())));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(BackupFolderTest, NoOtherFolderIsWrittenInto) {
  fs::create_directory(dir_);
  EXPECT_TRUE(absl::IsAlreadyExists(BackupWriter::Create(dir_).status()));
  fs::remove(dir_);
  fs::create_symlink("/nowhere", dir_);
  EXPECT_TRUE(absl::IsAlreadyExists(BackupWriter::Create(dir_).status()));
  fs::remove(dir_);
  EXPECT_TRUE(
      absl::IsNotFound(BackupWriter::Create(folder_ + "/no/such").status()));
}

TEST_F(BackupFolderTest, NamesFromElsewhereLeadNowhereElse) {
  for (const char* bad :
       {"", "CURRENT", "sessions/", "sessions/..", "sessions/../../x",
        "/sessions/x", "sessions//x", "sessions/a/b", "sessions/.x", "other/x",
        "sessions/a b", "sessions/a\nb", "BACKUP.json"}) {
    EXPECT_FALSE(IsBackupPath(bad)) << bad;
    auto writer = BackupWriter::Create(dir_);
    ASSERT_TRUE(writer.ok());
    EXPECT_TRUE(absl::IsDataLoss((*writer)->Begin(bad, 0))) << bad;
  }
  EXPECT_TRUE(IsBackupPath("pages/MANIFEST-000004"));
  const std::string hex(64, 'a');
  EXPECT_TRUE(ParseSums(hex + "  sessions/x\n").ok());
  for (const std::string& bad :
       {hex + "  ../x\n", hex + " sessions/x\n", hex + "  \n", hex,
        hex.substr(1) + "  sessions/x\n", hex + "  SHA256SUMS\n",
        hex + "  sessions/x\n" + hex + "  sessions/x\n"}) {
    EXPECT_FALSE(ParseSums(bad).ok()) << bad;
  }
}

TEST_F(BackupFolderTest, TheServersBytesAreThoseItAnnounced) {
  auto writer = BackupWriter::Create(dir_);
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(absl::IsDataLoss((*writer)->Append("x")));
  ASSERT_TRUE((*writer)->Begin("sessions/a", 2).ok());
  EXPECT_TRUE(absl::IsDataLoss((*writer)->Append("123")));
  ASSERT_TRUE((*writer)->Append("12").ok());
  EXPECT_FALSE((*writer)->Begin("sessions/a", 2).ok());  // twice
}

TEST_F(BackupFolderTest, AnotherFormatIsNotRestored) {
  client::BackupDone done = Done();
  done.store_format = 3;
  Make(done);
  const absl::Status status = CheckBackup(dir_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "format 3"));
}

TEST_F(BackupFolderTest, AStoreIsReplacedWhenAskedAndKept) {
  Make();
  WriteAll(store_ + "/sessions/CURRENT", "the old one");
  const auto refused = RestoreBackup(dir_, store_, false);
  EXPECT_TRUE(absl::IsAlreadyExists(refused.status())) << refused.status();
  EXPECT_EQ(ReadAll(store_ + "/sessions/CURRENT"), "the old one");
  const auto restored = RestoreBackup(dir_, store_, true);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(ReadAll(store_ + "/sessions/CURRENT"), "MANIFEST-4\n");
  EXPECT_EQ(ReadAll(restored->kept_as + "/sessions/CURRENT"), "the old one");
  // A folder with nothing in it is no store.
  fs::remove_all(store_);
  fs::create_directory(store_);
  EXPECT_TRUE(RestoreBackup(dir_, store_, false).ok());
}

TEST_F(BackupFolderTest, AStoreInUseIsLeftAlone) {
  Make();
  WriteAll(store_ + "/LOCK", "");
  WriteAll(store_ + "/sessions/CURRENT", "the old one");
  // Locks of this kind are a process's.
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t holder = ::fork();
  if (holder == 0) {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    const int fd = ::open((store_ + "/LOCK").c_str(), O_RDWR);
    const char ok = ::fcntl(fd, F_SETLK, &lock) == 0 ? 'y' : 'n';
    if (::write(ready[1], &ok, 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char ok = 'n';
  ASSERT_EQ(::read(ready[0], &ok, 1), 1);
  EXPECT_EQ(ok, 'y');
  const absl::Status status = RestoreBackup(dir_, store_, true).status();
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "in use")) << status;
  EXPECT_EQ(ReadAll(store_ + "/sessions/CURRENT"), "the old one");
  EXPECT_TRUE(RestoreBackup(dir_, store_, true).ok());
}

}  // namespace
}  // namespace xcache::command
