#include "server/frontend/file_watcher.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;

class FileWatcherTest : public ::testing::Test {
 protected:
  FileWatcherTest() { Write("one"); }
  ~FileWatcherTest() override { std::remove(path_.c_str()); }

  void Write(const std::string& text) const { std::ofstream(path_) << text; }
  bool WaitForReloads(int wanted) {
    for (int i = 0; i < 500 && reloads_ < wanted; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    return reloads_ == wanted;
  }
  FileWatcher::Watched Watched() {
    return {"tokens", {path_}, [this] {
              ++reloads_;
              return fail_ ? absl::InvalidArgumentError("bad")
                           : absl::OkStatus();
            }};
  }

  const std::string path_ =
      ::testing::TempDir() + "/file_watcher_test." + std::to_string(getpid());
  std::atomic<int> reloads_{0};
  std::atomic<bool> fail_{false};
};

TEST_F(FileWatcherTest, ReloadsWhatWasWrittenAndWhatWasReplaced) {
  FileWatcher watcher({Watched()}, milliseconds(5));
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(reloads_, 0) << "nothing has changed yet";
  Write("another");
  EXPECT_TRUE(WaitForReloads(1));
  // Of the same size, put in its place.
  std::ofstream(path_ + ".new") << "renamed";
  ASSERT_EQ(std::rename((path_ + ".new").c_str(), path_.c_str()), 0);
  EXPECT_TRUE(WaitForReloads(2));
  EXPECT_EQ(watcher.counts().at(0).reloaded, 2u);
}

TEST_F(FileWatcherTest, CountsWhatCouldNotBeRead) {
  fail_ = true;
  FileWatcher watcher({Watched()}, milliseconds(5));
  Write("another");
  EXPECT_TRUE(WaitForReloads(1));
  watcher.ReloadAll();
  EXPECT_EQ(reloads_, 2);
  EXPECT_EQ(watcher.counts().at(0).reloaded, 0u);
  EXPECT_EQ(watcher.counts().at(0).failed, 2u);
}

}  // namespace
}  // namespace xcache
