// Rule R4 seen from the file system: what is acknowledged was synced, in order.
// kill -9 alone cannot show a missing fsync; here everything that was not
// synced is thrown away, as a power loss would.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "engine/base/mutex.h"
#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;
using rocksdb::FileOptions;
using rocksdb::FSDirectory;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

constexpr size_t kPageBytes = 20'000;

// What of each file is synced, and how often logs were.
class SyncLog {
 public:
  void Created(const std::string& name) {
    MutexLock lock(mu_);
    synced_[name] = 0;
  }
  void Synced(const std::string& name, uint64_t size) {
    MutexLock lock(mu_);
    uint64_t& synced = synced_[name];
    synced = std::max(synced, size);
    if (name.ends_with(".log")) {
      ++(name.find("/pages/") == std::string::npos ? num_log_syncs_
                                                   : num_page_log_syncs_);
    }
  }
  void Renamed(const std::string& from, const std::string& to) {
    MutexLock lock(mu_);
    const auto it = synced_.find(from);
    if (it == synced_.end()) return;
    synced_[to] = it->second;
    synced_.erase(from);
  }
  void Deleted(const std::string& name) {
    MutexLock lock(mu_);
    synced_.erase(name);
  }
  // Held while files go or change names, and while a copy of all is taken.
  Mutex& names_mu() { return names_mu_; }
  // Of sessions.
  int num_log_syncs() const {
    MutexLock lock(mu_);
    return num_log_syncs_;
  }
  int num_page_log_syncs() const {
    MutexLock lock(mu_);
    return num_page_log_syncs_;
  }
  std::map<std::string, uint64_t> synced() const {
    MutexLock lock(mu_);
    return synced_;
  }

 private:
  Mutex names_mu_;
  mutable Mutex mu_;
  std::map<std::string, uint64_t> synced_ XC_GUARDED_BY(mu_);
  int num_log_syncs_ XC_GUARDED_BY(mu_) = 0;
  int num_page_log_syncs_ XC_GUARDED_BY(mu_) = 0;
};

class SyncedFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  SyncedFile(std::unique_ptr<FSWritableFile> file, std::string name,
             SyncLog& log)
      : FSWritableFileOwnerWrapper(std::move(file)),
        name_(std::move(name)),
        log_(log) {}

  IOStatus Append(const Slice& data, const IOOptions& options,
                  IODebugContext* dbg) override {
    size_ += data.size();
    return FSWritableFileOwnerWrapper::Append(data, options, dbg);
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info,
                  IODebugContext* dbg) override {
    size_ += data.size();
    return FSWritableFileOwnerWrapper::Append(data, options, info, dbg);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
    const uint64_t size = size_;
    const IOStatus status = FSWritableFileOwnerWrapper::Sync(options, dbg);
    if (status.ok()) log_.Synced(name_, size);
    return status;
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* dbg) override {
    const uint64_t size = size_;
    const IOStatus status = FSWritableFileOwnerWrapper::Fsync(options, dbg);
    if (status.ok()) log_.Synced(name_, size);
    return status;
  }

 private:
  const std::string name_;
  SyncLog& log_;
  std::atomic<uint64_t> size_{0};
};

class SyncLoggingFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit SyncLoggingFileSystem(SyncLog& log)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), log_(log) {}
  const char* Name() const override { return "SyncLoggingFileSystem"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* file,
                           IODebugContext* dbg) override {
    const IOStatus status =
        FileSystemWrapper::NewWritableFile(name, options, file, dbg);
    if (status.ok()) {
      log_.Created(name);
      *file = std::make_unique<SyncedFile>(std::move(*file), name, log_);
    }
    return status;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to,
                      const IOOptions& options, IODebugContext* dbg) override {
    MutexLock lock(log_.names_mu());
    const IOStatus status =
        FileSystemWrapper::RenameFile(from, to, options, dbg);
    if (status.ok()) log_.Renamed(from, to);
    return status;
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions& options,
                      IODebugContext* dbg) override {
    MutexLock lock(log_.names_mu());
    const IOStatus status = FileSystemWrapper::DeleteFile(name, options, dbg);
    if (status.ok()) log_.Deleted(name);
    return status;
  }

 private:
  SyncLog& log_;
};

