// Rule R3 on real files: whatever happens to a file of a store, it opens or
// says in one line that it needs a repair; what it gives is what was stored;
// what is lost is counted.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/page_records.h"
#include "tests/unit/cachestore/store_fixture.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr int64_t kMemory = 64 << 20;
constexpr size_t kPageBytes = 20'000;
constexpr int kSessions = 6;
constexpr uint64_t kTurns = 12;

CacheStoreOptions OptionsFor(const std::string& dir) {
  CacheStoreOptions options;
  options.dir = dir;
  options.disk_bytes = 16 << 20;  // small memtables: files of every kind
  options.rocksdb_bytes = 8 << 20;
  return options;
}

std::string IdOf(int i) { return absl::StrCat("session-", i); }

// A store with some of its content in files and some in the log, closed.
void FillStore(const std::string& dir) {
  MemoryBudget budget(kMemory);
  auto store = CacheStore::Open(OptionsFor(dir), budget);
  ASSERT_TRUE(store.ok()) << store.status();
  for (uint64_t turn = 1; turn <= kTurns; ++turn) {
    for (int i = 0; i < kSessions; ++i) {
      const SessionRecord record = RecordOf("t", IdOf(i), turn);
      const PageKey parent =
          turn == 1 ? kRootPageKey : record.page_keys[turn - 2];
      const PageKey& key = record.page_keys[turn - 1];
      ASSERT_TRUE(
          (*store)->PutPage(key, parent, BytesOf(key[0], kPageBytes)).ok());
      ASSERT_TRUE(CommitDurably(**store, record).ok());
    }
  }
}

struct Outcome {
  bool repaired = false;
  bool degraded = false;        // writing stopped when damage was met
  int64_t sessions_lost = 0;    // not to be had
  int64_t sessions_behind = 0;  // at a turn before the last
  int64_t pages_lost = 0;
  int64_t counted = 0;  // damage that was counted or reported
};

