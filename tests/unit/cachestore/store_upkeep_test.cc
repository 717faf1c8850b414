// Backups and looks at a store that goes on being used.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPageBytes = 20'000;

// Puts the files into a folder.
class FolderSink : public BackupSink {
 public:
  explicit FolderSink(std::string dir) : dir_(std::move(dir)) {}

  absl::Status Begin(std::string_view path, uint64_t num_bytes) override {
    EXPECT_EQ(left_, 0u) << "before " << path;
    const fs::path to = fs::path(dir_) / path;
    EXPECT_FALSE(fs::exists(to)) << to;
    fs::create_directories(to.parent_path());
    file_ = std::ofstream(to, std::ios::binary);
    left_ = num_bytes;
    paths_.insert(std::string(path));
    return absl::OkStatus();
  }
  absl::Status Append(std::string_view bytes) override {
    EXPECT_LE(bytes.size(), left_);
    left_ -= bytes.size();
    num_bytes_ += bytes.size();
    file_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file_.flush();
    if (on_append_) on_append_();
    return answer_;
  }

  const std::string dir_;
  std::ofstream file_;
  uint64_t left_ = 0;
  uint64_t num_bytes_ = 0;
  std::set<std::string> paths_;
  std::function<void()> on_append_;
  absl::Status answer_;
};

class StoreUpkeepTest : public StoreFixture {
 protected:
  StoreUpkeepTest() : StoreFixture(kPageBytes) {}

  static std::string IdOf(int i) { return absl::StrCat("s", i); }
  void Commit(int first, int last, uint64_t turn) {
    for (int i = first; i < last; ++i) {
      ASSERT_TRUE(CommitTurn(RecordOf("tenant", IdOf(i), turn)).ok());
    }
  }
  std::string BackupDir() const { return dir_.path() + "/backup"; }
  absl::StatusOr<BackupReport> Backup(FolderSink& sink,
                                      bool sessions_only = false) {
    return store_->Backup({.sessions_only = sessions_only, .bytes_per_s = 0},
                          sink);
  }

  // Opens the backup as a store of its own.
  class Restored {
   public:
    explicit Restored(const std::string& dir) {
      CacheStoreOptions options;
      options.dir = dir;
      options.disk_bytes = int64_t{1} << 30;
      auto opened = CacheStore::Open(options, budget_);
      EXPECT_TRUE(opened.ok()) << opened.status();
      if (opened.ok()) store_ = *std::move(opened);
    }
    CacheStore* operator->() { return store_.get(); }

   private:
    MemoryBudget budget_{kMemory};
    std::unique_ptr<CacheStore> store_;
  };

  // Whole: its record, and each of its pages with the bytes that were put.
  static uint64_t CheckSession(Restored& restored, const std::string& id,
                               int* num_pages) {
    const auto record = restored->sessions().Load("tenant", id);
    EXPECT_TRUE(record.ok()) << record.status();
    if (!record.ok()) return 0;
    EXPECT_EQ(*record, RecordOf("tenant", id, record->turn));
    for (const PageKey& key : record->page_keys) {
      const auto hit = restored->pages().Get(key);
      if (!hit.ok()) {
        EXPECT_TRUE(absl::IsNotFound(hit.status())) << hit.status();
        continue;
      }
      EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      ++*num_pages;
    }
    return record->turn;
  }
};

TEST_F(StoreUpkeepTest, ABackupIsAStore) {
  Open();
  Commit(0, 20, 5);
  FolderSink sink(BackupDir());
  const auto report = Backup(sink);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions, 20);
  EXPECT_EQ(report->missing_sessions, 0);
  EXPECT_EQ(report->pages, 100);
  EXPECT_EQ(report->store_format, 2u);
  EXPECT_EQ(sink.left_, 0u);
  for (const char* name : {"sessions/CURRENT", "pages/CURRENT"}) {
    EXPECT_TRUE(sink.paths_.contains(name)) << name;
  }
  Restored restored(BackupDir());
  EXPECT_EQ(restored->stats().sessions.num_sessions, 20);
  int num_pages = 0;
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(CheckSession(restored, IdOf(i), &num_pages), 5u);
  }
  EXPECT_EQ(num_pages, 100);
  EXPECT_EQ(restored->stats().sessions.corrupt, 0);
  EXPECT_EQ(restored->stats().files.torn_logs, 0);
}

