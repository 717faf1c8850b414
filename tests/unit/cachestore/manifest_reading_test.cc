// What RocksDB reads of a MANIFEST, through the store's file system.
#include <fstream>
#include <memory>
#include <string>
#include <string_view>

#include "cachestore/rocksdb/file_system.h"
#include "gtest/gtest.h"
#include "rocksdb/env.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

constexpr size_t kBlockBytes = 32 << 10;
constexpr size_t kHeaderBytes = 7;
constexpr char kFull = 1, kFirst = 2, kLast = 4;

// Its CRC is RocksDB's matter.
std::string Record(char type, std::string_view bytes) {
  std::string out(4, '\0');
  out.push_back(static_cast<char>(bytes.size() & 255));
  out.push_back(static_cast<char>(bytes.size() >> 8));
  out.push_back(type);
  return out.append(bytes);
}

// Version edits: the log's number, and the last sequence as a varint.
std::string Edit(std::string_view sequence) {
  return std::string("\x02\x08\x09\x00\x03\x94\x04\x0a\x91\x04\x04", 11)
      .append(sequence);
}
const std::string kEarlier = Edit("\x97\x10");  // 2,071
const std::string kLater = Edit("\xb1\x10");    // 2,097

class ManifestReadingTest : public ::testing::Test {
 protected:
  rocksdb::Status ReadAll(const std::string& bytes) {
    const std::string path = dir_.path() + "/MANIFEST-000005";
    std::ofstream(path, std::ios::binary) << bytes;
    const auto env = MakeStoreEnv(nullptr, nullptr);
    std::unique_ptr<rocksdb::SequentialFile> file;
    rocksdb::Status status = env->NewSequentialFile(path, &file, {});
    std::string scratch(kBlockBytes, '\0');
    rocksdb::Slice got;
    do {
      if (status.ok()) status = file->Read(kBlockBytes, &got, scratch.data());
    } while (status.ok() && !got.empty());
    return status;
  }

  TempDir dir_;
};

TEST_F(ManifestReadingTest, AnEditThatABlockEndsInsideOfIsSound) {
  for (size_t part = 0; part <= kLater.size(); ++part) {
    std::string bytes = Record(kFull, kEarlier);
    // Of a tag that says nothing of sequences.
    bytes += Record(
        kFull, std::string(kBlockBytes - bytes.size() - part - 2 * kHeaderBytes,
                           '\x05'));
    bytes += Record(kFirst, kLater.substr(0, part));
    ASSERT_EQ(bytes.size(), kBlockBytes);
    bytes += Record(kLast, kLater.substr(part));
    const rocksdb::Status status = ReadAll(bytes);
    EXPECT_TRUE(status.ok()) << part << ": " << status.ToString();
  }
}

TEST_F(ManifestReadingTest, SequencesThatGoBackAreDamage) {
  EXPECT_TRUE(ReadAll(Record(kFull, kEarlier) + Record(kFull, kLater)).ok());
  EXPECT_TRUE(
      ReadAll(Record(kFull, kLater) + Record(kFull, kEarlier)).IsCorruption());
}

}  // namespace
}  // namespace xcache
