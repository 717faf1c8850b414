// Rule R4 where the process dies, and what a store that has lost its end looks
// like then: a kill at any instant leaves a store that opens, whole; a MANIFEST
// or a log that was cut does not open as an older store.
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cachestore/rocksdb/disk_space.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "engine/base/mutex.h"
#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;
using rocksdb::FileOptions;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr size_t kPageBytes = 20'000;

// Files of a store as they are now. The order makes it an instant: what a
// MANIFEST names was there before it. What goes meanwhile is left out; nothing
// is thrown, which on a thread of RocksDB's would end the test.
void CopyStore(const std::string& from, const std::string& to) {
  std::error_code gone;
  const auto copy = [&](const std::string& name) {
    fs::copy_file(from + name, to + name, gone);
  };
  fs::create_directories(to);
  for (const std::string db : {"/sessions/", "/pages/"}) {
    if (!fs::exists(from + db)) continue;
    fs::create_directories(to + db);
    copy(db + "LEDGER");
    copy(db + "CURRENT");
    for (const auto& file : fs::directory_iterator(from + db, gone)) {
      const std::string name = file.path().filename().string();
      if (ParseManifestName(name)) copy(db + name);
    }
    for (const auto& file : fs::directory_iterator(from + db, gone)) {
      const std::string name = file.path().filename().string();
      if (ParseManifestName(name) || name == "CURRENT" || name == "LOCK" ||
          name == "LEDGER") {
        continue;
      }
      const std::string extension = file.path().extension().string();
      if (extension == ".sst" || extension == ".blob") {
        // Nothing changes them in place.
        fs::create_hard_link(file.path(), to + db + name, gone);
      } else {
        fs::copy_file(file.path(), to + db + name, gone);
      }
    }
  }
}

// Calls `on_step` before files go, change names or appear, and after each sync
// of a MANIFEST. Nothing goes or changes its name meanwhile.
class SteppingFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit SteppingFileSystem(std::function<void()> on_step)
      : FileSystemWrapper(rocksdb::FileSystem::Default()),
        on_step_(std::move(on_step)) {}
  const char* Name() const override { return "SteppingFileSystem"; }

  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* file,
                           IODebugContext* dbg) override {
    Step();
    const IOStatus status =
        FileSystemWrapper::NewWritableFile(name, options, file, dbg);
    if (status.ok() && name.find("MANIFEST") != std::string::npos) {
      *file = std::make_unique<SteppingFile>(std::move(*file), *this);
    }
    return status;
  }
  IOStatus RenameFile(const std::string& from, const std::string& to,
                      const IOOptions& options, IODebugContext* dbg) override {
    MutexLock lock(mu_);
    on_step_();
    return FileSystemWrapper::RenameFile(from, to, options, dbg);
  }
  IOStatus DeleteFile(const std::string& name, const IOOptions& options,
                      IODebugContext* dbg) override {
    MutexLock lock(mu_);
    on_step_();
    return FileSystemWrapper::DeleteFile(name, options, dbg);
  }
  void Step() {
    MutexLock lock(mu_);
    on_step_();
  }

 private:
  class SteppingFile : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    SteppingFile(std::unique_ptr<FSWritableFile> file, SteppingFileSystem& fs)
        : FSWritableFileOwnerWrapper(std::move(file)), fs_(fs) {}
    IOStatus Sync(const IOOptions& options, IODebugContext* dbg) override {
      const IOStatus status = FSWritableFileOwnerWrapper::Sync(options, dbg);
      fs_.Step();
      return status;
    }

   private:
    SteppingFileSystem& fs_;
  };

  const std::function<void()> on_step_;
  Mutex mu_;
};