// Opens a damaged store, repairs it where it says so, and checks all there is.
Outcome Examine(const std::string& dir, const std::string& what) {
  SCOPED_TRACE(what);
  Outcome outcome;
  const CacheStoreOptions options = OptionsFor(dir);
  MemoryBudget budget(kMemory);
  auto store = CacheStore::Open(options, budget);
  if (!store.ok()) {
    EXPECT_THAT(store.status(), HasCode(absl::StatusCode::kDataLoss));
    const std::string message(store.status().message());
    EXPECT_THAT(message, HasSubstr("--repair"));
    EXPECT_THAT(message, HasSubstr(dir));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    const auto report = CacheStore::Repair(options);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return outcome;
    outcome.repaired = true;
    outcome.counted += 1;
    store = CacheStore::Open(options, budget);
    EXPECT_TRUE(store.ok()) << store.status();
    if (!store.ok()) return outcome;
  }
  for (int i = 0; i < kSessions; ++i) {
    const auto record = (*store)->sessions().Load("t", IdOf(i));
    if (!record.ok()) {
      EXPECT_TRUE(absl::IsDataLoss(record.status()) ||
                  absl::IsNotFound(record.status()))
          << record.status();
      ++outcome.sessions_lost;
    } else {
      EXPECT_EQ(*record, RecordOf("t", IdOf(i), record->turn));
      if (record->turn != kTurns) ++outcome.sessions_behind;
    }
    const SessionRecord full = RecordOf("t", IdOf(i), kTurns);
    for (const PageKey& key : full.page_keys) {
      const auto hit = (*store)->pages().Get(key);
      if (hit.ok()) {
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      } else {
        EXPECT_TRUE(absl::IsDataLoss(hit.status()) ||
                    absl::IsNotFound(hit.status()))
            << hit.status();
        ++outcome.pages_lost;
      }
    }
    // Serving goes on: the next turn is durable and found again.
    const SessionRecord next = RecordOf("t", IdOf(i), kTurns + 1);
    PageKey parent = kRootPageKey;
    for (const PageKey& key : next.page_keys) {
      EXPECT_TRUE(
          (*store)->PutPage(key, parent, BytesOf(key[0], kPageBytes)).ok());
      parent = key;
    }
    const absl::Status committed = CommitDurably(**store, next);
    if (!committed.ok()) {
      // RocksDB stops writing once a flush or a compaction meets damage. Of
      // pages, a new database is begun then.
      EXPECT_THAT(committed, HasCode(absl::StatusCode::kUnavailable));
      EXPECT_THAT((*store)->stats().files.degraded_reason,
                  HasSubstr("--repair"));
      outcome.degraded = true;
    }
    const auto again = (*store)->sessions().Load("t", IdOf(i));
    EXPECT_TRUE(again.ok() && *again == next) << again.status();
    for (const PageKey& key : next.page_keys) {
      const auto hit = (*store)->pages().Get(key);
      EXPECT_TRUE(hit.ok()) << hit.status();
      if (hit.ok()) {
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      }
    }
  }
  const StoreStats stats = (*store)->stats();
  EXPECT_TRUE(stats.files.degraded || !outcome.degraded);
  // Perhaps only now, on RocksDB's own thread.
  if (stats.files.degraded_reason.find("--repair") != std::string::npos) {
    outcome.degraded = true;
  }
  outcome.counted += stats.sessions.corrupt +
                     stats.tier(PageTier::kDisk).corrupt +
                     stats.files.background_errors + stats.files.torn_logs +
                     stats.files.pages_set_aside;
  if (!outcome.degraded) return outcome;
  // A repair makes it whole again.
  store->reset();
  EXPECT_TRUE(CacheStore::Repair(options).ok());
  store = CacheStore::Open(options, budget);
  EXPECT_TRUE(store.ok()) << store.status();
  if (!store.ok()) return outcome;
  for (int i = 0; i < kSessions; ++i) {
    const SessionRecord next = RecordOf("t", IdOf(i), kTurns + 1);
    const auto loaded = (*store)->sessions().Load("t", IdOf(i));
    EXPECT_TRUE(!loaded.ok() ||
                *loaded == RecordOf("t", IdOf(i), loaded->turn));
    EXPECT_TRUE(CommitDurably(**store, next).ok());
  }
  EXPECT_FALSE((*store)->stats().files.degraded);
  return outcome;
}

class StoreCorruptionTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    pristine_ = new TempDir();
    FillStore(pristine_->path() + "/store");
  }
  static void TearDownTestSuite() {
    delete pristine_;
    pristine_ = nullptr;
  }

  // A fresh copy of the store; its path.
  std::string Copy() {
    const std::string dir = dir_.path() + "/store";
    fs::remove_all(dir);
    fs::copy(pristine_->path() + "/store", dir, fs::copy_options::recursive);
    return dir;
  }
  // Files of both databases, by their paths in the store's folder.
  static std::vector<std::string> FilesLike(const std::string& part) {
    std::vector<std::string> names;
    for (const std::string db : {"sessions/", "pages/"}) {
      for (const auto& file :
           fs::directory_iterator(pristine_->path() + "/store/" + db)) {
        const std::string name = file.path().filename().string();
        if (name.find(part) != std::string::npos &&
            fs::file_size(file.path()) > 0) {
          names.push_back(db + name);
        }
      }
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  static uint64_t SizeOf(const std::string& name) {
    return fs::file_size(pristine_->path() + "/store/" + name);
  }
  // Damages each file of a kind in each way, one at a time.
  void DamageEach(const std::string& kind, int num_places) {
    const std::vector<std::string> names = FilesLike(kind);
    ASSERT_FALSE(names.empty()) << kind;
    for (const std::string& name : names) {
      const uint64_t size = SizeOf(name);
      for (int place = 0; place < num_places; ++place) {
        const uint64_t offset =
            (size - 1) * static_cast<uint64_t>(place) /
            static_cast<uint64_t>(std::max(num_places - 1, 1));
        std::string dir = Copy();
        FlipByte(dir + "/" + name, offset);
        Check(Examine(dir, absl::StrCat("flip ", name, " at ", offset, " of ",
                                        size)),
              absl::StrCat("flip ", name, " at ", offset, " of ", size));
        dir = Copy();
        fs::resize_file(dir + "/" + name, offset);
        Check(Examine(dir, absl::StrCat("cut ", name, " to ", offset)),
              absl::StrCat("cut ", name, " to ", offset, " of ", size));
      }
      const std::string dir = Copy();
      fs::remove(dir + "/" + name);
      Check(Examine(dir, "without " + name), "without " + name);
    }
  }

  // What is lost has been counted; but for pages of a log or a MANIFEST that
  // ends early, which reads like one that never went further.
  void Check(const Outcome& outcome, const std::string& what) {
    ++num_cases_;
    num_repairs_ += outcome.repaired;
    num_pages_lost_ += outcome.pages_lost;
    const int64_t sessions = outcome.sessions_lost + outcome.sessions_behind;
    num_sessions_lost_ += sessions;
    const bool ends_early = what.find("pages/") != std::string::npos &&
                            (what.find(".log") != std::string::npos ||
                             what.find("MANIFEST") != std::string::npos);
    if (sessions > 0 || (outcome.pages_lost > 0 && !ends_early)) {
      EXPECT_GT(outcome.counted, 0) << what;
    }
  }

  static TempDir* pristine_;
  TempDir dir_;
  int num_cases_ = 0;
  int num_repairs_ = 0;
  int64_t num_pages_lost_ = 0;
  int64_t num_sessions_lost_ = 0;
};

TempDir* StoreCorruptionTest::pristine_ = nullptr;

TEST_F(StoreCorruptionTest, IntactStoreLosesNothing) {
  const Outcome outcome = Examine(Copy(), "intact");
  EXPECT_FALSE(outcome.repaired);
  EXPECT_EQ(outcome.sessions_lost + outcome.sessions_behind, 0);
  EXPECT_EQ(outcome.pages_lost, 0);
  EXPECT_EQ(outcome.counted, 0);
}

TEST_F(StoreCorruptionTest, BlobFiles) {
  DamageEach(".blob", 5);
  EXPECT_GT(num_pages_lost_, 0);
  EXPECT_EQ(num_sessions_lost_, 0);
}

TEST_F(StoreCorruptionTest, TableFiles) { DamageEach(".sst", 3); }

// Pages are read without RocksDB's checksums: ours must see every block.
TEST_F(StoreCorruptionTest, TablesDamagedWhileTheStoreIsOpen) {
  const std::string dir = dir_.path() + "/small";
  const SessionRecord record = RecordOf("t", "s", 200);
  MemoryBudget budget(kMemory);
  auto store = CacheStore::Open(OptionsFor(dir), budget);
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_TRUE(CommitTurn(**store, record, 2000).ok());
  store->reset();
  // What was in the log is in tables then, and they are too few for a
  // compaction.
  store = CacheStore::Open(OptionsFor(dir), budget);
  ASSERT_TRUE(store.ok()) << store.status();
  // The last page in the order of keys: where it is, no block was read yet.
  const PageKey key =
      *std::max_element(record.page_keys.begin(), record.page_keys.end());
  for (const auto& file : fs::directory_iterator(dir + "/pages")) {
    if (file.path().extension() != ".sst") continue;
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    // Wherever it stands; how it begins, the key before it may say.
    const std::string_view end = KeyBytes(key).substr(8);
    for (size_t at = bytes.find(end); at != std::string::npos;
         at = bytes.find(end, at + 1)) {
      FlipByte(file.path().string(), at);
    }
  }
  const auto hit = (*store)->pages().Get(key);
  EXPECT_THAT(hit.status(), HasCode(absl::StatusCode::kDataLoss));
  EXPECT_THAT(std::string(hit.status().message()),
              HasSubstr(".sst is damaged: "));
  EXPECT_EQ((*store)->stats().tier(PageTier::kDisk).corrupt, 1);
}

// All tables at once, in random places: what RocksDB is given of them must not
// stop the process, at a start or in a repair.
TEST_F(StoreCorruptionTest, RandomDamageToAllTables) {
  const char* seed = std::getenv("XCACHE_SEED");
  std::mt19937 random(seed != nullptr ? static_cast<uint32_t>(std::atoi(seed))
                                      : 1);
  const std::vector<std::string> names = FilesLike(".sst");
  for (int round = 0; round < 30; ++round) {
    const std::string dir = Copy();
    std::string what = absl::StrCat("round ", round);
    for (const std::string& name : names) {
      const std::string path = dir + "/" + name;
      const uint64_t size = SizeOf(name);
      if (round % 3 == 2) {
        fs::resize_file(path, random() % size);
        continue;
      }
      // Anywhere, or where the index and the footer are.
      const uint64_t from = round % 3 == 1 && size > 300 ? size - 300 : 0;
      for (int i = 0; i < 3; ++i) {
        FlipByte(path, from + random() % (size - from));
      }
    }
    // Half of the time without a MANIFEST that could say which are in force.
    if (round % 2 == 1) {
      for (const std::string& name : FilesLike("MANIFEST")) {
        fs::remove(dir + "/" + name);
      }
    }
    Check(Examine(dir, what), what);
  }
  EXPECT_GT(num_repairs_, 10);
}

TEST_F(StoreCorruptionTest, Log) {
  DamageEach(".log", 12);
  EXPECT_GT(num_repairs_, 0);
}

// A bit makes a record of another kind of one, and some RocksDB would read for
// ever.
TEST_F(StoreCorruptionTest, RecordsOfEveryKindInALog) {
  constexpr std::streamoff kTypeOfFirst = 6;
  for (const std::string& name : FilesLike(".log")) {
    for (int kind = 0; kind <= 10; ++kind) {
      const std::string dir = Copy();
      std::fstream log(dir + "/" + name,
                       std::ios::in | std::ios::out | std::ios::binary);
      log.seekp(kTypeOfFirst).put(static_cast<char>(kind));
      log.close();
      const std::string what = absl::StrCat("kind ", kind, " in ", name);
      Check(Examine(dir, what), what);
    }
  }
  EXPECT_GT(num_repairs_, 0);
}

// A file system may give a part of a file twice.
TEST_F(StoreCorruptionTest, ManifestWithRecordsThatStandTwice) {
  for (const std::string& name : FilesLike("MANIFEST")) {
    const std::string dir = Copy();
    std::ifstream in(dir + "/" + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    // Every place where a record begins, up to which the file is repeated.
    for (size_t at = 0; at + 7 < bytes.size();) {
      const std::string copy = Copy();
      std::ofstream(copy + "/" + name, std::ios::binary | std::ios::trunc)
          << bytes << bytes.substr(at);
      const std::string what = absl::StrCat(name, " again from ", at);
      Check(Examine(copy, what), what);
      at += 7 + static_cast<uint8_t>(bytes[at + 4]) +
            256u * static_cast<uint8_t>(bytes[at + 5]);
    }
  }
}

TEST_F(StoreCorruptionTest, Manifest) {
  DamageEach("MANIFEST", 8);
  EXPECT_GT(num_repairs_, 0);
}

// What would tell that the MANIFEST was cut is damaged too.
TEST_F(StoreCorruptionTest, ManifestAndLedger) {
  std::string manifest;
  for (const std::string& name : FilesLike("MANIFEST")) {
    if (name.starts_with("sessions/")) manifest = name;
  }
  for (const uint64_t part : {0u, 1u, 2u, 3u}) {
    const std::string dir = Copy();
    fs::resize_file(dir + "/" + manifest, SizeOf(manifest) * part / 4);
    FlipByte(dir + "/sessions/LEDGER", 20);
    const std::string what = absl::StrCat(part, " quarters of the MANIFEST");
    const Outcome outcome = Examine(dir, what);
    EXPECT_TRUE(outcome.repaired) << what;
    EXPECT_EQ(outcome.sessions_lost + outcome.sessions_behind, 0) << what;
  }
}

TEST_F(StoreCorruptionTest, Current) {
  DamageEach("CURRENT", 4);
  EXPECT_GT(num_repairs_, 0);
}

TEST_F(StoreCorruptionTest, RepairOfAnIntactStoreLosesNothing) {
  const std::string dir = Copy();
  const auto report = CacheStore::Repair(OptionsFor(dir));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions_kept, kSessions);
  EXPECT_EQ(report->sessions_dropped, 0);
  const Outcome outcome = Examine(dir, "repaired");
  EXPECT_EQ(outcome.sessions_lost + outcome.sessions_behind, 0);
  EXPECT_EQ(outcome.pages_lost, 0);
  EXPECT_EQ(outcome.counted, 0);
}

TEST_F(StoreCorruptionTest, RepairWithoutManifestKeepsSessionsAndPages) {
  const std::string dir = Copy();
  for (const std::string& name : FilesLike("MANIFEST")) {
    if (name.starts_with("sessions/")) fs::remove(dir + "/" + name);
  }
  const auto report = CacheStore::Repair(OptionsFor(dir));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions_kept, kSessions);
  const Outcome outcome = Examine(dir, "repaired");
  EXPECT_EQ(outcome.sessions_lost + outcome.sessions_behind, 0);
  EXPECT_EQ(outcome.pages_lost, 0);
  EXPECT_FALSE(fs::exists(dir + "/repair-scratch"));
}

