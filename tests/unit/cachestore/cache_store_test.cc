// Pages and sessions together, over one store that is closed and opened again.
#include "cachestore/cache_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cachestore/rocksdb/database.h"
#include "cachestore/rocksdb/file_system.h"
#include "cachestore/rocksdb/open_check.h"
#include "rocksdb/db.h"
#include "tests/unit/cachestore/store_fixture.h"

namespace xcache {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CacheStoreTest : public StoreFixture {
 protected:
  CacheStoreTest() : StoreFixture(/*page_bytes=*/20'000) {}
};

TEST_F(CacheStoreTest, SessionsAndPagesComeBackAfterClosing) {
  Open();
  std::vector<SessionRecord> records;
  for (int i = 0; i < 5; ++i) {
    records.push_back(RecordOf("tenant", absl::StrCat("s", i), 4));
    ASSERT_TRUE(CommitTurn(records.back()).ok());
  }
  EXPECT_EQ(store_->stats().sessions.commits, 5);
  Open();
  EXPECT_EQ(store_->stats().sessions.num_sessions, 5);
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).num_pages, 20);
  for (const SessionRecord& record : records) {
    const auto loaded = store_->sessions().Load("tenant", record.id);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(*loaded, record);
    for (const PageKey& key : loaded->page_keys) {
      const auto hit = store_->pages().Get(key);
      ASSERT_TRUE(hit.ok()) << hit.status();
      EXPECT_EQ(hit->tier, PageTier::kDisk);
      EXPECT_EQ(hit->page->bytes(), BytesOf(key[0], 20'000));
      EXPECT_EQ(store_->pages().Get(key)->tier, PageTier::kHost);
    }
  }
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).hits, 20);
}

TEST_F(CacheStoreTest, LaterCommitReplacesTheRecord) {
  Open();
  for (uint64_t turn = 0; turn <= 6; ++turn) {
    ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", turn)).ok());
    const auto found = store_->sessions().Find("t", "chat");
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->turn, turn);
    EXPECT_EQ(found->durability, Durability::kLocal);
  }
  Open();
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), RecordOf("t", "chat", 6));
  EXPECT_EQ(store_->stats().sessions.num_sessions, 1);
}

TEST_F(CacheStoreTest, SummaryHasWhatListsShow) {
  Open();
  SessionRecord record = RecordOf("t", "chat", 3);
  record.pinned = true;
  ASSERT_TRUE(CommitTurn(record).ok());
  for (int round = 0; round < 2; ++round) {
    const auto s = store_->sessions().Find("t", "chat");
    ASSERT_TRUE(s.ok()) << s.status();
    EXPECT_EQ(s->tenant, "t");
    EXPECT_EQ(s->id, "chat");
    EXPECT_EQ(s->title, "about chat");
    EXPECT_EQ(s->codec, record.codec);
    EXPECT_EQ(s->create_ms, record.create_ms);
    EXPECT_EQ(s->update_ms, record.update_ms);
    EXPECT_EQ(s->expire_ms, record.expire_ms);
    EXPECT_EQ(s->turn, 3u);
    EXPECT_EQ(s->num_tokens, record.tokens.size());
    EXPECT_EQ(s->num_messages, 6u);
    EXPECT_EQ(s->num_pages, 3u);
    EXPECT_TRUE(s->pinned);
    EXPECT_EQ(s->durability, Durability::kLocal);
    EXPECT_FALSE(s->damaged);
    EXPECT_EQ(s->model_fp, record.model_fp);
    Open();
  }
}

