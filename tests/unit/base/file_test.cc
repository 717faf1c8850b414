#include "engine/base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string dir = ::testing::TempDir() + "file_test_XXXXXX";
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    path_ = dir + "/file";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void Write(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    // Long ago: what is written from now on shows in the time.
    const timespec times[2] = {{1000, 0}, {1000, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }
  static std::string Text(const FileBytes& file) {
    return {reinterpret_cast<const char*>(file.bytes().data()),
            file.bytes().size()};
  }

  std::filesystem::path dir_;
  std::string path_;
};

TEST_F(FileTest, ReadsWholeFilesOfAnySize) {
  for (size_t size :
       {size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}, size_t{300000}}) {
    std::string bytes(size, '\0');
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 7);
    Write(bytes);
    size_t seen = 0;
    const auto file =
        FileBytes::Read(path_, [&](std::span<const uint8_t> start) {
          seen = start.size();
          return absl::OkStatus();
        });
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Text(*file), bytes);
    EXPECT_EQ(seen, std::min(size, FileBytes::kStartBytes));
    EXPECT_EQ(*StampOf(path_), file->stamp());
  }
}

TEST_F(FileTest, RefusesWhatIsNoRegularFile) {
  EXPECT_TRUE(absl::IsNotFound(FileBytes::Read(path_, {}).status()));
  EXPECT_TRUE(absl::IsNotFound(StampOf(path_).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(FileBytes::Read(dir_, {}).status()));
  Write("");
  EXPECT_TRUE(absl::IsInvalidArgument(FileBytes::Read(path_, {}).status()));
  std::filesystem::remove(path_);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(FileBytes::Read(path_, {}).status()));
}

TEST_F(FileTest, SmallFilesHaveAMostSize) {
  Write("twelve bytes");
  EXPECT_EQ(ReadSmallFile(path_, 12).value(), "twelve bytes");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadSmallFile(path_, 11).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadSmallFile(dir_, 100).status()));
  Write("");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadSmallFile(path_, 100).status()));
  const absl::Status none = ReadSmallFile(path_ + "x", 100).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_THAT(std::string(none.message()), ::testing::StartsWith(path_));
}

TEST_F(FileTest, RefusedByItsStartAFileIsNotReadFurther) {
  Write("bad");
  const auto file = FileBytes::Read(path_, [](std::span<const uint8_t>) {
    return absl::UnimplementedError("no");
  });
  EXPECT_TRUE(absl::IsUnimplemented(file.status()));
}

TEST_F(FileTest, CutShortWhileItIsReadIsAnError) {
  Write(std::string(1 << 20, 'x'));
  const auto file = FileBytes::Read(path_, [&](std::span<const uint8_t>) {
    std::filesystem::resize_file(path_, 5000);
    return absl::OkStatus();
  });
  ASSERT_TRUE(absl::IsFailedPrecondition(file.status()));
  EXPECT_THAT(std::string(file.status().message()),
              HasSubstr("expected 1048576 bytes, found 5000"));
}

TEST_F(FileTest, WrittenToWhileItIsReadIsAnError) {
  Write(std::string(1 << 20, 'x'));
  const auto file = FileBytes::Read(path_, [&](std::span<const uint8_t>) {
    std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary)
        << "yyyy";
    return absl::OkStatus();
  });
  ASSERT_TRUE(absl::IsFailedPrecondition(file.status()));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("changed"));
}

TEST_F(FileTest, WhatHappensToAFileLaterChangesNothing) {
  const std::string bytes(100000, 'x');
  Write(bytes);
  const auto file = FileBytes::Read(path_, {});
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(path_, 0);
  EXPECT_EQ(Text(*file), bytes);
  EXPECT_NE(*StampOf(path_), file->stamp());
}

TEST_F(FileTest, ReleaseKeepsWhatSharesAPageWithOthers) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::string bytes(8 * page, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 7);
  Write(bytes);
  const auto file = FileBytes::Read(path_, {});
  ASSERT_TRUE(file.ok()) << file.status();
  file->Release(file->bytes().subspan(page + 100, 10));
  EXPECT_EQ(Text(*file), bytes);
  file->Release(file->bytes().subspan(page + 1, 3 * page));
  const std::string text(reinterpret_cast<const char*>(file->bytes().data()),
                         2 * page);
  EXPECT_EQ(text, bytes.substr(0, 2 * page));
  // The kernel says it without a crash.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(::write(ends[1], file->bytes().data() + 2 * page, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace xcache