TEST_F(StoreCorruptionTest, RepairCutOffBetweenItsRenamesIsFinishedByOpen) {
  const std::string dir = Copy();
  fs::rename(dir + "/sessions", dir + "/sessions.new");
  const Outcome outcome = Examine(dir, "sessions.new");
  EXPECT_FALSE(outcome.repaired);
  EXPECT_EQ(outcome.sessions_lost + outcome.pages_lost, 0);
}

TEST_F(StoreCorruptionTest, RepairOfAStoreInUseOrOfNoneIsRefused) {
  const std::string dir = Copy();
  MemoryBudget budget(kMemory);
  const auto store = CacheStore::Open(OptionsFor(dir), budget);
  ASSERT_TRUE(store.ok());
  EXPECT_THAT(CacheStore::Repair(OptionsFor(dir)).status(),
              HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(CacheStore::Repair(OptionsFor(dir + "/none")).status(),
              HasCode(absl::StatusCode::kFailedPrecondition));
}

// Damage that RocksDB's own checksums do not see: a value that was damaged
// before it was written. Only our records' checksums find these.
class DamagedRecordTest : public StoreCorruptionTest {
 protected:
  // Rewrites a value in place, RocksDB's checksums being right.
  void Rewrite(const std::string& dir, Family family, const std::string& key,
               const std::function<void(std::string&)>& damage) {
    const bool is_session =
        family == Family::kSessions || family == Family::kSessionIndex;
    LoneDatabase db(is_session ? DatabaseKind::kSessions : DatabaseKind::kPages,
                    dir, 16 << 20);
    std::string value;
    ASSERT_TRUE(db->Get(family, key, &value).ok());
    damage(value);
    const WriteOp ops[] = {{family, key, {{value, {}}}}};
    ASSERT_TRUE(db->Write(ops, true, Database::Room::kFrees).ok());
  }
};

TEST_F(DamagedRecordTest, PageIsDroppedAndCanBePutAnew) {
  const PageKey key = RecordOf("t", IdOf(2), kTurns).page_keys[3];
  // Every part of the value: page, parent, length, magic, version, checksum.
  for (size_t at : {size_t{0}, kPageBytes / 2, kPageBytes + 1, kPageBytes + 33,
                    kPageBytes + 37, kPageBytes + 41, kPageBytes + 47}) {
    const std::string dir = Copy();
    Rewrite(dir, Family::kPages, std::string(KeyBytes(key)),
            [at](std::string& value) { value[at] ^= 1; });
    const Outcome outcome = Examine(dir, absl::StrCat("page byte ", at));
    EXPECT_EQ(outcome.pages_lost, 1) << at;
    EXPECT_EQ(outcome.counted, 1) << at;
    EXPECT_EQ(outcome.sessions_lost, 0);
  }
}

TEST_F(DamagedRecordTest, PageUnderAnotherKeyIsFoundOut) {
  const SessionRecord record = RecordOf("t", IdOf(2), kTurns);
  const std::string dir = Copy();
  std::string other;
  Rewrite(dir, Family::kPages, std::string(KeyBytes(record.page_keys[0])),
          [&](std::string& value) { other = value; });
  Rewrite(dir, Family::kPages, std::string(KeyBytes(record.page_keys[1])),
          [&](std::string& value) { value = other; });
  const Outcome outcome = Examine(dir, "swapped");
  EXPECT_EQ(outcome.pages_lost, 1);
  EXPECT_EQ(outcome.counted, 1);
}

TEST_F(DamagedRecordTest, IndexEntryOfAPageIsDroppedAndCounted) {
  const PageKey key = RecordOf("t", IdOf(2), kTurns).page_keys[3];
  const std::string dir = Copy();
  Rewrite(dir, Family::kPageIndex, std::string(KeyBytes(key)),
          [](std::string& value) { value[9] ^= 1; });
  const Outcome outcome = Examine(dir, "page index");
  EXPECT_EQ(outcome.pages_lost, 1);
  EXPECT_EQ(outcome.counted, 1);
}

TEST_F(DamagedRecordTest, ManifestIsDataLossForThatSessionAlone) {
  const std::string dir = Copy();
  Rewrite(dir, Family::kSessions, SessionKeyBytes("t", IdOf(3)),
          [](std::string& value) { value[100] ^= 1; });
  {
    MemoryBudget budget(kMemory);
    auto store = CacheStore::Open(OptionsFor(dir), budget);
    ASSERT_TRUE(store.ok());
    for (int round = 0; round < 2; ++round) {
      EXPECT_THAT((*store)->sessions().Load("t", IdOf(3)).status(),
                  HasCode(absl::StatusCode::kDataLoss));
    }
    EXPECT_EQ((*store)->stats().sessions.corrupt, 1);
    EXPECT_TRUE((*store)->sessions().Find("t", IdOf(3))->damaged);
    EXPECT_TRUE((*store)->sessions().Delete("t", IdOf(3)).ok());
    EXPECT_THAT((*store)->sessions().Load("t", IdOf(3)).status(),
                HasCode(absl::StatusCode::kNotFound));
  }
  const Outcome outcome = Examine(dir, "manifest");
  EXPECT_EQ(outcome.sessions_lost, 1);
  EXPECT_EQ(outcome.sessions_behind, 0);
}

TEST_F(DamagedRecordTest, IndexEntryOfASessionIsMadeFromItsManifest) {
  const std::string dir = Copy();
  Rewrite(dir, Family::kSessionIndex, SessionKeyBytes("t", IdOf(3)),
          [](std::string& value) { value[20] ^= 1; });
  {
    MemoryBudget budget(kMemory);
    auto store = CacheStore::Open(OptionsFor(dir), budget);
    ASSERT_TRUE(store.ok());
    EXPECT_EQ((*store)->sessions().Find("t", IdOf(3))->turn, kTurns);
    EXPECT_EQ((*store)->stats().sessions.corrupt, 0);
  }
  // Both damaged: this session is known to be lost, at once.
  Rewrite(dir, Family::kSessions, SessionKeyBytes("t", IdOf(3)),
          [](std::string& value) { value[100] ^= 1; });
  MemoryBudget budget(kMemory);
  auto store = CacheStore::Open(OptionsFor(dir), budget);
  ASSERT_TRUE(store.ok());
  EXPECT_EQ((*store)->stats().sessions.corrupt, 1);
  EXPECT_TRUE((*store)->sessions().Find("t", IdOf(3))->damaged);
  EXPECT_EQ((*store)->stats().sessions.num_sessions, kSessions);
}

}  // namespace
}  // namespace xcache