class StoreDurabilityTest : public ::testing::Test {
 protected:
  StoreDurabilityTest()
      : env_(rocksdb::NewCompositeEnv(
            std::make_shared<SyncLoggingFileSystem>(log_))) {}

  CacheStoreOptions Options(const std::string& name) {
    CacheStoreOptions options;
    options.dir = dir_.path() + "/" + name;
    options.disk_bytes = 32 << 20;  // small memtables: flushes happen
    options.housekeeping_ms = 5;
    return options;
  }
  // What a power loss at this instant leaves of `from`: of each file that
  // RocksDB wrote the synced part, and `rubbish` behind it.
  void LosePower(const std::string& from, const std::string& to,
                 const std::string& rubbish) {
    // The ledger may be there whether it was synced or not. It is copied first:
    // it says what is on disk by now.
    for (const char* folder : {"/sessions", "/pages"}) {
      fs::create_directories(to + folder);
    }
    if (fs::exists(LedgerPath(from + "/sessions"))) {
      fs::copy_file(LedgerPath(from + "/sessions"),
                    LedgerPath(to + "/sessions"),
                    fs::copy_options::overwrite_existing);
    }
    MutexLock lock(log_.names_mu());
    for (const auto& [path, size] : log_.synced()) {
      if (!path.starts_with(from + "/") || !fs::exists(path)) continue;
      const std::string copy = to + path.substr(from.size());
      fs::copy_file(path, copy, fs::copy_options::overwrite_existing);
      if (fs::file_size(copy) > size) {
        fs::resize_file(copy, size);
        if (path.ends_with(".log") && !rubbish.empty()) {
          std::FILE* file = std::fopen(copy.c_str(), "ab");
          ASSERT_NE(file, nullptr);
          std::fwrite(rubbish.data(), 1, rubbish.size(), file);
          std::fclose(file);
        }
      }
    }
  }

  TempDir dir_;
  SyncLog log_;
  std::unique_ptr<rocksdb::Env> env_;
  MemoryBudget budget_{128 << 20};
};

TEST_F(StoreDurabilityTest, CommitSyncsTheSessionsBeforeItReturnsAndNoPage) {
  CacheStoreOptions options = Options("store");
  options.env = env_.get();
  options.disk_bytes = int64_t{1} << 30;  // no flush in between
  auto store = CacheStore::Open(options, budget_);
  ASSERT_TRUE(store.ok()) << store.status();
  const int page_syncs = log_.num_page_log_syncs();
  for (uint64_t turn = 1; turn <= 5; ++turn) {
    const SessionRecord record = RecordOf("t", "chat", turn);
    const PageKey& key = record.page_keys.back();
    int before = log_.num_log_syncs();
    ASSERT_TRUE(
        (*store)->PutPage(key, kRootPageKey, BytesOf(key[0], kPageBytes)).ok());
    EXPECT_EQ(log_.num_log_syncs(), before);
    ASSERT_TRUE(CommitDurably(**store, record).ok());
    EXPECT_GE(log_.num_log_syncs(), before + 1);
  }
  EXPECT_EQ(log_.num_page_log_syncs(), page_syncs);
  ASSERT_TRUE((*store)->Flush().ok());
  EXPECT_GT(log_.num_page_log_syncs(), page_syncs);
  const int before = log_.num_log_syncs();
  ASSERT_TRUE((*store)->sessions().Delete("t", "chat").ok());
  EXPECT_GE(log_.num_log_syncs(), before + 1);
}