TEST_F(CacheStoreTest, KnowsWhatATenantHasAlsoAfterAStart) {
  Open();
  const auto use = [&](std::string_view tenant) {
    const TenantSessions have = store_->sessions().UseOf(tenant);
    return std::pair(have.num_sessions, have.page_bytes);
  };
  using Use = std::pair<int64_t, int64_t>;
  EXPECT_EQ(use("t"), Use(0, 0));
  for (int i = 0; i < 3; ++i) {
    SessionRecord record = RecordOf("t", absl::StrCat("s", i), 1);
    record.page_bytes = 100;
    ASSERT_TRUE(CommitTurn(record).ok());
  }
  ASSERT_TRUE(CommitTurn(RecordOf("other", "s0", 0)).ok());
  SessionRecord grown = RecordOf("t", "s1", 2);
  grown.page_bytes = 250;
  ASSERT_TRUE(CommitTurn(grown).ok());
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(use("t"), Use(3, 450));
    EXPECT_EQ(use("other").first, 1);
    EXPECT_EQ(use("nobody"), Use(0, 0));
    Open();
  }
  ASSERT_TRUE(store_->sessions().Delete("t", "s1").ok());
  EXPECT_EQ(use("t"), Use(2, 200));
  ASSERT_TRUE(store_->sessions().Delete("t", "s0").ok());
  ASSERT_TRUE(store_->sessions().Delete("t", "s2").ok());
  EXPECT_EQ(use("t"), Use(0, 0));
}

TEST_F(CacheStoreTest, ListsTheMostRecentlyUpdatedFirstInPages) {
  Open();
  for (int i = 0; i < 10; ++i) {
    SessionRecord record = RecordOf("t", absl::StrCat("s", i), 0);
    record.update_ms = 1000 + (i * 7) % 10;  // a permutation
    ASSERT_TRUE(CommitTurn(record).ok());
    ASSERT_TRUE(CommitTurn(RecordOf("other", absl::StrCat("o", i), 0)).ok());
  }
  std::vector<int64_t> seen;
  std::string token;
  do {
    const auto page = store_->sessions().List("t", token, 3);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const SessionSummary& s : page->sessions) {
      EXPECT_EQ(s.tenant, "t");
      seen.push_back(s.update_ms);
    }
    token = page->next_page_token;
    // What is updated meanwhile moves to the front and disturbs nothing.
    SessionRecord moved = RecordOf("t", "new", 0);
    moved.update_ms = 5000 + static_cast<int64_t>(seen.size());
    ASSERT_TRUE(CommitTurn(moved).ok());
  } while (!token.empty());
  std::vector<int64_t> expected;
  for (int64_t ms = 1009; ms >= 1000; --ms) expected.push_back(ms);
  EXPECT_EQ(seen, expected);
  EXPECT_TRUE(store_->sessions().List("nobody", "", 3)->sessions.empty());
  EXPECT_THAT(store_->sessions().List("t", "zz", 3).status(),
              HasCode(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(store_->sessions().List("t", "ab", 3).status(),
              HasCode(absl::StatusCode::kInvalidArgument));
}

TEST_F(CacheStoreTest, DeletedSessionIsGoneForGood) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "a", 2)).ok());
  ASSERT_TRUE(CommitTurn(RecordOf("t", "b", 2)).ok());
  EXPECT_TRUE(store_->sessions().Delete("t", "a").ok());
  EXPECT_THAT(store_->sessions().Delete("t", "a"),
              HasCode(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->sessions().Delete("other", "b"),
              HasCode(absl::StatusCode::kNotFound));
  for (int round = 0; round < 2; ++round) {
    EXPECT_THAT(store_->sessions().Load("t", "a").status(),
                HasCode(absl::StatusCode::kNotFound));
    EXPECT_THAT(store_->sessions().Find("t", "a").status(),
                HasCode(absl::StatusCode::kNotFound));
    EXPECT_TRUE(store_->sessions().Load("t", "b").ok());
    Open();
  }
}

TEST_F(CacheStoreTest, DeletedSessionTakesThePagesThatOnlyItNeeded) {
  Open();
  SessionRecord one = RecordOf("t", "one", 4);
  SessionRecord two = RecordOf("t", "two", 4);
  // Two pages in common, then two of each one's own.
  std::copy_n(one.page_keys.begin(), 2, two.page_keys.begin());
  ASSERT_TRUE(CommitTurn(one).ok());
  ASSERT_TRUE(CommitTurn(two).ok());
  ASSERT_TRUE(store_->Flush().ok());
  ASSERT_TRUE(store_->sessions().Delete("t", "one").ok());
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(store_->pages().Contains(one.page_keys[i]), i < 2) << i;
    EXPECT_TRUE(store_->pages().Contains(two.page_keys[i])) << i;
  }
  ASSERT_TRUE(store_->sessions().Delete("t", "two").ok());
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).num_pages, 0);
  EXPECT_EQ(store_->stats().tier(PageTier::kHost).num_pages, 0);
}

