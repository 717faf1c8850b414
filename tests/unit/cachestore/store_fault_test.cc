// Faults that are no damage: a call to the file system fails for a while, the
// folder goes away, memory or an index is missing. Serving goes on, nothing is
// lost, nothing new is made over what is there, and it recovers by itself.
#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;
using rocksdb::FileOptions;
using rocksdb::FSRandomAccessFile;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using ::testing::HasSubstr;

// Files whose opening, or syncing, can be made to fail.
class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  FaultyFileSystem() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "FaultyFileSystem"; }

  std::atomic<bool> out_of_descriptors{false};
  std::atomic<int> failing_syncs{0};

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* file,
                           IODebugContext* dbg) override {
    if (out_of_descriptors) return NoDescriptors(name);
    const IOStatus status =
        FileSystemWrapper::NewWritableFile(name, options, file, dbg);
    if (status.ok()) {
      *file = std::make_unique<FaultyFile>(std::move(*file), *this);
    }
    return status;
  }
  IOStatus NewRandomAccessFile(const std::string& name,
                               const FileOptions& options,
                               std::unique_ptr<FSRandomAccessFile>* file,
                               IODebugContext* dbg) override {
    if (out_of_descriptors) return NoDescriptors(name);
    return FileSystemWrapper::NewRandomAccessFile(name, options, file, dbg);
  }

 private:
  static IOStatus NoDescriptors(const std::string& name) {
    return IOStatus::IOError("While open a file: " + name,
                             "Too many open files");
  }

  class FaultyFile : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    FaultyFile(std::unique_ptr<FSWritableFile> file, FaultyFileSystem& system)
        : FSWritableFileOwnerWrapper(std::move(file)), system_(system) {}
    IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
      if (system_.failing_syncs > 0) {
        --system_.failing_syncs;
        return IOStatus::IOError("While fdatasync", "Input/output error");
      }
      return FSWritableFileOwnerWrapper::Sync(options, dbg);
    }

   private:
    FaultyFileSystem& system_;
  };
};

class StoreFaultTest : public StoreFixture {
 protected:
  StoreFaultTest()
      : StoreFixture(/*page_bytes=*/20'000),
        system_(std::make_shared<FaultyFileSystem>()),
        env_(rocksdb::NewCompositeEnv(system_)) {
    options_.env = env_.get();
  }
  ~StoreFaultTest() override { store_.reset(); }

  bool IsWritingAgain() {
    return Eventually([&] {
      return !store_->stats().files.degraded &&
             store_->stats().sessions.num_undurable == 0;
    });
  }

  const std::shared_ptr<FaultyFileSystem> system_;
  const std::unique_ptr<rocksdb::Env> env_;
};

TEST_F(StoreFaultTest, OneFailedSyncIsOverByItself) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 1)).ok());
  system_->failing_syncs = 1;
  EXPECT_THAT(CommitTurn(RecordOf("t", "chat", 2)),
              HasCode(absl::StatusCode::kUnavailable));
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), RecordOf("t", "chat", 2));
  EXPECT_TRUE(IsWritingAgain()) << store_->stats().files.degraded_reason;
  EXPECT_TRUE(CommitTurn(RecordOf("t", "chat", 3)).ok());
  EXPECT_TRUE(CommitTurn(RecordOf("t", "other", 1)).ok());
  Open();
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), RecordOf("t", "chat", 3));
  EXPECT_EQ(store_->stats().sessions.corrupt, 0);
  EXPECT_EQ(store_->stats().files.pages_set_aside, 0);
}

