// What the tests of the store share: folders, keys, bytes, chains, records.
#ifndef XCACHE_TESTS_UNIT_CACHESTORE_STORE_TEST_UTIL_H_
#define XCACHE_TESTS_UNIT_CACHESTORE_STORE_TEST_UTIL_H_

#include <stdlib.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/page_store.h"
#include "cachestore/sessions/session_record.h"
#include "engine/base/coding.h"
#include "engine/base/crc32c.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/wait_until.h"

namespace xcache {

// In memory where that can be had: a test opens and closes many stores, and
// what only a real disk would show is what store_durability_test.cc counts.
class TempDir {
 public:
  TempDir() {
    std::string name = "/dev/shm/xcache_store_XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) {
      name = ::testing::TempDir() + "xcache_store_XXXXXX";
      if (::mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "no folder";
    }
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Changes a byte of a file; twice, and it is as it was.
inline void FlipByte(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ 0x41);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
  EXPECT_TRUE(file.good()) << path;
}

inline void FixCrc(std::string& bytes) {
  const uint32_t crc = Crc32c(bytes.data(), bytes.size() - 4);
  for (size_t i = 0; i < 4; ++i) {
    bytes[bytes.size() - 4 + i] = static_cast<char>(crc >> (8 * i));
  }
}

// Waits for what the housekeeping does; false: it did not within 30 s.
inline bool Eventually(const std::function<bool()>& condition) {
  return testing::WaitUntil(condition, std::chrono::seconds(30));
}

inline PageKey KeyOf(int i) { return Sha256Of(absl::StrCat("page ", i)); }

// Bytes that no compression would shrink, the same for the same seed.
inline std::string BytesOf(int seed, size_t num_bytes) {
  std::mt19937 random(static_cast<uint32_t>(seed) * 2654435761u + 1);
  std::string bytes(num_bytes, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// REQUIRES: there is memory for it.
inline PageRef PageOf(MemoryBudget& budget, const PageKey& key,
                      const PageKey& parent, std::string bytes) {
  auto page = MakePage(budget, key, parent, std::move(bytes));
  EXPECT_TRUE(page.ok()) << page.status();
  return *page;
}

inline std::vector<PageKey> ChainOf(const std::string& name, int num_pages) {
  std::vector<PageKey> keys;
  PageKey parent = kRootPageKey;
  for (int i = 0; i < num_pages; ++i) {
    const int32_t token = i;
    parent = ComputePageKey(Digest{}, name, parent, {&token, 1});
    keys.push_back(parent);
  }
  return keys;
}

// A record with something in every field.
inline SessionRecord RecordOf(const std::string& tenant, const std::string& id,
                              uint64_t turn) {
  SessionRecord record;
  record.tenant = tenant;
  record.id = id;
  record.title = "about " + id;
  record.create_ms = 1'700'000'000'000;
  record.update_ms = record.create_ms + static_cast<int64_t>(turn) * 1000;
  record.ttl_ms = 3'600'000;
  record.expire_ms = record.update_ms + record.ttl_ms;
  record.codec = "xquant-gqa:bits=4";
  record.cache_fp = Sha256Of("cache");
  record.model_fp = Sha256Of("model");
  record.numerics_id = "cpu/avx2";
  record.turn = turn;
  uint32_t at = 0;
  for (uint64_t i = 0; i < turn; ++i) {
    SessionMessage question{1, absl::StrCat("question ", i, " of ", id), at,
                            at + 3};
    SessionMessage answer{2, absl::StrCat("answer \xf0\x9f\x90\x8e ", i),
                          at + 3, at + 8};
    at += 8;
    record.messages.push_back(question);
    record.messages.push_back(answer);
  }
  for (uint32_t i = 0; i < at; ++i) {
    record.tokens.push_back(static_cast<int32_t>(i * 7));
  }
  record.page_keys = ChainOf(tenant + "/" + id, static_cast<int>(turn));
  record.settings = {{"system", "be brief"}, {"empty", ""}};
  return record;
}

// The same record as a program of format 1 wrote it. REQUIRES: no page_bytes.
inline std::string EncodeSessionRecord1(const SessionRecord& record) {
  std::string bytes = EncodeSessionRecord(record);
  // The end of the head: three counts, page_bytes, the last page's key, a CRC.
  bytes.erase(HeadOf(bytes).size() - 56, 56);
  bytes.erase(12, 4);  // its length
  bytes[4] = 1;
  std::string length;
  FieldWriter(length).Int(static_cast<uint32_t>(bytes.size()));
  bytes.replace(8, 4, length);
  bytes.resize(bytes.size() - 4);
  FieldWriter(bytes).Int(Crc32c(bytes));
  return bytes;
}

MATCHER_P(HasCode, code, "") {
  *result_listener << arg.ToString();
  return arg.code() == code;
}

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_CACHESTORE_STORE_TEST_UTIL_H_