// Files of the store that hold `text`.
std::vector<std::string> FilesWith(const std::string& dir,
                                   const std::string& text) {
  std::vector<std::string> names;
  std::error_code gone;
  for (const auto& file :
       std::filesystem::recursive_directory_iterator(dir, gone)) {
    if (!file.is_regular_file(gone)) continue;
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    if (bytes.find(text) != std::string::npos) names.push_back(file.path());
  }
  return names;
}

TEST_F(CacheStoreTest, TextOfADeletedSessionIsSoonGoneFromTheFiles) {
  options_.purge_sessions_after = std::chrono::milliseconds(50);
  options_.purge_pages_after = std::chrono::milliseconds(50);
  Open();
  SessionRecord chat = RecordOf("t", "chat", 1);
  chat.messages[0].content = "a secret that nobody else says";
  ASSERT_TRUE(CommitTurn(chat).ok());
  ASSERT_TRUE(CommitTurn(RecordOf("t", "other", 2)).ok());
  ASSERT_TRUE(store_->Flush().ok());
  const std::string page = BytesOf(chat.page_keys[0][0], 20'000).substr(0, 64);
  ASSERT_FALSE(FilesWith(options_.dir, chat.messages[0].content).empty());
  ASSERT_FALSE(FilesWith(options_.dir, page).empty());
  ASSERT_TRUE(store_->sessions().Delete("t", "chat").ok());
  const auto is_gone = [&] {
    return FilesWith(options_.dir, chat.messages[0].content).empty() &&
           FilesWith(options_.dir, page).empty();
  };
  EXPECT_TRUE(Eventually(is_gone))
      << ::testing::PrintToString(
             FilesWith(options_.dir, chat.messages[0].content))
      << ::testing::PrintToString(FilesWith(options_.dir, page));
  EXPECT_EQ(store_->sessions().Load("t", "other")->turn, 2u);
}

TEST_F(CacheStoreTest, SweepDeletesWhatExpiredAndNothingElse) {
  Open();
  const auto commit = [&](const std::string& id, int64_t expire_ms,
                          bool pinned) {
    SessionRecord record = RecordOf("t", id, 1);
    record.expire_ms = expire_ms;
    record.pinned = pinned;
    ASSERT_TRUE(CommitTurn(record).ok());
  };
  commit("past", 1000, false);
  commit("now", 2000, false);
  commit("later", 2001, false);
  commit("never", 0, false);
  commit("pinned", 1000, true);
  commit("busy", 1000, false);
  const auto is_busy = [](std::string_view tenant, std::string_view id) {
    return tenant == "t" && id == "busy";
  };
  EXPECT_EQ(store_->sessions().Sweep(2000, is_busy), 2);
  EXPECT_EQ(store_->stats().sessions.expired, 2);
  Open();
  for (const char* id : {"later", "never", "pinned", "busy"}) {
    EXPECT_TRUE(store_->sessions().Load("t", id).ok()) << id;
  }
  for (const char* id : {"past", "now"}) {
    EXPECT_FALSE(store_->sessions().Load("t", id).ok()) << id;
  }
  EXPECT_EQ(store_->sessions().Sweep(2000, nullptr), 1);
}

TEST_F(CacheStoreTest, SessionOfAnotherModelIsReadAsAny) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 2)).ok());
  SessionRecord other = RecordOf("t", "other", 2);
  other.model_fp = Sha256Of("another model");
  ASSERT_TRUE(CommitTurn(other).ok());
  Open();
  const auto record = store_->sessions().Load("t", "chat");
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->model_fp, Sha256Of("model"));
  EXPECT_EQ(*record, RecordOf("t", "chat", 2));
  EXPECT_EQ(*store_->sessions().Load("t", "other"), other);
  EXPECT_EQ(store_->stats().sessions.corrupt, 0);
}

