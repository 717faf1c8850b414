// Rule R5 on the disk: the cap holds and counts everything; who goes first; a
// full file system stops the spill and nothing else.
#include <sys/mount.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_page_store.h"
#include "cachestore/rocksdb/disk_space.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMiB = 1 << 20;
constexpr size_t kPageBytes = 100'000;

TEST(DiskPlanTest, SharesAddUpToTheCap) {
  for (int64_t cap : {int64_t{1}, kMinDiskBytes, 100 * kMiB, 10'000 * kMiB,
                      int64_t{1} << 45}) {
    const DiskPlan plan = PlanDisk(cap, 64 * kMiB);
    EXPECT_GE(plan.cap, cap);
    // Live pages, then garbage, then the log, then what a flush writes before
    // its log goes and what a collection copies before it deletes.
    EXPECT_LT(plan.live_target, plan.high_water);
    EXPECT_LT(plan.high_water, plan.pages_limit);
    EXPECT_LE(plan.pages_limit + plan.max_wal, plan.records_limit);
    const auto copied =
        static_cast<int64_t>(plan.gc_cutoff * static_cast<double>(plan.cap));
    EXPECT_LE(plan.records_limit + plan.write_buffer +
                  plan.session_write_buffer + copied,
              plan.cap);
    EXPECT_GT(plan.live_target, plan.cap / 3);
    // A collection must get at least one file.
    EXPECT_GE(plan.gc_cutoff * static_cast<double>(plan.live_target) /
                  static_cast<double>(plan.write_buffer),
              1.0);
  }
}

