// A store of format 1, which had sessions and pages in one database, becomes
// one of today's when it is opened: whole, once, and whenever it was cut off.
#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cachestore/rocksdb/open_check.h"
#include "cachestore/rocksdb/page_records.h"
#include "cachestore/sessions/session_entry.h"
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
  const DiskPlan plan = PlanDisk(int64_t{1} << 30, 8 << 20);
  const DatabaseResources resources(8 << 20, 0);
  const rocksdb::Options options =
      MakeRocksDbOptions(DatabaseKind::kSessions, resources, plan);
  rocksdb::DB* raw = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, dir + "/db", &raw).ok());
  const std::unique_ptr<rocksdb::DB> db(raw);
  std::array<rocksdb::ColumnFamilyHandle*, kNumFamilies> families{};
  for (const Family family : {Family::kPages, Family::kPageIndex,
                              Family::kSessions, Family::kSessionIndex}) {
    const std::string name(FamilyName(family));
    auto*& handle = families[static_cast<size_t>(family)];
    ASSERT_TRUE(db->CreateColumnFamily(MakeFamilyOptions(options, plan, name),
                                       name, &handle)
                    .ok());
    ASSERT_TRUE(db->Put({}, handle, std::string(FamilyMarker()), "").ok());
    ASSERT_TRUE(db->Flush({}, handle).ok());
  }
  const auto put = [&](Family family, std::string_view key,
                       const std::string& value) {
    ASSERT_TRUE(db->Put({}, families[static_cast<size_t>(family)],
                        rocksdb::Slice(key.data(), key.size()), value)
                    .ok());
  };
  for (int i = 0; i < kSessions; ++i) {
    const SessionRecord record = RecordOf1(i);
    PageKey parent = kRootPageKey;
    for (const PageKey& key : record.page_keys) {
      const std::string page = BytesOf(key[0], kPageBytes);
      put(Family::kPages, KeyBytes(key),
          page + EncodePageTrailer(key, parent, page));
      put(Family::kPageIndex, KeyBytes(key),
          EncodePageEntry(key, {.parent = parent,
                                .num_bytes = kPageBytes,
                                .crc = Crc32c(page),
                                .put_us = 1}));
      parent = key;
    }
    const std::string key = SessionKey(record.tenant, record.id);
    put(Family::kSessions, key, EncodeSessionRecord1(record));
    put(Family::kSessionIndex, key, "an entry of format 1");
  }
  ASSERT_TRUE(db->Put({}, FormatKey(), FormatRecord(kStoreFormat1)).ok());
  for (auto* family : families) {
    if (family != nullptr) db->DestroyColumnFamilyHandle(family);
  }
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
      for (const PageKey& key : record.page_keys) {
        const auto hit = store_->pages().Get(key);
        ASSERT_TRUE(hit.ok()) << hit.status();
        EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], kPageBytes));
      }
    }
    EXPECT_EQ(store_->stats().sessions.corrupt, 0);
    EXPECT_EQ(store_->stats().files.pages_set_aside, 0);
    EXPECT_FALSE(fs::exists(options_.dir + "/db"));
    EXPECT_TRUE(CommitTurn(RecordOf("t", "s0", kTurns + 1)).ok());
    Open();
    EXPECT_EQ(store_->sessions().Load("t", "s0")->turn, kTurns + 1);
    EXPECT_EQ(store_->stats().disk.num_pages, kSessions * kTurns + 1);
  }
};

TEST_F(StoreMigrationTest, BecomesTwoDatabasesAndLosesNothing) {
  ExpectWhole();
}

TEST_F(StoreMigrationTest, NoSessionStaysInTheDatabaseOfPages) {
  ExpectWhole();
  store_.reset();
  const std::string text = RecordOf1(1).messages[0].content;
  for (const auto& file :
       fs::recursive_directory_iterator(options_.dir + "/pages")) {
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    EXPECT_EQ(bytes.find(text), std::string::npos) << file.path();
  }
}

TEST_F(StoreMigrationTest, CutOffWhileSessionsWereCopiedItBeginsAnew) {
  fs::create_directories(options_.dir + "/sessions.new");
  std::ofstream(options_.dir + "/sessions.new/CURRENT") << "half";
  ExpectWhole();
}

TEST_F(StoreMigrationTest, CutOffBetweenItsRenamesItGoesOn) {
  Open();
  store_.reset();
  fs::rename(options_.dir + "/pages", options_.dir + "/db");
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