TEST_F(CacheStoreTest, ImpossibleRecordsAreInvalid) {
  Open();
  for (const SessionRecord& record :
       {RecordOf("t", "", 1), RecordOf("t", std::string(256, 'i'), 1),
        RecordOf(std::string(256, 't'), "i", 1)}) {
    EXPECT_THAT(CommitDurably(*store_, record),
                HasCode(absl::StatusCode::kInvalidArgument));
  }
  SessionRecord bad = RecordOf("t", "i", 1);
  bad.messages[0].token_end = 1000;
  EXPECT_THAT(CommitDurably(*store_, bad),
              HasCode(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(store_->stats().sessions.num_sessions, 0);
  const SessionRecord longest =
      RecordOf(std::string(255, 't'), std::string(255, 'i'), 1);
  ASSERT_TRUE(CommitTurn(longest).ok());
  Open();
  EXPECT_EQ(*store_->sessions().Load(longest.tenant, longest.id), longest);
}

TEST_F(CacheStoreTest, TenantAndIdDoNotRunIntoEachOther) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("ab", "c", 1)).ok());
  EXPECT_FALSE(store_->sessions().Load("a", "bc").ok());
  EXPECT_FALSE(store_->sessions().Load("", "abc").ok());
  ASSERT_TRUE(CommitTurn(RecordOf("", "abc", 1)).ok());
  EXPECT_TRUE(store_->sessions().Load("", "abc").ok());
}

TEST_F(CacheStoreTest, WithoutAFolderSessionsLiveInMemoryAndAreNotDurable) {
  options_.dir.clear();
  Open();
  const SessionRecord record = RecordOf("t", "chat", 2);
  EXPECT_THAT(CommitTurn(record),
              HasCode(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), record);
  EXPECT_EQ(store_->sessions().Find("t", "chat")->durability,
            Durability::kMemory);
  EXPECT_TRUE(store_->pages().Get(record.page_keys[1]).ok());
  EXPECT_FALSE(store_->stats().files.present);
  EXPECT_TRUE(store_->sessions().Delete("t", "chat").ok());
  EXPECT_FALSE(store_->sessions().Load("t", "chat").ok());
}

TEST_F(CacheStoreTest, DropFromHostLeavesPagesOnDisk) {
  Open();
  const SessionRecord record = RecordOf("t", "chat", 5);
  ASSERT_TRUE(CommitTurn(record).ok());
  const auto held = store_->pages().Get(record.page_keys[1]);
  ASSERT_TRUE(held.ok());
  EXPECT_GT(store_->DropFromHost(record.page_keys), 3 * 20'000);
  // The one that is held, and its ancestor.
  EXPECT_EQ(store_->stats().tier(PageTier::kHost).num_pages, 2);
  EXPECT_EQ(store_->stats().tier(PageTier::kDisk).num_pages, 5);
  EXPECT_EQ(store_->pages().Get(record.page_keys[4])->tier, PageTier::kDisk);
}

TEST_F(CacheStoreTest, FolderIsPrivate) {
  Open();
  for (const std::string& path :
       {options_.dir, options_.dir + "/sessions", options_.dir + "/pages"}) {
    struct stat st;
    ASSERT_EQ(::stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777, 0700u) << path;
  }
}

// Another process sees the same: tests/integration/test_bad_input.py.
TEST_F(CacheStoreTest, StoreInUseIsOneClearLine) {
  Open();
  const absl::Status again = OpenStatus();
  EXPECT_THAT(again, HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(again.message()),
              AllOf(HasSubstr(options_.dir), HasSubstr("in use")));
  // And it did no harm.
  EXPECT_TRUE(CommitTurn(RecordOf("t", "chat", 1)).ok());
}

// Says that the database in `path` is of that format.
void PutFormat(const std::string& path, const Format& format) {
  const std::unique_ptr<rocksdb::Env> env = MakeStoreEnv(nullptr, nullptr);
  rocksdb::Options options;
  options.env = env.get();
  rocksdb::DB* raw = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, path, &raw).ok());
  const std::unique_ptr<rocksdb::DB> db(raw);
  ASSERT_TRUE(db->Put({}, FormatKey(), FormatRecord(format)).ok());
}