class StoreKillTest : public StoreFixture {
 protected:
  StoreKillTest() : StoreFixture(kPageBytes) {
    options_.disk_bytes = kMinDiskBytes;  // small memtables: flushes happen
    options_.rocksdb_bytes = 8 << 20;
    options_.housekeeping_ms = 5;
  }
  // Runs turns of a few sessions.
  void Fill(uint64_t num_turns) {
    for (uint64_t turn = 1; turn <= num_turns; ++turn) {
      for (const char* id : {"a", "b", "c"}) {
        ASSERT_TRUE(CommitTurn(RecordOf("t", id, turn)).ok());
      }
    }
  }
  std::string Copy(const std::string& name) {
    const std::string to = dir_.path() + "/" + name;
    fs::remove_all(to);
    CopyStore(options_.dir, to);
    return to;
  }
  // A copy whose MANIFEST is what the ledger says: one that was written to
  // meanwhile has more.
  std::string CopyKilled(const std::string& name) {
    std::string to;
    std::optional<LedgerRecord> ledger;
    do {
      to = Copy(name);
      ledger = ReadLedger(LedgerPath(to + "/sessions"));
    } while (!ledger.has_value() || ledger->next.number != 0 ||
             ledger->current.num_bytes !=
                 fs::file_size(Newest(to, "MANIFEST")));
    return to;
  }
  CacheStoreOptions OptionsFor(const std::string& dir) {
    CacheStoreOptions options = options_;
    options.dir = dir;
    options.env = nullptr;
    return options;
  }
  // The newest file of sessions like that.
  static std::string Newest(const std::string& dir, const std::string& part) {
    std::string newest;
    for (const auto& file : fs::directory_iterator(dir + "/sessions")) {
      const std::string name = file.path().filename().string();
      if (name.find(part) != std::string::npos && name > newest) newest = name;
    }
    return dir + "/sessions/" + newest;
  }
  void ExpectNoticed(const std::string& dir, const std::string& what) {
    MemoryBudget budget(kMemory);
    const absl::Status opened =
        CacheStore::Open(OptionsFor(dir), budget).status();
    EXPECT_THAT(opened, HasCode(absl::StatusCode::kDataLoss)) << what;
    EXPECT_THAT(std::string(opened.message()),
                AllOf(HasSubstr("--repair"), HasSubstr(dir)))
        << what;
  }
  // Cuts the MANIFEST of a closed or killed store at each of the last bytes.
  void CutManifest(const std::string& dir, uint64_t most) {
    const std::string manifest = Newest(dir, "MANIFEST");
    const uint64_t size = fs::file_size(manifest);
    for (uint64_t cut = 1; cut <= std::min(size, most); ++cut) {
      fs::resize_file(manifest, size - cut);
      ExpectNoticed(dir, absl::StrCat("cut by ", cut, " of ", size));
    }
  }
};

// From the making of the store, over flushes and collections, to a third start.
TEST_F(StoreKillTest, KillAtAnyStepLeavesAStoreThatOpensWhole) {
  struct Snapshot {
    std::string dir;
    uint64_t before;  // the last turn that was acknowledged
    uint64_t after;   // the same when the copy was done
  };
  std::vector<Snapshot> snapshots;
  std::atomic<uint64_t> acknowledged{0};
  int num_steps = 0;
  const auto take = [&] {
    // All of the first steps, and then some.
    if (++num_steps > 60 && num_steps % 5 != 0) return;
    Snapshot snapshot;
    snapshot.dir = absl::StrCat(dir_.path(), "/kill-", num_steps);
    snapshot.before = acknowledged;
    CopyStore(options_.dir, snapshot.dir);
    snapshot.after = acknowledged;
    snapshots.push_back(snapshot);
  };
  const std::unique_ptr<rocksdb::Env> env =
      rocksdb::NewCompositeEnv(std::make_shared<SteppingFileSystem>(take));
  options_.env = env.get();
  uint64_t turn = 0;
  for (int start = 0; start < 3; ++start) {
    Open();
    for (int i = 0; i < 60; ++i) {
      const SessionRecord record = RecordOf("t", "chat", turn + 1);
      ASSERT_TRUE(CommitTurn(record).ok());
      acknowledged = ++turn;
    }
  }
  EXPECT_GT(store_->stats().files.blob_bytes, 0) << "the test needs flushes";
  store_.reset();
  ASSERT_GT(snapshots.size(), 60u);
  for (const Snapshot& snapshot : snapshots) {
    MemoryBudget budget(kMemory);
    auto opened = CacheStore::Open(OptionsFor(snapshot.dir), budget);
    ASSERT_TRUE(opened.ok()) << snapshot.dir << ": " << opened.status();
    const auto record = (*opened)->sessions().Load("t", "chat");
    if (snapshot.before == 0 && !record.ok()) continue;
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_GE(record->turn, snapshot.before);
    EXPECT_LE(record->turn, snapshot.after + 1);
    EXPECT_EQ(*record, RecordOf("t", "chat", record->turn));
    for (const PageKey& key : record->page_keys) {
      const auto hit = (*opened)->pages().Get(key);
      // The cap may have taken it.
      if (!hit.ok()) {
        EXPECT_THAT(hit.status(), HasCode(absl::StatusCode::kNotFound));
      }
    }
    EXPECT_EQ((*opened)->stats().tier(PageTier::kDisk).corrupt, 0);
    EXPECT_EQ((*opened)->stats().sessions.corrupt, 0);
    opened->reset();
    fs::remove_all(snapshot.dir);
  }
}

