// A store that a test opens, fills with turns, closes and opens again.
#ifndef XCACHE_TESTS_UNIT_CACHESTORE_STORE_FIXTURE_H_
#define XCACHE_TESTS_UNIT_CACHESTORE_STORE_FIXTURE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "cachestore/cache_store.h"
#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/disk_space.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {

// OK: it is on disk; else why not.
inline absl::Status CommitDurably(CacheStore& store,
                                  const SessionRecord& record) {
  const absl::StatusOr<Committed> committed = store.sessions().Commit(record);
  return committed.ok() ? committed->why : committed.status();
}

// Puts those pages of a record that are not there, and commits it.
inline absl::Status CommitTurn(CacheStore& store, const SessionRecord& record,
                               size_t page_bytes) {
  PageKey parent = kRootPageKey;
  for (const PageKey& key : record.page_keys) {
    if (!store.pages().Contains(key)) {
      const absl::Status put =
          store.PutPage(key, parent, BytesOf(key[0], page_bytes));
      if (!put.ok()) return put;
    }
    parent = key;
  }
  return CommitDurably(store, record);
}

// A database by itself, in the folder of a store, with what it borrows.
class LoneDatabase {
 public:
  LoneDatabase(DatabaseKind kind, const std::string& dir, int64_t disk_bytes,
               rocksdb::Env* env = nullptr)
      : resources_(8 << 20, /*compaction_bytes_per_s=*/0) {
    const absl::Status made = MakeFolder(dir);
    EXPECT_TRUE(made.ok()) << made;
    space_ = std::make_unique<DiskSpace>(dir, PlanDisk(disk_bytes, 8 << 20),
                                         /*min_free_bytes=*/0);
    DatabaseOptions options;
    options.kind = kind;
    options.dir = dir;
    options.env = env;
    auto opened = Database::Open(options, resources_, *space_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) database_ = *std::move(opened);
  }
  Database& operator*() { return *database_; }
  Database* operator->() { return database_.get(); }

 private:
  const DatabaseResources resources_;
  std::unique_ptr<DiskSpace> space_;
  std::unique_ptr<Database> database_;
};

class StoreFixture : public ::testing::Test {
 protected:
  static constexpr int64_t kMemory = 128 << 20;

  // The pages that CommitTurn puts have `page_bytes` each.
  explicit StoreFixture(size_t page_bytes) : page_bytes_(page_bytes) {
    options_.dir = dir_.path() + "/store";
    options_.disk_bytes = int64_t{1} << 30;
    options_.housekeeping_ms = 20;
  }
  // It goes before the budget and the folder.
  ~StoreFixture() override { store_.reset(); }

  void Open() {
    store_.reset();
    auto opened = CacheStore::Open(options_, budget_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  // What opening it once more says.
  absl::Status OpenStatus() const {
    MemoryBudget budget(kMemory);
    return CacheStore::Open(options_, budget).status();
  }
  absl::Status CommitTurn(const SessionRecord& record) {
    return xcache::CommitTurn(*store_, record, page_bytes_);
  }

  const size_t page_bytes_;
  TempDir dir_;
  CacheStoreOptions options_;
  MemoryBudget budget_{kMemory};
  std::unique_ptr<CacheStore> store_;
};

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_CACHESTORE_STORE_FIXTURE_H_
