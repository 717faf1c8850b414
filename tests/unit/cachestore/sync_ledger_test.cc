#include "cachestore/rocksdb/sync_ledger.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "engine/base/crc32c.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

constexpr char kBytes[] = "what a MANIFEST says";

ManifestMark MarkOf(uint64_t number, std::string_view bytes) {
  return {number, bytes.size(), Crc32c(bytes)};
}

TEST(SyncLedgerRecordTest, ComesBackAndEveryDamageIsFound) {
  const LedgerRecord record{77, MarkOf(5, "abc"), MarkOf(9, "d")};
  const std::string bytes = EncodeLedger(record);
  EXPECT_EQ(DecodeLedger(bytes), record);
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(DecodeLedger(bytes.substr(0, i)), std::nullopt) << i;
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      EXPECT_EQ(DecodeLedger(damaged), std::nullopt) << i;
    }
  }
  EXPECT_EQ(DecodeLedger(bytes + '\0'), std::nullopt);
}

TEST(SyncLedgerNamesTest, OnlyManifestsAreManifests) {
  EXPECT_EQ(ParseManifestName("MANIFEST-000123"), 123u);
  EXPECT_EQ(ParseManifestName("MANIFEST-1234567"), 1234567u);
  for (const char* name :
       {"", "MANIFEST", "MANIFEST-", "MANIFEST-12x", "MANIFEST--1",
        "manifest-000123", "000123.sst", "MANIFEST-99999999999999999999999"}) {
    EXPECT_EQ(ParseManifestName(name), std::nullopt) << name;
  }
}

class SyncLedgerTest : public ::testing::Test {
 protected:
  void SetCurrent(const std::string& text) {
    std::ofstream(dir_.path() + "/CURRENT") << text;
  }
  void SetManifest(const std::string& number, const std::string& bytes) {
    std::ofstream(dir_.path() + "/MANIFEST-" + number) << bytes;
  }
  absl::Status Check(const LedgerRecord& record) {
    return CheckManifest(record, dir_.path());
  }
  LedgerRecord Written() {
    const auto record = ReadLedger(path_);
    EXPECT_TRUE(record.has_value());
    return record.value_or(LedgerRecord{});
  }

  TempDir dir_;
  const std::string path_ = LedgerPath(dir_.path());
};

TEST_F(SyncLedgerTest, ManifestMustHaveWhatWasSyncedAndMayHaveMore) {
  const std::string bytes = kBytes;
  const LedgerRecord record{0, MarkOf(7, bytes), {}};
  SetCurrent("MANIFEST-000007\n");
  for (const char* more : {"", "x", "more and more"}) {
    SetManifest("000007", bytes + more);
    EXPECT_TRUE(Check(record).ok());
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    SetManifest("000007", bytes.substr(0, i));
    EXPECT_THAT(Check(record), HasCode(absl::StatusCode::kDataLoss)) << i;
    std::string flipped = bytes + "more";
    flipped[i] ^= 4;
    SetManifest("000007", flipped);
    EXPECT_THAT(Check(record), HasCode(absl::StatusCode::kDataLoss)) << i;
  }
  std::filesystem::remove(dir_.path() + "/MANIFEST-000007");
  EXPECT_THAT(std::string(Check(record).message()),
              HasSubstr("MANIFEST-000007"));
}

TEST_F(SyncLedgerTest, BothManifestsAreGoodWhileOneReplacesTheOther) {
  const LedgerRecord record{0, MarkOf(7, "old"), MarkOf(12, "new one")};
  SetManifest("000007", "old");
  SetManifest("000012", "new one");
  SetCurrent("MANIFEST-000007\n");
  EXPECT_TRUE(Check(record).ok());
  SetCurrent("MANIFEST-000012\n");
  EXPECT_TRUE(Check(record).ok());
  // Each with its own bytes.
  SetManifest("000012", "old");
  EXPECT_THAT(Check(record), HasCode(absl::StatusCode::kDataLoss));
}