TEST_F(StoreKillTest, ManifestOfAClosedStoreThatWasCutIsNoticed) {
  Open();
  Fill(40);
  Open();  // a MANIFEST that begins with all there is
  Fill(40);
  store_.reset();
  CutManifest(Copy("cut"), 1 << 20);
}

TEST_F(StoreKillTest, ManifestOfAKilledStoreThatWasCutIsNoticed) {
  Open();
  Fill(40);
  CutManifest(CopyKilled("killed"), 1 << 20);
}

TEST_F(StoreKillTest, EveryByteOfAManifestCounts) {
  Open();
  Fill(10);
  store_.reset();
  const std::string dir = Copy("flip");
  const std::string manifest = Newest(dir, "MANIFEST");
  const uint64_t size = fs::file_size(manifest);
  for (uint64_t at = 0; at < size; ++at) {
    FlipByte(manifest, at);
    ExpectNoticed(dir, absl::StrCat("flip at ", at, " of ", size));
    FlipByte(manifest, at);
  }
  MemoryBudget budget(kMemory);
  EXPECT_TRUE(CacheStore::Open(OptionsFor(dir), budget).ok());
}

TEST_F(StoreKillTest, RepairOfACutManifestLosesNothing) {
  Open();
  Fill(40);
  Open();  // all of it is in tables
  Fill(40);
  for (const bool left_behind : {false, true}) {
    const std::string dir = CopyKilled("repair");
    const std::string manifest = Newest(dir, "MANIFEST");
    fs::resize_file(manifest, fs::file_size(manifest) - 1);
    // As where a kill came before a table went whose records another has.
    if (left_behind) {
      fs::copy_file(Newest(dir, ".sst"), dir + "/sessions/000900.sst");
    }
    ExpectNoticed(dir, "cut");
    const auto report = CacheStore::Repair(OptionsFor(dir));
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->sessions_kept, 3);
    EXPECT_EQ(report->sessions_dropped, 0);
    MemoryBudget budget(kMemory);
    auto opened = CacheStore::Open(OptionsFor(dir), budget);
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const char* id : {"a", "b", "c"}) {
      const auto record = (*opened)->sessions().Load("t", id);
      ASSERT_TRUE(record.ok()) << record.status();
      EXPECT_EQ(*record, RecordOf("t", id, 40));
    }
  }
}

// What was acknowledged last is in the log alone.
TEST_F(StoreKillTest, LogOfAKilledStoreThatWasCutIsNoticed) {
  options_.disk_bytes = int64_t{1} << 30;  // no flush
  Open();
  Fill(5);
  const SessionRecord last = RecordOf("t", "last", 5);
  const uint64_t before = fs::file_size(Newest(Copy("before"), ".log"));
  ASSERT_TRUE(CommitTurn(last).ok());
  const std::string dir = Copy("after");
  const std::string log = Newest(dir, ".log");
  const uint64_t size = fs::file_size(log);
  ASSERT_GT(size, before);
  // The manifest's batch is the last one; each cut takes it.
  for (uint64_t cut = 1; cut < size - before; cut += 1 + cut / 8) {
    fs::resize_file(log, size - cut);
    ExpectNoticed(dir, absl::StrCat("log cut by ", cut, " of ", size));
  }
}

}  // namespace
}  // namespace xcache