TEST_F(StoreUpkeepTest, TablesComeWithTheirChecksums) {
  Open();
  Commit(0, 20, 5);
  Open();  // what was in the log is in tables now
  FolderSink sink(BackupDir());
  ASSERT_TRUE(Backup(sink).ok());
  int num_tables = 0;
  for (const std::string& path : sink.paths_) {
    if (!absl::EndsWith(path, ".sst")) continue;
    ++num_tables;
    EXPECT_EQ(fs::file_size(fs::path(BackupDir()) / path),
              fs::file_size(fs::path(options_.dir) / path));
  }
  EXPECT_GE(num_tables, 2);
  Restored restored(BackupDir());
  int num_pages = 0;
  for (int i = 0; i < 20; ++i) CheckSession(restored, IdOf(i), &num_pages);
  EXPECT_EQ(num_pages, 100);
}

TEST_F(StoreUpkeepTest, WithoutPagesTheConversationsAreWhole) {
  Open();
  Commit(0, 5, 3);
  FolderSink sink(BackupDir());
  const auto report = Backup(sink, /*sessions_only=*/true);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->pages, 0);
  for (const std::string& path : sink.paths_) {
    EXPECT_TRUE(absl::StartsWith(path, "sessions/")) << path;
  }
  Restored restored(BackupDir());
  int num_pages = 0;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(CheckSession(restored, IdOf(i), &num_pages), 3u);
  }
  EXPECT_EQ(num_pages, 0);
}

// Turns, deletions, evictions and compactions go on all the while.
TEST_F(StoreUpkeepTest, ABackupOfAStoreInUseHasEveryTurnCommittedBefore) {
  options_.disk_bytes = 64 << 20;  // small files, that are rewritten often
  options_.compaction_bytes_per_s = 0;
  Open();
  constexpr int kSessions = 24;
  Commit(0, kSessions, 1);
  std::vector<std::atomic<uint64_t>> turns(kSessions);
  for (auto& turn : turns) turn = 1;
  std::atomic<bool> stop{false};
  std::vector<std::thread> users;
  for (int user = 0; user < 2; ++user) {
    users.emplace_back([&, user] {
      for (uint64_t turn = 2; !stop; ++turn) {
        for (int i = user; i < kSessions && !stop; i += 2) {
          // A long one would fill the disk.
          const auto record = RecordOf("tenant", IdOf(i), turn);
          if (CommitTurn(record).ok()) turns[static_cast<size_t>(i)] = turn;
        }
        const auto passing = RecordOf("tenant", absl::StrCat("p", user), 3);
        CommitTurn(passing).IgnoreError();
        store_->sessions().Delete("tenant", passing.id).IgnoreError();
        if (turn == 40) break;
      }
    });
  }
  for (int round = 0; round < 5; ++round) {
    std::vector<uint64_t> before;
    for (const auto& turn : turns) before.push_back(turn);
    const std::string dir = absl::StrCat(BackupDir(), round);
    FolderSink sink(dir);
    // Long enough for files to be replaced under it.
    sink.on_append_ = [] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    };
    const auto report = Backup(sink);
    ASSERT_TRUE(report.ok()) << report.status();
    Restored restored(dir);
    int num_pages = 0;
    for (int i = 0; i < kSessions; ++i) {
      EXPECT_GE(CheckSession(restored, IdOf(i), &num_pages),
                before[static_cast<size_t>(i)])
          << IdOf(i) << " in round " << round;
    }
    EXPECT_GT(num_pages, 0);
    EXPECT_EQ(restored->stats().sessions.corrupt, 0);
    fs::remove_all(dir);
  }
  stop = true;
  for (std::thread& user : users) user.join();
}