TEST_F(SyncLedgerTest, OlderManifestIsDamageAndALaterOneIsNot) {
  const LedgerRecord record{0, MarkOf(7, "old"), MarkOf(12, "new one")};
  for (const char* number : {"000003", "000009"}) {
    SetManifest(number, "old");
    SetCurrent(absl::StrCat("MANIFEST-", number, "\n"));
    EXPECT_THAT(Check(record), HasCode(absl::StatusCode::kDataLoss));
  }
  // The ledger could not be written when it was made.
  SetManifest("000015", "newer");
  SetCurrent("MANIFEST-000015\n");
  EXPECT_TRUE(Check(record).ok());
  for (const char* text : {"", "MANIFEST-000007", "000007\n", "\n"}) {
    SetCurrent(text);
    EXPECT_THAT(Check(record), HasCode(absl::StatusCode::kDataLoss)) << text;
  }
}

TEST_F(SyncLedgerTest, FollowsManifestsAndTheLog) {
  SyncLedger ledger(path_);
  // Before there is a store nothing is written.
  ledger.ManifestSynced(MarkOf(1, "a"), 0);
  ledger.LogSynced(3);
  EXPECT_EQ(ReadLedger(path_), std::nullopt);
  ASSERT_TRUE(ledger.Start(std::nullopt).ok());
  EXPECT_EQ(Written(), (LedgerRecord{3, {}, MarkOf(1, "a")}));
  ledger.ManifestSynced(MarkOf(1, "ab"), 1);
  EXPECT_EQ(Written(), (LedgerRecord{3, MarkOf(1, "ab"), {}}));
  ledger.LogSynced(8);
  ledger.LogSynced(5);
  EXPECT_EQ(Written().synced_sequence, 8u);
  // A new one, which is not in force yet.
  ledger.ManifestSynced(MarkOf(9, "c"), 1);
  EXPECT_EQ(Written(), (LedgerRecord{8, MarkOf(1, "ab"), MarkOf(9, "c")}));
  // It never was; the next attempt is in force at once.
  ledger.ManifestSynced(MarkOf(11, "d"), 1);
  EXPECT_EQ(Written(), (LedgerRecord{8, MarkOf(1, "ab"), MarkOf(11, "d")}));
  ledger.ManifestSynced(MarkOf(11, "de"), 11);
  EXPECT_EQ(Written(), (LedgerRecord{8, MarkOf(11, "de"), {}}));
  // And one after another, with no word between.
  ledger.ManifestSynced(MarkOf(13, "f"), 11);
  ledger.ManifestSynced(MarkOf(15, "g"), 13);
  EXPECT_EQ(Written(), (LedgerRecord{8, MarkOf(13, "f"), MarkOf(15, "g")}));
}

TEST_F(SyncLedgerTest, GoesOnWithWhatItSaid) {
  const LedgerRecord before{20, MarkOf(4, "abc"), {}};
  SyncLedger(path_).Start(std::nullopt).IgnoreError();
  SyncLedger ledger(path_);
  ASSERT_TRUE(ledger.Start(before).ok());
  ledger.LogSynced(10);
  ledger.ManifestSynced(MarkOf(6, "d"), 4);
  EXPECT_EQ(Written(), (LedgerRecord{20, MarkOf(4, "abc"), MarkOf(6, "d")}));
  // Of the one in force it may know nothing.
  ledger.ManifestSynced(MarkOf(8, "e"), 5);
  SetCurrent("MANIFEST-000005\n");
  EXPECT_TRUE(Check(Written()).ok());
}

TEST_F(SyncLedgerTest, DamagedFileIsReplaced) {
  std::ofstream(path_) << std::string(500, 'x');
  EXPECT_EQ(ReadLedger(path_), std::nullopt);
  SyncLedger ledger(path_);
  ledger.LogSynced(2);
  ASSERT_TRUE(ledger.Start(ReadLedger(path_)).ok());
  EXPECT_EQ(Written().synced_sequence, 2u);
}

}  // namespace
}  // namespace xcache
