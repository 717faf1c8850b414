// Tables whose every byte is checked: by themselves, and as RocksDB reads and
// writes them through our file system.
#include "cachestore/rocksdb/table_sums.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

#include "cachestore/rocksdb/file_system.h"
#include "rocksdb/sst_file_reader.h"
#include "rocksdb/sst_file_writer.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

constexpr uint64_t kChunk = TableSums::kChunkBytes;

TEST(TableSumsTest, ComeBackForEveryLength) {
  for (uint64_t size = 0; size < 3 * kChunk + 2; ++size) {
    const std::string table = BytesOf(1, size);
    TableSums written;
    // In parts that are no chunks.
    for (size_t at = 0; at < size; at += 700) {
      written.Append(std::string_view(table).substr(at, 700));
    }
    const std::string trailer = written.Trailer();
    ASSERT_EQ(TableSums::TableBytes(size + trailer.size()), size);
    const auto sums = TableSums::Parse(size, trailer);
    ASSERT_TRUE(sums.has_value()) << size;
    EXPECT_TRUE(sums->Check(0, table));
    if (size > kChunk) {
      EXPECT_TRUE(sums->Check(kChunk, table.substr(kChunk)));
      EXPECT_FALSE(sums->Check(kChunk, table));
    }
    EXPECT_FALSE(sums->Check(0, table + "x"));
  }
}

TEST(TableSumsTest, EveryDamageIsFound) {
  const std::string table = BytesOf(1, 2 * kChunk + 100);
  TableSums written;
  written.Append(table);
  const std::string trailer = written.Trailer();
  for (size_t i = 0; i < table.size(); ++i) {
    std::string damaged = table;
    damaged[i] ^= 4;
    EXPECT_FALSE(written.Check(0, damaged)) << i;
  }
  for (size_t i = 0; i < trailer.size(); ++i) {
    std::string damaged = trailer;
    damaged[i] ^= 4;
    EXPECT_FALSE(TableSums::Parse(table.size(), damaged).has_value()) << i;
    EXPECT_FALSE(
        TableSums::Parse(table.size(), trailer.substr(0, i)).has_value());
  }
}

TEST(TableSumsTest, SizeOfAFileIsNeverLessThanItsTable) {
  for (uint64_t size = 0; size < 5000; ++size) {
    EXPECT_LE(TableSums::TableBytes(size), size);
  }
}

class TableFileTest : public ::testing::Test {
 protected:
  TableFileTest() { options_.env = env_.get(); }

  // A table of `num_records`, as it is on disk.
  std::string Make(int num_records) {
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options_);
    EXPECT_TRUE(writer.Open(path_).ok());
    for (int i = 0; i < num_records; ++i) {
      const std::string key = absl::StrCat("key ", 100'000 + i);
      EXPECT_TRUE(writer.Put(key, BytesOf(i, 300)).ok());
    }
    EXPECT_TRUE(writer.Finish().ok());
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // How many records are read, without RocksDB's own checks, each of which must
  // be right; -1: it does not open.
  int Read(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    rocksdb::SstFileReader reader(options_);
    if (!reader.Open(path_).ok()) return -1;
    rocksdb::ReadOptions options;
    options.verify_checksums = false;
    const std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(options));
    int num_read = 0;
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      EXPECT_EQ(it->value().ToString(), BytesOf(num_read, 300));
      ++num_read;
    }
    is_whole_ = it->status().ok();
    return num_read;
  }

  TempDir dir_;
  const std::string path_ = dir_.path() + "/000001.sst";
  const std::unique_ptr<rocksdb::Env> env_ = MakeStoreEnv(nullptr, nullptr);
  rocksdb::Options options_;
  bool is_whole_ = false;
};

TEST_F(TableFileTest, IntactTablesAreRead) {
  for (int num_records : {1, 2, 100, 2000}) {
    const std::string bytes = Make(num_records);
    EXPECT_EQ(Read(bytes), num_records);
    EXPECT_TRUE(is_whole_);
    uint64_t size = 0;
    EXPECT_TRUE(env_->GetFileSize(path_, &size).ok());
    EXPECT_EQ(size, TableSums::TableBytes(bytes.size()));
  }
}

// RocksDB gets no byte of what is damaged, wherever that is: what it does with
// such bytes may stop the process.
TEST_F(TableFileTest, EveryFlippedByteAndEveryCutIsFound) {
  const std::string bytes = Make(5);
  int num_unread = 0;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    if (Read(damaged) == 5 && is_whole_) ++num_unread;
    EXPECT_EQ(Read(bytes.substr(0, i)), -1) << i;
  }
  EXPECT_LT(num_unread, static_cast<int>(bytes.size() / 3 / 4));
  EXPECT_EQ(Read(bytes + "x"), -1);
}

TEST_F(TableFileTest, DamageSpoilsLittleAroundIt) {
  std::string bytes = Make(2000);
  bytes[bytes.size() / 2] ^= 1;
  EXPECT_GT(Read(bytes), 950);
  EXPECT_FALSE(is_whole_);
}

TEST_F(TableFileTest, RandomDamageNeverStopsTheProcess) {
  const std::string bytes = Make(300);
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    std::string damaged = bytes;
    // Half of the time where it matters most.
    const size_t from = round % 2 == 0 ? 0 : bytes.size() - 2000;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips) {
      damaged[from + random() % (bytes.size() - from)] ^=
          static_cast<char>(1 + random() % 255);
    }
    EXPECT_LE(Read(damaged), 300);
  }
}

}  // namespace
}  // namespace xcache