TEST_F(StoreUpkeepTest, OneAtATime) {
  Open();
  Commit(0, 2, 1);
  FolderSink sink(BackupDir());
  absl::Status other = absl::OkStatus();
  sink.on_append_ = [&] {
    FolderSink second(BackupDir() + "2");
    other = Backup(second).status();
    EXPECT_THAT(store_->Verify({}).status(),
                HasCode(absl::StatusCode::kAborted));
  };
  EXPECT_TRUE(Backup(sink).ok());
  EXPECT_THAT(other, HasCode(absl::StatusCode::kAborted));
  sink.on_append_ = nullptr;
  FolderSink third(BackupDir() + "3");
  EXPECT_TRUE(Backup(third).ok());
}

TEST_F(StoreUpkeepTest, WhatTheSinkSaysEndsIt) {
  Open();
  Commit(0, 2, 1);
  FolderSink sink(BackupDir());
  sink.answer_ = absl::CancelledError("enough");
  EXPECT_THAT(Backup(sink).status(), HasCode(absl::StatusCode::kCancelled));
  EXPECT_EQ(sink.paths_.size(), 1u);
  // The store deletes files again, and goes on.
  Commit(2, 4, 1);
  EXPECT_TRUE(store_->Flush().ok());
}

// A backup keeps files from deletion. Where that fills the disk it ends, before
// a turn would be refused.
TEST_F(StoreUpkeepTest, ABackupGivesWayToTurns) {
  options_.disk_bytes = kMinDiskBytes;
  Open();
  Commit(0, 4, 1);
  FolderSink sink(BackupDir());
  // Each piece of it waits for turns, until no disk holds them. Those of two
  // pieces may come before it ends: they are in memory until there is room.
  int next = 100;
  int num_in_memory = 0;
  sink.on_append_ = [&] {
    for (int i = 0; i < 20; ++i, ++next) {
      const absl::Status kept = CommitTurn(RecordOf("tenant", IdOf(next), 5));
      // A page may be refused, and then the turn was not tried.
      if (kept.ok()) continue;
      const auto committed =
          store_->sessions().Commit(RecordOf("tenant", IdOf(next), 5));
      ASSERT_TRUE(committed.ok()) << committed.status();
      if (!committed->why.ok()) ++num_in_memory;
    }
  };
  absl::Status status = absl::OkStatus();
  for (int round = 0; round < 100 && status.ok(); ++round) {
    sink.paths_.clear();
    fs::remove_all(BackupDir());
    sink.left_ = 0;
    status = Backup(sink).status();
  }
  EXPECT_THAT(status, HasCode(absl::StatusCode::kResourceExhausted));
  EXPECT_LE(num_in_memory, 2 * 20);
  EXPECT_TRUE(
      Eventually([&] { return store_->stats().sessions.num_undurable == 0; }));
  // The disk is the store's again.
  EXPECT_TRUE(Eventually(
      [&] { return CommitTurn(RecordOf("tenant", "after", 3)).ok(); }));
}

TEST_F(StoreUpkeepTest, ARateIsKept) {
  Open();
  Commit(0, 10, 5);  // a megabyte of pages
  FolderSink sink(BackupDir());
  const auto start = std::chrono::steady_clock::now();
  const auto report =
      store_->Backup({.sessions_only = false, .bytes_per_s = 4 << 20}, sink);
  ASSERT_TRUE(report.ok()) << report.status();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  // The last piece is not waited for.
  EXPECT_GE(seconds, (static_cast<double>(sink.num_bytes_) - (256 << 10) -
                      (4 << 20) / 20.0) /
                         (4 << 20));
}

TEST_F(StoreUpkeepTest, MemoryAloneHasNothingToBackUp) {
  options_.dir = "";
  Open();
  FolderSink sink(BackupDir());
  EXPECT_THAT(Backup(sink).status(),
              HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->Verify({}).status(),
              HasCode(absl::StatusCode::kFailedPrecondition));
}