// Many turns, with flushes and new logs between; a power loss after each.
TEST_F(StoreDurabilityTest, WhatWasCommittedSurvivesAPowerLossAtAnyTurn) {
  CacheStoreOptions options = Options("store");
  options.env = env_.get();
  auto store = CacheStore::Open(options, budget_);
  ASSERT_TRUE(store.ok()) << store.status();
  int num_pages = 0;
  for (uint64_t turn = 1; turn <= 24; ++turn) {
    for (const char* id : {"a", "b", "c", "d"}) {
      ASSERT_TRUE(
          CommitTurn(**store, RecordOf("t", id, turn), kPageBytes).ok());
    }
    // On their way when the power goes: no one was told of them.
    for (int i = 0; i < 5; ++i) {
      (*store)
          ->PutPage(KeyOf(static_cast<int>(turn) * 10 + i), kRootPageKey,
                    BytesOf(i, 30'000))
          .IgnoreError();
    }
    const std::string name = absl::StrCat("after-", turn);
    // Nothing, zeros, or other bytes behind what was synced.
    const std::string rubbish = turn % 3 == 0   ? std::string()
                                : turn % 3 == 1 ? std::string(5000, '\0')
                                                : BytesOf(7, 5000);
    LosePower(options.dir, Options(name).dir, rubbish);
    MemoryBudget budget(128 << 20);
    auto after = CacheStore::Open(Options(name), budget);
    ASSERT_TRUE(after.ok()) << "turn " << turn << ": " << after.status();
    for (const char* id : {"a", "b", "c", "d"}) {
      const SessionRecord expected = RecordOf("t", id, turn);
      const auto record = (*after)->sessions().Load("t", id);
      ASSERT_TRUE(record.ok()) << record.status();
      EXPECT_EQ(*record, expected) << "turn " << turn;
      for (const PageKey& key : expected.page_keys) {
        // Pages are a cache: there, whole, or not.
        const auto hit = (*after)->pages().Get(key);
        if (hit.ok()) {
          ++num_pages;
          EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
        } else {
          EXPECT_THAT(hit.status(), HasCode(absl::StatusCode::kNotFound));
        }
      }
    }
    EXPECT_EQ((*after)->stats().tier(PageTier::kDisk).corrupt, 0);
    EXPECT_EQ((*after)->stats().sessions.corrupt, 0);
  }
  EXPECT_GT((*store)->stats().files.blob_bytes, 0) << "the test needs flushes";
  EXPECT_GT(num_pages, 0) << "flushed pages are there again";
}

// Two sessions commit at once, and power goes at random instants: each session
// is at its last acknowledged turn or the next one.
TEST_F(StoreDurabilityTest, ConcurrentCommitsAreAtTheLastTurnOrTheNext) {
  CacheStoreOptions options = Options("store");
  options.env = env_.get();
  auto store = CacheStore::Open(options, budget_);
  ASSERT_TRUE(store.ok()) << store.status();
  constexpr int kClients = 3;
  std::array<std::atomic<uint64_t>, kClients> acknowledged{};
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      for (uint64_t turn = 1; turn <= 200 && !stop; ++turn) {
        const SessionRecord record =
            RecordOf("t", absl::StrCat("client-", c), turn);
        if (CommitTurn(**store, record, kPageBytes).ok()) {
          acknowledged[static_cast<size_t>(c)] = turn;
        }
      }
    });
  }
  for (int loss = 0; loss < 12; ++loss) {
    std::this_thread::sleep_for(std::chrono::milliseconds(15));
    std::array<uint64_t, kClients> before;
    for (size_t c = 0; c < kClients; ++c) before[c] = acknowledged[c];
    const std::string name = absl::StrCat("loss-", loss);
    LosePower(options.dir, Options(name).dir, "");
    std::array<uint64_t, kClients> after;
    for (size_t c = 0; c < kClients; ++c) after[c] = acknowledged[c];
    MemoryBudget budget(128 << 20);
    const auto found = CacheStore::Open(Options(name), budget);
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok()) break;  // the clients must be joined
    for (size_t c = 0; c < kClients; ++c) {
      if (before[c] == 0) continue;
      const auto record =
          (*found)->sessions().Load("t", absl::StrCat("client-", c));
      EXPECT_TRUE(record.ok()) << record.status();
      if (!record.ok()) continue;
      EXPECT_GE(record->turn, before[c]);
      EXPECT_LE(record->turn, after[c] + 1);
      EXPECT_EQ(*record, RecordOf("t", record->id, record->turn));
      for (const PageKey& key : record->page_keys) {
        const auto hit = (*found)->pages().Get(key);
        EXPECT_TRUE(hit.ok() || absl::IsNotFound(hit.status())) << hit.status();
      }
    }
  }
  stop = true;
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace xcache