TEST_F(CacheStoreTest, AnotherFormatVersionIsRefusedNamingBoth) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 1)).ok());
  store_.reset();
  PutFormat(options_.dir + "/sessions", {kSessionsFormat.name, 7});
  const absl::Status status = OpenStatus();
  EXPECT_THAT(status, HasCode(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("version 7"), HasSubstr("version 2"),
                    HasSubstr(options_.dir)));
}

// Pages of another version are no use, and no reason not to serve.
TEST_F(CacheStoreTest, PagesOfAnotherFormatVersionAreSetAside) {
  Open();
  const SessionRecord chat = RecordOf("t", "chat", 1);
  ASSERT_TRUE(CommitTurn(chat).ok());
  store_.reset();
  PutFormat(options_.dir + "/pages", {kPagesFormat.name, 7});
  Open();
  EXPECT_EQ(*store_->sessions().Load("t", "chat"), chat);
  EXPECT_FALSE(store_->pages().Contains(chat.page_keys[0]));
  EXPECT_EQ(store_->stats().files.pages_set_aside, 1);
  EXPECT_TRUE(CommitTurn(chat).ok());
  EXPECT_TRUE(store_->pages().Get(chat.page_keys[0]).ok());
}

TEST_F(CacheStoreTest, ForeignDatabaseIsRefused) {
  std::filesystem::create_directories(options_.dir + "/sessions");
  rocksdb::Options raw_options;
  raw_options.create_if_missing = true;
  rocksdb::DB* raw = nullptr;
  ASSERT_TRUE(
      rocksdb::DB::Open(raw_options, options_.dir + "/sessions", &raw).ok());
  ASSERT_TRUE(raw->Put({}, "their", "data").ok());
  delete raw;
  EXPECT_THAT(OpenStatus(), HasCode(absl::StatusCode::kFailedPrecondition));
}

TEST_F(CacheStoreTest, FolderThatCannotBeMadeIsOneClearLine) {
  std::ofstream(dir_.path() + "/file") << "x";
  options_.dir = dir_.path() + "/file/store";
  EXPECT_THAT(OpenStatus(), HasCode(absl::StatusCode::kFailedPrecondition));
  options_.dir = dir_.path() + "/file";
  EXPECT_THAT(OpenStatus(), HasCode(absl::StatusCode::kFailedPrecondition));
  options_.dir = "/proc/store";
  EXPECT_FALSE(OpenStatus().ok());
  options_.dir = dir_.path() + "/store";
  options_.disk_bytes = 1000;
  EXPECT_THAT(OpenStatus(), HasCode(absl::StatusCode::kInvalidArgument));
}

TEST_F(CacheStoreTest, BudgetTooSmallForRocksDbIsOneClearLine) {
  MemoryBudget small(4 << 20);
  EXPECT_THAT(CacheStore::Open(options_, small).status(),
              HasCode(absl::StatusCode::kResourceExhausted));
}

TEST_F(CacheStoreTest, StatsTellOfRocksDb) {
  Open();
  ASSERT_TRUE(CommitTurn(RecordOf("t", "chat", 3)).ok());
  ASSERT_TRUE(store_->Flush().ok());
  const StoreStats stats = store_->stats();
  EXPECT_TRUE(stats.files.present);
  EXPECT_FALSE(stats.files.degraded);
  EXPECT_GT(stats.files.used_bytes, 60'000);
  EXPECT_GT(stats.files.free_bytes, 0);
  EXPECT_GT(stats.files.wal_bytes, 60'000);
  EXPECT_GE(stats.files.wal_syncs, 1);
  EXPECT_GT(stats.files.memtable_bytes, 60'000);
  EXPECT_EQ(stats.files.live_bytes, 60'000);
  EXPECT_FALSE(stats.files.tickers.empty());
  EXPECT_EQ(stats.tier(PageTier::kDisk).puts, 3);
  EXPECT_EQ(stats.tier(PageTier::kDisk).queued_bytes, 0);
}

}  // namespace
}  // namespace xcache