TEST(DiskSpaceTest, CountsFilesSubfoldersAndWhatIsAdmitted) {
  TempDir dir;
  fs::create_directory(dir.path() + "/sub");
  std::ofstream(dir.path() + "/a") << std::string(10'000, 'x');
  std::ofstream(dir.path() + "/sub/b") << std::string(20'000, 'x');
  const int64_t bytes = FolderBytes(dir.path());
  EXPECT_GE(bytes, 30'000);
  EXPECT_LT(bytes, 60'000);
  EXPECT_EQ(FolderBytes(dir.path() + "/none"), 0);

  const DiskPlan plan = PlanDisk(kMinDiskBytes, 64 * kMiB);
  DiskSpace space(dir.path(), plan, 0);
  EXPECT_EQ(space.used_bytes(), bytes);
  EXPECT_TRUE(space.Admit(1000, DiskSpace::Room::kPage).ok());
  EXPECT_EQ(space.used_bytes(), bytes + 1000);
  EXPECT_THAT(space.Admit(plan.pages_limit, DiskSpace::Room::kPage),
              HasCode(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(
      space.Admit(plan.pages_limit - bytes + 1, DiskSpace::Room::kRecord).ok());
  EXPECT_THAT(space.Admit(plan.records_limit, DiskSpace::Room::kRecord),
              HasCode(absl::StatusCode::kResourceExhausted));
}

class StoreSpaceTest : public ::testing::Test {
 protected:
  void Open(int64_t disk_bytes) {
    disk_bytes_ = disk_bytes;
    db_.emplace(DatabaseKind::kPages, store_dir_, disk_bytes);
    pages_ = *DiskPageStore::Open(**db_, budget_, nullptr);
  }
  void Reopen() {
    pages_.reset();
    db_.reset();
    Open(disk_bytes_);
  }
  // Puts a chain's next page, making room where there is none.
  void Put(const PageKey& key, const PageKey& parent, int seed) {
    const PageRef page =
        PageOf(budget_, key, parent, BytesOf(seed, kPageBytes));
    if (pages_->Put(page).ok()) return;
    pages_->MakeRoom();
    const absl::Status put = pages_->Put(page);
    EXPECT_TRUE(put.ok()) << put;
  }
  std::vector<PageKey> PutChain(const std::string& name, int num_pages) {
    std::vector<PageKey> keys = ChainOf(name, num_pages);
    PageKey parent = kRootPageKey;
    for (const PageKey& key : keys) {
      Put(key, parent, key[0]);
      parent = key;
    }
    return keys;
  }
  int NumPresent(const std::vector<PageKey>& keys) {
    return static_cast<int>(std::count_if(
        keys.begin(), keys.end(),
        [&](const PageKey& key) { return pages_->Contains(key); }));
  }
  // Those of a chain that are there form its beginning.
  void ExpectPrefix(const std::vector<PageKey>& keys) {
    const int present = NumPresent(keys);
    for (int i = 0; i < static_cast<int>(keys.size()); ++i) {
      EXPECT_EQ(pages_->Contains(keys[static_cast<size_t>(i)]), i < present);
    }
  }

  TempDir dir_;
  const std::string store_dir_ = dir_.path() + "/store";
  int64_t disk_bytes_ = 0;
  MemoryBudget budget_{128 * kMiB};
  std::optional<LoneDatabase> db_;
  std::unique_ptr<DiskPageStore> pages_;
};

TEST_F(StoreSpaceTest, FolderStaysBelowTheCapThroughManyTimesItsSize) {
  Open(kMinDiskBytes);
  std::atomic<int64_t> most{0};
  std::atomic<bool> stop{false};
  std::thread watcher([&] {
    while (!stop) {
      most = std::max<int64_t>(most, FolderBytes(store_dir_));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  std::vector<std::vector<PageKey>> chains;
  for (int i = 0; i < 60; ++i) {  // 60 MB in all
    chains.push_back(PutChain(absl::StrCat("chain ", i), 10));
  }
  stop = true;
  watcher.join();
  EXPECT_LE(most, kMinDiskBytes);
  EXPECT_GT(most, kMinDiskBytes / 3) << "the room is used";
  EXPECT_GT(pages_->stats().evictions, 300);
  DiskStats stats;
  (*db_)->AddStats(&stats);
  EXPECT_GT(stats.compactions, 0);
  // The last ones are there, the first ones are not.
  EXPECT_EQ(NumPresent(chains.back()), 10);
  EXPECT_EQ(NumPresent(chains.front()), 0);
  const auto check = [&] {
    int present = 0;
    for (const auto& chain : chains) {
      ExpectPrefix(chain);
      present += NumPresent(chain);
      for (const PageKey& key : chain) {
        if (!pages_->Contains(key)) continue;
        const auto hit = pages_->Get(key);
        ASSERT_TRUE(hit.ok()) << hit.status();
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      }
    }
    EXPECT_EQ(pages_->stats().num_pages, present);
    EXPECT_GT(present, 40);
  };
  check();
  Reopen();
  check();
  EXPECT_EQ(pages_->stats().corrupt, 0);
}

TEST_F(StoreSpaceTest, UnclaimedPagesGoFirstThenTailsOfTheLeastRecentlyUsed) {
  Open(kMinDiskBytes);
  const auto old_session = PutChain("old", 10);
  const auto pinned = PutChain("pinned", 10);
  const auto young_session = PutChain("young", 10);
  const auto nobodys = PutChain("nobody", 10);
  pages_->Claim("old", old_session, /*pinned=*/false, 1000);
  pages_->Claim("pinned", pinned, /*pinned=*/true, 500);
  pages_->Claim("young", young_session, /*pinned=*/false, 2000);

  // As much as takes the pages of nobody away, and no more.
  std::vector<std::vector<PageKey>> others;
  while (NumPresent(nobodys) == 10) {
    others.push_back(PutChain(absl::StrCat("other ", others.size()), 5));
    pages_->MakeRoom();
  }
  EXPECT_EQ(NumPresent(old_session), 10);
  EXPECT_EQ(NumPresent(young_session), 10);
  EXPECT_EQ(pages_->num_demoted(), 0);

  // All that comes is claimed: old sessions have to give way.
  uint64_t used = 3000;
  while (NumPresent(old_session) == 10) {
    const std::string name = absl::StrCat("session ", used);
    pages_->Claim(name, PutChain(name, 5), /*pinned=*/false, ++used);
    pages_->MakeRoom();
  }
  EXPECT_GE(pages_->num_demoted(), 1);
  ExpectPrefix(old_session);
  EXPECT_EQ(NumPresent(nobodys), 0);
  EXPECT_EQ(NumPresent(young_session), 10);
  EXPECT_EQ(NumPresent(pinned), 10);
  for (int i = 0; i < 60; ++i) {
    const std::string name = absl::StrCat("session ", used);
    pages_->Claim(name, PutChain(name, 5), /*pinned=*/false, ++used);
    pages_->MakeRoom();
  }
  EXPECT_EQ(NumPresent(old_session), 0);
  EXPECT_EQ(NumPresent(young_session), 0);
  EXPECT_EQ(NumPresent(pinned), 10);
}

TEST_F(StoreSpaceTest, SessionThatIsUsedAgainClaimsItsPagesAgain) {
  Open(kMinDiskBytes);
  const auto a = PutChain("a", 5);
  const auto b = PutChain("b", 5);
  pages_->Claim("a", a, false, 1000);
  pages_->Claim("b", b, false, 2000);
  pages_->Claim("a", a, false, 3000);  // used: now b is the older one
  uint64_t used = 4000;
  while (NumPresent(a) + NumPresent(b) == 10) {
    const std::string name = absl::StrCat("session ", used);
    pages_->Claim(name, PutChain(name, 5), false, ++used);
    pages_->MakeRoom();
  }
  EXPECT_EQ(NumPresent(a), 5);
  EXPECT_LT(NumPresent(b), 5);
}

TEST_F(StoreSpaceTest, WhatIsPinnedIsNotEvictedAndPutsAreRefusedInstead) {
  Open(kMinDiskBytes);
  absl::Status put = absl::OkStatus();
  int num_put = 0;
  for (; num_put < 1000 && put.ok(); ++num_put) {
    const auto keys = ChainOf(absl::StrCat("pinned ", num_put), 1);
    put = pages_->Put(PageOf(budget_, keys[0], kRootPageKey,
                             BytesOf(keys[0][0], kPageBytes)));
    if (!put.ok()) break;
    pages_->Claim(absl::StrCat("s", num_put), keys, /*pinned=*/true, 1);
    pages_->MakeRoom();
  }
  EXPECT_THAT(put, HasCode(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(pages_->stats().evictions, 0);
  EXPECT_EQ(pages_->stats().num_pages, num_put);
  EXPECT_LE(FolderBytes(store_dir_), kMinDiskBytes);
  // A small record still finds room.
  const std::string record(30'000, 'x');
  const WriteOp ops[] = {{Family::kPageIndex, "k", {{record, {}}}}};
  EXPECT_TRUE((*db_)->Write(ops, true, Database::Room::kRecord).ok());
}

// What one thread deletes is never what another has just put: the index and the
// records agree, now and after a start.
TEST_F(StoreSpaceTest, PutsErasuresAndEvictionsAtOnceLoseNothing) {
  constexpr int kKeys = 150;  // about as many as there is room for
  Open(kMinDiskBytes);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::thread evictor([&] {
    while (!stop) pages_->MakeRoom();
  });
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int step = 0; step < 300; ++step) {
        // Few keys at a time, so that threads meet.
        const int i =
            step / 4 % (kKeys / 8) * 8 + static_cast<int>(random() % 8);
        const auto choice = random() % 8;
        if (choice == 0) {
          if (!pages_->Erase(KeyOf(i)).ok()) ++wrong;
        } else if (choice < 5) {
          const absl::Status put = pages_->Put(
              PageOf(budget_, KeyOf(i), kRootPageKey, BytesOf(i, kPageBytes)));
          if (!put.ok() && !absl::IsResourceExhausted(put)) ++wrong;
        } else {
          const auto hit = pages_->Get(KeyOf(i));
          const bool is_right =
              hit.ok() ? hit->page->bytes() == BytesOf(i, kPageBytes)
                       : absl::IsNotFound(hit.status());
          if (!is_right) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  evictor.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(pages_->stats().evictions, 0);
  std::vector<bool> present(kKeys);
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < kKeys; ++i) {
      const auto at = static_cast<size_t>(i);
      if (round == 0) present[at] = pages_->Contains(KeyOf(i));
      EXPECT_EQ(pages_->Contains(KeyOf(i)), present[at]) << i;
      EXPECT_EQ(pages_->Get(KeyOf(i)).ok(), present[at]) << i;
    }
    EXPECT_EQ(pages_->stats().corrupt, 0);
    Reopen();
  }
}

// An index that does not fit the memory refuses pages; at start it drops some.
TEST_F(StoreSpaceTest, IndexIsWithinTheBudget) {
  Open(1024 * kMiB);
  for (int i = 0; i < 2000; ++i) {
    ASSERT_TRUE(
        pages_->Put(PageOf(budget_, KeyOf(i), kRootPageKey, BytesOf(i, 100)))
            .ok());
  }
  EXPECT_GE(budget_.used_bytes(MemoryAccount::kStoreIndex),
            2000 * PageIndex::kEntryBytes);
  pages_.reset();
  MemoryBudget small(200'000);
  auto reopened = DiskPageStore::Open(**db_, small, nullptr);
  ASSERT_TRUE(reopened.ok());
  EXPECT_LE(small.used_bytes(), 200'000);
  const int64_t kept = (*reopened)->stats().num_pages;
  EXPECT_GT(kept, 100);
  EXPECT_LT(kept, 1000);
  EXPECT_EQ((*reopened)->stats().evictions, 2000 - kept);
  PageRef page = PageOf(budget_, KeyOf(9999), kRootPageKey, "x");
  EXPECT_THAT((*reopened)->Put(page),
              HasCode(absl::StatusCode::kResourceExhausted));
}

// A file system of its own, small and easily filled.
class TmpfsTest : public StoreFixture {
 protected:
  TmpfsTest() : StoreFixture(kPageBytes) {}
  void SetUp() override {
    mount_point_ = dir_.path() + "/disk";
    fs::create_directory(mount_point_);
    if (::mount("tmpfs", mount_point_.c_str(), "tmpfs", 0,
                "size=24m,mode=0700") != 0) {
      mount_point_.clear();
      GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
    }
    options_.dir = mount_point_ + "/store";
    // The cap is more than there is.
    options_.rocksdb_bytes = 8 * kMiB;
  }
  void TearDown() override {
    store_.reset();
    if (!mount_point_.empty()) ::umount(mount_point_.c_str());
  }
  // Takes room away, and gives it back.
  void Fill(int64_t leave_bytes) {
    const int64_t free = FileSystemOf(mount_point_).free;
    if (free <= leave_bytes) return;
    std::ofstream(mount_point_ + "/filler")
        << std::string(static_cast<size_t>(free - leave_bytes), 'x');
  }
  void Unfill() { fs::remove(mount_point_ + "/filler"); }

  // Runs turns until the disk is full, checks that serving goes on from
  // memory, makes room, and checks that everything becomes durable.
  void FillServeAndRecover() {
    uint64_t turn = 1;
    for (; turn <= 20; ++turn) {
      ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
    }
    Fill(/*leave_bytes=*/300'000);
    absl::Status committed = absl::OkStatus();
    for (; turn <= 200 && committed.ok(); ++turn) {
      committed = CommitTurn(RecordOf("t", "chat", turn));
    }
    EXPECT_TRUE(absl::IsResourceExhausted(committed) ||
                absl::IsUnavailable(committed))
        << committed;
    // Serving goes on: further turns, and other sessions, from memory.
    for (const char* id : {"chat", "other"}) {
      const SessionRecord record = RecordOf("t", id, turn);
      EXPECT_FALSE(CommitTurn(record).ok());
      EXPECT_EQ(*store_->sessions().Load("t", id), record);
      EXPECT_EQ(store_->sessions().Find("t", id)->durability,
                Durability::kMemory);
      for (const PageKey& key : record.page_keys) {
        const auto hit = store_->pages().Get(key);
        ASSERT_TRUE(hit.ok()) << hit.status();
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      }
    }
    EXPECT_TRUE(Eventually([&] { return store_->stats().files.degraded; }));
    EXPECT_FALSE(store_->stats().files.degraded_reason.empty());
    EXPECT_EQ(store_->stats().sessions.num_undurable, 2);
    EXPECT_GT(store_->stats().tier(PageTier::kDisk).put_failures, 0);

    Unfill();
    EXPECT_TRUE(Eventually([&] { return !store_->stats().files.degraded; }));
    EXPECT_TRUE(Eventually(
        [&] { return store_->stats().sessions.num_undurable == 0; }));
    EXPECT_EQ(store_->sessions().Find("t", "other")->durability,
              Durability::kLocal);
    EXPECT_TRUE(CommitTurn(RecordOf("t", "chat", turn + 1)).ok());
    Open();
    EXPECT_EQ(*store_->sessions().Load("t", "chat"),
              RecordOf("t", "chat", turn + 1));
    EXPECT_EQ(*store_->sessions().Load("t", "other"),
              RecordOf("t", "other", turn));
    EXPECT_EQ(store_->stats().sessions.corrupt, 0);
    for (const PageKey& key : RecordOf("t", "chat", turn + 1).page_keys) {
      const auto hit = store_->pages().Get(key);
      // A page that was refused is a miss, never a wrong one.
      if (hit.ok()) {
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      } else {
        EXPECT_THAT(hit.status(), HasCode(absl::StatusCode::kNotFound));
      }
    }
    EXPECT_EQ(store_->stats().tier(PageTier::kDisk).corrupt, 0);
  }

  std::string mount_point_;
};

TEST_F(TmpfsTest, FullDiskThatIsForeseenStopsTheSpillAndNothingElse) {
  options_.min_free_bytes = kMiB;
  Open();
  FillServeAndRecover();
}

// Nothing is held back: RocksDB itself runs into the end of the disk.
TEST_F(TmpfsTest, FullDiskThatIsNotForeseenStopsTheSpillAndNothingElse) {
  options_.min_free_bytes = -(int64_t{1} << 40);
  Open();
  FillServeAndRecover();
}

// RocksDB itself runs into the end of the disk, again and again, in whatever it
// writes at that moment. XCACHE_FULL_DISK_ROUNDS: for a campaign.
TEST_F(TmpfsTest, DiskThatFillsUpAgainAndAgainLosesNothing) {
  const char* wanted = std::getenv("XCACHE_FULL_DISK_ROUNDS");
  const int rounds = wanted != nullptr ? std::atoi(wanted) : 12;
  options_.min_free_bytes = -(int64_t{1} << 40);
  options_.housekeeping_ms = 5;
  Open();
  uint64_t turn = 0;
  std::mt19937 random(1);
  for (int round = 0; round < rounds; ++round) {
    Fill(/*leave_bytes=*/static_cast<int64_t>(random() % 400'000));
    // More than is left, and some more while nothing can be written.
    for (int i = 0; i < 12; ++i) {
      CommitTurn(RecordOf("t", "chat", ++turn % 40 + 1)).IgnoreError();
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const SessionRecord last = RecordOf("t", "chat", turn % 40 + 1);
    EXPECT_EQ(*store_->sessions().Load("t", "chat"), last);
    Unfill();
    EXPECT_TRUE(Eventually([&] {
      return !store_->stats().files.degraded &&
             store_->stats().sessions.num_undurable == 0;
    })) << store_->stats().files.degraded_reason;
    if (round % 4 == 3) Open();
    EXPECT_EQ(*store_->sessions().Load("t", "chat"), last);
  }
  EXPECT_EQ(store_->stats().sessions.corrupt, 0);
}

TEST_F(TmpfsTest, NoRoomToOpenIsOneClearLine) {
  for (const int64_t left : {0, 4096, 100'000}) {
    Fill(left);
    const absl::Status status = CacheStore::Open(options_, budget_).status();
    EXPECT_THAT(status, HasCode(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
    Unfill();
  }
  Open();
  const SessionRecord record =
      RecordOf("t", "chat", 5);  // less than a memtable
  ASSERT_TRUE(CommitTurn(record).ok());
  store_.reset();
  Fill(kMiB);  // enough for an empty log
  EXPECT_THAT(CacheStore::Open(options_, budget_).status(),
              HasCode(absl::StatusCode::kResourceExhausted));
  Unfill();
  Open();
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), record);
}

}  // namespace
}  // namespace xcache