TEST_F(StoreUpkeepTest, ALookReadsEveryRecord) {
  Open();
  Commit(0, 7, 3);
  ASSERT_TRUE(store_->Flush().ok());
  int64_t words = 0;
  VerifyOptions options;
  options.progress = [&](const VerifyReport&) {
    ++words;
    return absl::OkStatus();
  };
  const auto report = store_->Verify(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions, 7);
  EXPECT_EQ(report->pages, 21);
  EXPECT_GE(report->bytes, 21 * static_cast<int64_t>(kPageBytes));
  EXPECT_EQ(report->damaged_sessions + report->damaged_pages +
                report->damaged_files + report->unreadable,
            0);
  EXPECT_GE(words, 28);
  // It is nobody's use of a page.
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).hits, 0);
  options.progress = [](const VerifyReport&) {
    return absl::CancelledError("enough");
  };
  EXPECT_THAT(store_->Verify(options).status(),
              HasCode(absl::StatusCode::kCancelled));
}

TEST_F(StoreUpkeepTest, ALookFindsDamagedPagesAndDropsThem) {
  Open();
  Commit(0, 4, 4);
  Open();
  std::vector<fs::path> blobs;
  for (const auto& file : fs::directory_iterator(options_.dir + "/pages")) {
    if (file.path().extension() == ".blob") blobs.push_back(file.path());
  }
  ASSERT_EQ(blobs.size(), 1u);
  // Within a page, not in what RocksDB puts between two.
  FlipByte(blobs[0], fs::file_size(blobs[0]) / 2 + kPageBytes / 4);
  const auto report = store_->Verify({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->pages, 16);
  EXPECT_EQ(report->damaged_pages, 1);
  EXPECT_EQ(report->damaged_sessions, 0);
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).corrupt, 1);
  const auto again = store_->Verify({});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->pages, 15);
  EXPECT_EQ(again->damaged_pages, 0);
}

TEST_F(StoreUpkeepTest, ALookFindsDamagedTablesWhereverTheDamageIs) {
  Open();
  Commit(0, 30, 2);
  Open();
  std::string table;
  for (const auto& file : fs::directory_iterator(options_.dir + "/sessions")) {
    if (file.path().extension() == ".sst") table = file.path();
  }
  ASSERT_FALSE(table.empty());
  const uint64_t size = fs::file_size(table);
  for (const uint64_t at :
       {uint64_t{0}, size / 3, size - 200, size - 10, size - 1}) {
    FlipByte(table, at);
    std::vector<std::string> files;
    VerifyOptions options;
    options.on_damaged_file = [&](std::string_view path) {
      files.emplace_back(path);
    };
    const auto report = store_->Verify(options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->damaged_files, 1) << at;
    EXPECT_EQ(files, std::vector<std::string>{
                         "sessions/" + fs::path(table).filename().string()});
    FlipByte(table, at);
  }
}

TEST_F(StoreUpkeepTest, ALookNamesDamagedSessions) {
  Open();
  Commit(0, 6, 2);
  const std::string key = SessionKeyBytes("tenant", "s3");
  store_.reset();
  {
    LoneDatabase sessions(DatabaseKind::kSessions, options_.dir,
                          options_.disk_bytes);
    std::string manifest;
    ASSERT_TRUE(sessions->Get(Family::kSessions, key, &manifest).ok());
    manifest[manifest.size() / 2] ^= 1;
    const WriteOp ops[] = {{Family::kSessions, key, {{manifest, {}}}}};
    ASSERT_TRUE(
        sessions->Write(ops, /*sync=*/true, Database::Room::kRecord).ok());
  }
  Open();
  std::map<std::string, std::string> damaged;
  VerifyOptions options;
  options.on_damaged_session = [&](std::string_view tenant, std::string_view id,
                                   const absl::Status& why) {
    EXPECT_EQ(tenant, "tenant");
    damaged[std::string(id)] = std::string(why.message());
  };
  const auto report = store_->Verify(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions, 6);
  EXPECT_EQ(report->damaged_sessions, 1);
  ASSERT_EQ(damaged.size(), 1u);
  EXPECT_TRUE(damaged.contains("s3"));
  EXPECT_EQ(report->damaged_files, 0);
}

}  // namespace
}  // namespace xcache
