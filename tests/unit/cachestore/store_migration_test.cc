// A store of format 1, which had sessions and pages in one database, becomes
// one of today's when it is opened: whole, once, and whenever it was cut off.
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "cachestore/rocksdb/open_check.h"
#include "cachestore/rocksdb/sync_ledger.h"
#include "cachestore/sessions/session_record.h"
#include "rocksdb/db.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr size_t kPageBytes = 20'000;
constexpr int kSessions = 5;
constexpr uint64_t kTurns = 4;

SessionRecord RecordOf1(int i) {
  return RecordOf("t", absl::StrCat("s", i), kTurns);
}

// As a program of format 1 left it.
void MakeStore1(const std::string& dir) {
  fs::create_directories(dir);
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* raw = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, dir + "/db", &raw).ok());
  const std::unique_ptr<rocksdb::DB> db(raw);
  std::map<std::string, rocksdb::ColumnFamilyHandle*> families;
  for (const char* name :
       {"pages", "page_index", "sessions", "session_index"}) {
    rocksdb::ColumnFamilyOptions family;
    family.enable_blob_files = std::string(name) == "pages";
    ASSERT_TRUE(db->CreateColumnFamily(family, name, &families[name]).ok());
    ASSERT_TRUE(db->Put({}, families[name],
                        "\xff"
                        "family",
                        "")
                    .ok());
    ASSERT_TRUE(db->Flush({}, families[name]).ok());
  }
  for (int i = 0; i < kSessions; ++i) {
    const SessionRecord record = RecordOf1(i);
    for (const PageKey& key : record.page_keys) {
      ASSERT_TRUE(db->Put({}, families["pages"], ToHex(key),
                          BytesOf(key[0], kPageBytes))
                      .ok());
    }
    const std::string key = SessionKeyBytes(record.tenant, record.id);
    ASSERT_TRUE(
        db->Put({}, families["sessions"], key, EncodeSessionRecord1(record))
            .ok());
    ASSERT_TRUE(
        db->Put({}, families["session_index"], key, "an entry of format 1")
            .ok());
    // Some of it is in tables, and some in the log.
    if (i == 2) {
      for (const auto& [name, family] : families) {
        ASSERT_TRUE(db->Flush({}, family).ok());
      }
    }
  }
  ASSERT_TRUE(db->Put({}, FormatKey(), FormatRecord(kStoreFormat1)).ok());
  for (const auto& [name, family] : families) {
    db->DestroyColumnFamilyHandle(family);
  }
  const uint64_t number = ReadCurrent(dir + "/db").value_or(0);
  std::ifstream in(
      absl::StrCat(dir, "/db/MANIFEST-", absl::Dec(number, absl::kZeroPad6)),
      std::ios::binary);
  const std::string manifest((std::istreambuf_iterator<char>(in)), {});
  std::ofstream(dir + "/ledger")
      << EncodeLedger({db->GetLatestSequenceNumber(),
                       {number, manifest.size(), Crc32c(manifest)},
                       {}});
}

class StoreMigrationTest : public StoreFixture {
 protected:
  StoreMigrationTest() : StoreFixture(kPageBytes) {}
  void SetUp() override { MakeStore1(options_.dir); }

  void ExpectWhole() {
    Open();
    ASSERT_NE(store_, nullptr);
    EXPECT_EQ(store_->stats().sessions.num_sessions, kSessions);
    for (int i = 0; i < kSessions; ++i) {
      const SessionRecord record = RecordOf1(i);
      EXPECT_EQ(*store_->sessions().Load("t", record.id), record);
    }
    EXPECT_EQ(store_->stats().sessions.corrupt, 0);
    EXPECT_EQ(store_->stats().files.pages_set_aside, 0);
    for (const char* left : {"/db", "/db.migrated", "/ledger"}) {
      EXPECT_FALSE(fs::exists(options_.dir + left)) << left;
    }
    EXPECT_TRUE(CommitTurn(RecordOf("t", "s0", kTurns + 1)).ok());
    Open();
    EXPECT_EQ(store_->sessions().Load("t", "s0")->turn, kTurns + 1);
    // Pages are a cache: those of the turns above alone.
    EXPECT_EQ(store_->stats().tier(PageTier::kDisk).num_pages, kTurns + 1);
  }
};

TEST_F(StoreMigrationTest, BecomesTwoDatabasesAndLosesNoSession) {
  ExpectWhole();
}

TEST_F(StoreMigrationTest, CutOffWhileSessionsWereCopiedItBeginsAnew) {
  fs::create_directories(options_.dir + "/sessions.new");
  std::ofstream(options_.dir + "/sessions.new/CURRENT") << "half";
  ExpectWhole();
}

TEST_F(StoreMigrationTest, CutOffBetweenItsRenamesItGoesOn) {
  Open();
  store_.reset();
  fs::rename(options_.dir + "/sessions", options_.dir + "/sessions.new");
  fs::create_directories(options_.dir + "/db.migrated");
  ExpectWhole();
}

// An older program was started on the folder, and made a store beside.
TEST_F(StoreMigrationTest, TwoStoresInOneFolderAreRefused) {
  Open();
  store_.reset();
  MakeStore1(options_.dir);
  const absl::Status opened = OpenStatus();
  EXPECT_THAT(opened, HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(opened.message()), HasSubstr("two stores"));
  fs::remove_all(options_.dir + "/db");
  ExpectWhole();
}

TEST_F(StoreMigrationTest, DamagedOneSaysSoAndIsRepaired) {
  for (const auto& file : fs::directory_iterator(options_.dir + "/db")) {
    if (file.path().filename().string().starts_with("MANIFEST")) {
      fs::resize_file(file.path(), fs::file_size(file.path()) / 2);
    }
  }
  const absl::Status opened = OpenStatus();
  EXPECT_THAT(opened, HasCode(absl::StatusCode::kDataLoss));
  EXPECT_THAT(std::string(opened.message()), HasSubstr("--repair"));
  const auto report = CacheStore::Repair(options_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->sessions_kept, kSessions);
  Open();
  for (int i = 0; i < kSessions; ++i) {
    EXPECT_EQ(*store_->sessions().Load("t", RecordOf1(i).id), RecordOf1(i));
  }
}

}  // namespace
}  // namespace xcache