TEST_F(StoreFaultTest, WithoutDescriptorsNothingIsLostAndWritingComesBack) {
  options_.disk_bytes = kMinDiskBytes;  // flushes happen: files are opened
  options_.rocksdb_bytes = 8 << 20;
  Open();
  uint64_t turn = 1;
  for (; turn <= 20; ++turn) {
    ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
  }
  system_->out_of_descriptors = true;
  absl::Status committed = absl::OkStatus();
  for (; turn <= 200 && committed.ok(); ++turn) {
    committed = CommitTurn(RecordOf("t", "chat", turn));
  }
  EXPECT_FALSE(committed.ok());
  EXPECT_EQ(store_->sessions().Load("t", "chat")->turn, turn - 1);
  system_->out_of_descriptors = false;
  EXPECT_TRUE(IsWritingAgain()) << store_->stats().files.degraded_reason;
  EXPECT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
  Open();
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), RecordOf("t", "chat", turn));
  EXPECT_EQ(store_->stats().sessions.corrupt, 0);
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).corrupt, 0);
}

// What cannot be read for want of descriptors is not damaged, and not unknown.
TEST_F(StoreFaultTest, UnreadableForNowIsNeitherDamagedNorFree) {
  Open();
  const SessionRecord chat = RecordOf("t", "chat", 2);
  ASSERT_TRUE(CommitTurn(chat).ok());
  Open();  // what was in the log is in tables, none of them open
  system_->out_of_descriptors = true;
  for (const PageKey& key : chat.page_keys) {
    EXPECT_FALSE(store_->pages().Get(key).ok());
  }
  const absl::Status loaded = store_->sessions().Load("t", "chat").status();
  EXPECT_TRUE(loaded.ok() || absl::IsUnavailable(loaded)) << loaded;
  system_->out_of_descriptors = false;
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), chat);
  for (const PageKey& key : chat.page_keys) {
    EXPECT_TRUE(store_->pages().Get(key).ok());
  }
  EXPECT_EQ(store_->stats().sessions.corrupt, 0);
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).corrupt, 0);
}

// A synced write to a file that has no name any more is not durable.
TEST_F(StoreFaultTest, FolderThatWasRemovedIsNoticed) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 1)).ok());
  fs::rename(options_.dir, options_.dir + ".away");
  EXPECT_THAT(CommitTurn(RecordOf("t", "chat", 2)),
              HasCode(absl::StatusCode::kUnavailable));
  EXPECT_THAT(store_->stats().files.degraded_reason,
              HasSubstr("was removed or replaced"));
  EXPECT_EQ(store_->sessions().Load("t", "chat")->turn, 2u);
  fs::rename(options_.dir + ".away", options_.dir);
  EXPECT_TRUE(IsWritingAgain());
  Open();
  EXPECT_EQ(store_->sessions().Load("t", "chat")->turn, 2u);
  fs::remove_all(options_.dir);
  EXPECT_THAT(CommitTurn(RecordOf("t", "chat", 3)),
              HasCode(absl::StatusCode::kUnavailable));
}

// RocksDB's own log was a file that nothing here wrote: a full disk in it ended
// the process.
TEST_F(StoreFaultTest, EveryFileOfTheStoreIsWrittenThroughItsFileSystem) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 1)).ok());
  for (const auto& file : fs::recursive_directory_iterator(options_.dir)) {
    const std::string name = file.path().filename();
    EXPECT_FALSE(name.starts_with("LOG")) << file.path();
  }
}

// Flips a byte in the first data block of each table: the index is there, and
// the format record.
void DamageTables(const std::string& db) {
  int num_damaged = 0;
  for (const auto& file : fs::directory_iterator(db)) {
    if (file.path().extension() != ".sst") continue;
    FlipByte(file.path(), 10);
    ++num_damaged;
  }
  EXPECT_GT(num_damaged, 0) << db;
}

