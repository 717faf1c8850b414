// What CheckTable lets pass, RocksDB reads or refuses in good order.
#include "cachestore/rocksdb/table_check.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "cachestore/rocksdb/database.h"
#include "rocksdb/sst_file_reader.h"
#include "rocksdb/sst_file_writer.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

class TableCheckTest : public ::testing::Test {
 protected:
  TableCheckTest() : rocksdb_options_(OptionsOf(Family::kSessions)) {}

  static rocksdb::Options OptionsOf(Family family) {
    const DiskPlan plan = PlanDisk(kMinDiskBytes, 8 << 20);
    const DatabaseResources resources(1 << 20, 0);
    return {rocksdb::DBOptions(),
            MakeFamilyOptions(
                MakeRocksDbOptions(DatabaseKind::kPages, resources, plan), plan,
                FamilyName(family))};
  }
  // A table of `num_records`, as the store has them written.
  std::string Make(int num_records, Family family = Family::kSessions) {
    const std::string path = dir_.path() + "/table.sst";
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), OptionsOf(family));
    EXPECT_TRUE(writer.Open(path).ok());
    for (int i = 0; i < num_records; ++i) {
      const std::string key = absl::StrCat("key ", 100'000 + i);
      EXPECT_TRUE(writer.Put(key, BytesOf(i, 300)).ok());
    }
    EXPECT_TRUE(writer.Finish().ok());
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static absl::StatusOr<TableBlocks> Blocks(std::string_view bytes) {
    return CheckTable(bytes.size(), [&](uint64_t offset, size_t n, char* out) {
      EXPECT_LE(offset + n, bytes.size());
      if (offset + n > bytes.size()) return absl::UnavailableError("beyond");
      std::memcpy(out, bytes.data() + offset, n);
      return absl::OkStatus();
    });
  }
  static absl::Status Check(std::string_view bytes) {
    return Blocks(bytes).status();
  }
  // A read of what starts where `block` does.
  static bool CheckRead(const TableBlocks& blocks, std::string_view bytes,
                        const TableBlock& block) {
    return CheckTableRead(
        blocks, block.offset,
        bytes.substr(block.offset,
                     block.num_bytes + TableBlock::kTrailerBytes));
  }
  // Reads all there is; the number of records before an error.
  int ReadAll(std::string_view bytes) {
    const std::string path = dir_.path() + "/read.sst";
    std::ofstream(path, std::ios::binary) << bytes;
    EXPECT_TRUE(CheckTableFile(path).ok());
    rocksdb::SstFileReader reader(rocksdb_options_);
    if (!reader.Open(path).ok()) return -1;
    const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator({}));
    int num_read = 0;
    for (it->SeekToFirst(); it->Valid(); it->Next()) ++num_read;
    return num_read;
  }

  TempDir dir_;
  const rocksdb::Options rocksdb_options_;
};

TEST_F(TableCheckTest, IntactTablesPass) {
  for (int num_records : {1, 2, 100, 2000}) {
    const std::string bytes = Make(num_records);
    const absl::Status checked = Check(bytes);
    EXPECT_TRUE(checked.ok()) << checked;
    EXPECT_EQ(ReadAll(bytes), num_records);
  }
}

// One block after another, up to the footer; each read of one is checked.
TEST_F(TableCheckTest, BlocksAreAllThereIs) {
  for (int num_records : {1, 100, 2000}) {
    const std::string bytes = Make(num_records, Family::kPages);
    const auto found = Blocks(bytes);
    ASSERT_TRUE(found.ok()) << found.status();
    const TableBlocks& blocks = *found;
    // A data block holds 4 KiB.
    EXPECT_GT(blocks.size(), static_cast<size_t>(num_records * 300 / 8192));
    uint64_t end = 0;
    for (const TableBlock& block : blocks) {
      EXPECT_EQ(block.offset, end);
      end = block.offset + block.num_bytes + TableBlock::kTrailerBytes;
      EXPECT_TRUE(CheckRead(blocks, bytes, block));
      for (const uint64_t at : {block.offset, end - 1}) {
        std::string damaged = bytes;
        damaged[at] = static_cast<char>(damaged[at] ^ 1);
        EXPECT_FALSE(CheckRead(blocks, damaged, block)) << at;
        // Some of it, and more than it, are not known.
        EXPECT_TRUE(CheckTableRead(blocks, block.offset + 1, damaged));
        EXPECT_TRUE(CheckTableRead(blocks, block.offset, damaged));
      }
    }
    EXPECT_EQ(end, bytes.size() - 53);
  }
}

TEST_F(TableCheckTest, EveryTruncationIsFound) {
  const std::string bytes = Make(30);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(Check(bytes.substr(0, size)),
                HasCode(absl::StatusCode::kDataLoss))
        << size;
  }
  EXPECT_THAT(Check(bytes + "x"), HasCode(absl::StatusCode::kDataLoss));
}

// Every bit of a small table: what passes is in a data block, which RocksDB
// checks itself where it is asked to, and reads are checked by, or says nothing
// (zeros of the footer).
TEST_F(TableCheckTest, EveryBitIsCheckedHereAndByRocksDb) {
  constexpr int kRecords = 3;
  const std::string bytes = Make(kRecords);
  int num_passed = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      const auto blocks = Blocks(damaged);
      if (!blocks.ok()) continue;
      ++num_passed;
      const int num_read = ReadAll(damaged);
      if (bytes.size() - i <= 53) {
        EXPECT_EQ(num_read, kRecords) << "footer, " << bytes.size() - i;
      } else {
        EXPECT_EQ(num_read, 0) << "at " << i;
        EXPECT_FALSE(CheckRead(*blocks, damaged, blocks->front()));
      }
    }
  }
  // The one data block, and little else.
  EXPECT_GT(num_passed, kRecords * 300 * 8);
  EXPECT_LT(num_passed, (kRecords * 300 + 200) * 8);
}

TEST_F(TableCheckTest, RandomDamageNeverStopsTheProcess) {
  const std::string bytes = Make(300);
  std::mt19937 random(1);
  int num_passed = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string damaged = bytes;
    // Half of the time where it matters most.
    const size_t from = round % 2 == 0 ? 0 : bytes.size() - 2000;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips) {
      const size_t at = from + random() % (bytes.size() - from);
      damaged[at] = static_cast<char>(random());
    }
    if (!Check(damaged).ok()) continue;
    ++num_passed;
    EXPECT_LE(ReadAll(damaged), 300);
  }
  EXPECT_GT(num_passed, 100);
  EXPECT_LT(num_passed, 1900);
}

TEST_F(TableCheckTest, FileThatCannotBeReadIsNotDamaged) {
  EXPECT_THAT(CheckTableFile(dir_.path() + "/none"),
              HasCode(absl::StatusCode::kUnavailable));
  std::ofstream(dir_.path() + "/empty");
  EXPECT_THAT(CheckTableFile(dir_.path() + "/empty"),
              HasCode(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace xcache