// The index is a hint: what it has lost is found by its name, is in the list,
// and is not made anew.
TEST_F(StoreFaultTest, DamagedIndexHidesNoSession) {
  constexpr int kSessions = 40;
  Open();
  for (int i = 0; i < kSessions; ++i) {
    ASSERT_TRUE(CommitTurn(RecordOf("t", absl::StrCat("s", i), 1)).ok());
  }
  Open();
  store_.reset();
  DamageTables(options_.dir + "/sessions");
  Open();
  EXPECT_GE(store_->stats().sessions.corrupt, 1) << "damage is counted";
  EXPECT_EQ(store_->stats().sessions.num_sessions, kSessions);
  EXPECT_EQ(store_->sessions().List("t", "", 100)->sessions.size(),
            static_cast<size_t>(kSessions));
  for (int i = 0; i < kSessions; ++i) {
    const std::string id = absl::StrCat("s", i);
    EXPECT_EQ(store_->sessions().Find("t", id)->turn, 1u);
    EXPECT_EQ(*store_->sessions().Load("t", id), RecordOf("t", id, 1));
  }
}

// With the cap filled by what can give way, a session that was acknowledged is
// found; where nothing can, it is refused.
TEST_F(StoreFaultTest, AcknowledgedSessionIsFoundThoughMemoryIsFull) {
  Open();
  std::optional<MemoryReservation> filler =
      budget_.TryReserve(MemoryAccount::kWorkingSets, 0);
  const auto fill = [&] {
    filler->TryResize(filler->bytes() + kMemory - budget_.used_bytes());
  };
  auto reclaimer = budget_.AddReclaimer("filler", 0, [&](int64_t wanted) {
    const int64_t freed = std::min(wanted, filler->bytes());
    filler->Resize(filler->bytes() - freed);
    return freed;
  });
  for (int i = 0; i < 300; ++i) {
    fill();
    const std::string id = absl::StrCat("s", i);
    ASSERT_TRUE(CommitDurably(*store_, RecordOf("t", id, 1)).ok()) << i;
    EXPECT_TRUE(store_->sessions().Find("t", id).ok()) << i;
  }
  reclaimer.Reset();
  fill();
  absl::Status committed = absl::OkStatus();
  for (int i = 300; i < 600 && committed.ok(); ++i) {
    const std::string id = absl::StrCat("s", i);
    committed = CommitDurably(*store_, RecordOf("t", id, 1));
    EXPECT_EQ(committed.ok(), store_->sessions().Find("t", id).ok()) << i;
  }
  EXPECT_THAT(committed, HasCode(absl::StatusCode::kResourceExhausted));
  filler.reset();
}

// A flush or a compaction that meets a damaged page begins a new database of
// pages, without a restart; conversations stay.
TEST_F(StoreFaultTest, DamagedPagesAreBegunAnewWhileServing) {
  options_.disk_bytes = kMinDiskBytes;
  options_.rocksdb_bytes = 8 << 20;
  Open();
  uint64_t turn = 1;
  for (; turn <= 40; ++turn) {
    ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
  }
  ASSERT_TRUE(store_->Flush().ok());
  Open();
  DamageTables(options_.dir + "/pages");
  int num_put = 0;
  const auto begun_anew = [&] {
    // Conversations go on meanwhile, and pages make flushes.
    EXPECT_TRUE(CommitDurably(*store_, RecordOf("t", "chat", turn)).ok());
    ++turn;
    for (int i = 0; i < 20; ++i) {
      store_->PutPage(KeyOf(++num_put), kRootPageKey, BytesOf(i, 60'000))
          .IgnoreError();
    }
    return store_->stats().files.pages_set_aside == 1 &&
           !store_->stats().files.degraded;
  };
  EXPECT_TRUE(Eventually(begun_anew)) << store_->stats().files.degraded_reason;
  EXPECT_EQ(store_->sessions().Load("t", "chat")->turn, turn - 1);
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
  ASSERT_TRUE(store_->Flush().ok());
  for (const PageKey& key : RecordOf("t", "chat", turn).page_keys) {
    const auto hit = store_->pages().Get(key);
    if (hit.ok()) {
      EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], 20'000));
    } else {
      EXPECT_THAT(hit.status(), HasCode(absl::StatusCode::kNotFound));
    }
  }
}

}  // namespace
}  // namespace xcache
