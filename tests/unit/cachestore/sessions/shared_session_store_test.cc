// Sessions of a fleet: servers over one bucket, each with a disk of its own and
// faults of its own on the way to the bucket.
#include "cachestore/sessions/shared_session_store.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cachestore/cache_store.h"
#include "tests/support/memory_object_store.h"
#include "tests/unit/cachestore/store_test_util.h"

namespace xcache {
namespace {

using Call = MemoryObjectStore::Call;
using When = MemoryObjectStore::When;
using ::testing::HasSubstr;

constexpr absl::StatusCode kAborted = absl::StatusCode::kAborted;
constexpr absl::StatusCode kNotFound = absl::StatusCode::kNotFound;
constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;

// A server's store.
class Server {
 public:
  Server(std::shared_ptr<MemoryBucket> bucket, SharedPolicy policy,
         bool has_disk = true)
      : bucket_(std::move(bucket)), policy_(policy), has_disk_(has_disk) {
    Start();
  }

  void Start() {
    CacheStoreOptions options;
    if (has_disk_) options.dir = dir_.path();
    options.disk_bytes = int64_t{1} << 30;
    options.min_free_bytes = 0;
    objects_ = std::make_shared<MemoryObjectStore>(bucket_);
    options.shared_sessions = objects_;
    options.shared_policy = policy_;
    budget_ = std::make_unique<MemoryBudget>(int64_t{256} << 20);
    auto store = CacheStore::Open(options, *budget_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  // As after kill -9, but for what the destructor writes.
  void Restart() {
    store_.reset();
    Start();
  }
  void Stop() { store_.reset(); }

  SessionStore& sessions() { return store_->sessions(); }
  SharedSessionStore& shared() {
    return static_cast<SharedSessionStore&>(store_->sessions());
  }
  MemoryObjectStore& objects() { return *objects_; }

  // A turn of a session as a core takes it.
  absl::StatusOr<Committed> Turn(const std::string& id) {
    auto record = sessions().Load("t", id);
    if (!record.ok()) return record.status();
    return sessions().Commit(After(*record));
  }
  // Its put is done, and nobody hears of it.
  absl::StatusOr<Committed> TurnDoneUnseen(const std::string& id) {
    const auto record = sessions().Load("t", id);
    if (!record.ok()) return record.status();
    objects().FailNext(Call::kPut, 1, absl::UnavailableError("reset"),
                       When::kAfter);
    objects().FailNext(Call::kGet, 1, absl::UnavailableError("reset"));
    return sessions().Commit(After(*record));
  }
  static SessionRecord After(SessionRecord record) {
    const SessionRecord next =
        RecordOf(record.tenant, record.id, record.turn + 1);
    record.turn = next.turn;
    record.tokens = next.tokens;
    record.messages = next.messages;
    return record;
  }
  absl::StatusOr<Committed> Create(const std::string& id) {
    return sessions().Commit(RecordOf("t", id, 1));
  }
  uint64_t TurnOf(const std::string& id) {
    const auto record = sessions().Load("t", id);
    return record.ok() ? record->turn : 0;
  }

 private:
  const std::shared_ptr<MemoryBucket> bucket_;
  const SharedPolicy policy_;
  const bool has_disk_;
  TempDir dir_;
  std::shared_ptr<MemoryObjectStore> objects_;
  std::unique_ptr<MemoryBudget> budget_;
  std::unique_ptr<CacheStore> store_;
};

class SharedSessionsTest : public ::testing::Test {
 protected:
  std::unique_ptr<Server> NewServer(SharedPolicy policy, bool has_disk = true) {
    return std::make_unique<Server>(bucket_, policy, has_disk);
  }

  const std::shared_ptr<MemoryBucket> bucket_ =
      std::make_shared<MemoryBucket>();
};

TEST_F(SharedSessionsTest, EveryServerGoesOnWithTheSameConversation) {
  for (const bool has_disk : {true, false}) {
    const auto a = NewServer(SharedPolicy::kStrict, has_disk);
    const auto b = NewServer(SharedPolicy::kStrict, has_disk);
    const std::string id = has_disk ? "on-disk" : "in-memory";
    const auto made = a->Create(id);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_EQ(made->durability, Durability::kShared);
    EXPECT_TRUE(made->why.ok());
    for (uint64_t turn = 2; turn <= 7; ++turn) {
      Server& server = turn % 3 == 0 ? *a : *b;
      const auto committed = server.Turn(id);
      ASSERT_TRUE(committed.ok()) << turn << " " << committed.status();
      EXPECT_EQ(committed->durability, Durability::kShared);
      EXPECT_EQ(a->TurnOf(id), turn);
      EXPECT_EQ(b->TurnOf(id), turn);
      EXPECT_EQ(a->sessions().Find("t", id)->durability, Durability::kShared);
    }
    EXPECT_THAT(b->sessions().Load("another", id).status(), HasCode(kNotFound));
    b->Stop();
    EXPECT_EQ(a->TurnOf(id), 7u);
  }
}

TEST_F(SharedSessionsTest, WhatHasNotChangedIsNotSentAgain) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  ASSERT_EQ(b->TurnOf("s"), 1u);
  const int64_t before = b->objects().stats().received_bytes;
  ASSERT_EQ(b->TurnOf("s"), 1u);
  EXPECT_EQ(b->objects().stats().received_bytes, before);
  b->Restart();  // and a restart knows what is on its disk
  ASSERT_EQ(b->TurnOf("s"), 1u);
  EXPECT_EQ(b->objects().stats().received_bytes, 0);
}

TEST_F(SharedSessionsTest, OfTwoTurnsOneWins) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  for (int round = 0; round < 100; ++round) {
    const auto at_a = a->sessions().Load("t", "s");
    const auto at_b = b->sessions().Load("t", "s");
    ASSERT_TRUE(at_a.ok() && at_b.ok());
    ASSERT_EQ(at_a->turn, at_b->turn);
    absl::StatusOr<Committed> of_a, of_b;
    std::thread thread(
        [&] { of_a = a->sessions().Commit(Server::After(*at_a)); });
    of_b = b->sessions().Commit(Server::After(*at_b));
    thread.join();
    ASSERT_NE(of_a.ok(), of_b.ok()) << of_a.status() << of_b.status();
    const absl::Status lost = of_a.ok() ? of_b.status() : of_a.status();
    EXPECT_THAT(lost, HasCode(kAborted));
    EXPECT_THAT(std::string(lost.message()),
                HasSubstr(absl::StrCat("turn ", at_a->turn + 1)));
    EXPECT_EQ(a->TurnOf("s"), at_a->turn + 1);
    EXPECT_EQ(b->TurnOf("s"), at_a->turn + 1);
  }
  EXPECT_EQ(a->sessions().stats().conflicts + b->sessions().stats().conflicts,
            100);
}

TEST_F(SharedSessionsTest, OfTwoCreationsOneWins) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  EXPECT_THAT(b->Create("s").status(),
              HasCode(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(b->TurnOf("s"), 1u);
}

// A put whose answer is lost is found to be done, whatever is said of it.
TEST_F(SharedSessionsTest, ALostAnswerIsNoLostTurn) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  uint64_t turn = 1;
  for (const absl::Status& said :
       {absl::UnavailableError("reset"), absl::DeadlineExceededError("late"),
        absl::UnknownError("who knows"), absl::AbortedError("not any more")}) {
    a->objects().FailNext(Call::kPut, 1, said, When::kAfter);
    const auto committed = a->Turn("s");
    ASSERT_TRUE(committed.ok()) << said << committed.status();
    EXPECT_EQ(committed->durability, Durability::kShared);
    EXPECT_EQ(a->TurnOf("s"), ++turn);
  }
  // And neither is one that somebody went on from before it was looked for.
  const auto b = NewServer(SharedPolicy::kStrict);
  const auto at_a = a->sessions().Load("t", "s");
  a->objects().FailNext(Call::kPut, 1, absl::UnknownError("who knows"),
                        When::kAfter);
  a->objects().set_delay(std::chrono::milliseconds(100));
  absl::StatusOr<Committed> committed;
  std::thread thread(
      [&] { committed = a->sessions().Commit(Server::After(*at_a)); });
  while (b->TurnOf("s") == turn) std::this_thread::yield();
  ASSERT_TRUE(b->Turn("s").ok());
  thread.join();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(a->TurnOf("s"), turn + 2);
}

TEST_F(SharedSessionsTest, StrictRefusesWhileTheStoreIsAway) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  const auto record = a->sessions().Load("t", "s");
  a->objects().FailAll(absl::UnavailableError("no route"));
  EXPECT_THAT(a->sessions().Commit(Server::After(*record)).status(),
              HasCode(kUnavailable));
  EXPECT_THAT(a->sessions().Load("t", "s").status(), HasCode(kUnavailable));
  EXPECT_THAT(a->Create("new").status(), HasCode(kUnavailable));
  EXPECT_THAT(a->sessions().List("t", "", 10).status(), HasCode(kUnavailable));
  EXPECT_THAT(a->sessions().Delete("t", "s"), HasCode(kUnavailable));
  a->objects().FailAll(absl::OkStatus());
  EXPECT_TRUE(Eventually([&] { return a->TurnOf("s") == 1; }));
  EXPECT_TRUE(a->Turn("s").ok());
  EXPECT_EQ(a->sessions().stats().num_ahead, 0);
}

TEST_F(SharedSessionsTest, PreferGoesOnAndPushesLater) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  const auto b = NewServer(SharedPolicy::kPrefer);
  ASSERT_TRUE(a->Create("s").ok());
  a->objects().FailAll(absl::UnavailableError("no route"));
  for (uint64_t turn = 2; turn <= 4; ++turn) {
    const auto committed = a->Turn("s");
    ASSERT_TRUE(committed.ok()) << committed.status();
    EXPECT_EQ(committed->durability, Durability::kLocal);
    EXPECT_THAT(committed->why, HasCode(kUnavailable));
    EXPECT_EQ(a->TurnOf("s"), turn);
  }
  ASSERT_TRUE(a->Create("new").ok());
  EXPECT_EQ(a->sessions().stats().num_ahead, 2);
  EXPECT_EQ(a->sessions().Find("t", "s")->durability, Durability::kLocal);
  EXPECT_EQ(b->TurnOf("s"), 1u);
  // What is ahead outlives the server.
  a->Restart();
  a->objects().FailAll(absl::UnavailableError("no route"));
  EXPECT_EQ(a->TurnOf("s"), 4u);
  a->objects().FailAll(absl::OkStatus());
  EXPECT_TRUE(Eventually([&] { return a->sessions().stats().num_ahead == 0; }));
  EXPECT_EQ(b->TurnOf("s"), 4u);
  EXPECT_EQ(b->TurnOf("new"), 1u);
  EXPECT_EQ(a->sessions().Find("t", "s")->durability, Durability::kShared);
  EXPECT_EQ(a->sessions().stats().branches, 0);
}

// Both went on: the one that is in the store stays, the other is kept beside.
TEST_F(SharedSessionsTest, ABranchIsKeptNotDropped) {
  for (const bool has_disk : {true, false}) {
    const auto a = NewServer(SharedPolicy::kPrefer, has_disk);
    const auto b = NewServer(SharedPolicy::kPrefer, has_disk);
    const std::string id = absl::StrCat("s", has_disk);
    ASSERT_TRUE(a->Create(id).ok());
    ASSERT_EQ(a->TurnOf(id), 1u);
    a->objects().FailAll(absl::UnavailableError("no route"));
    if (!has_disk) {
      // Without a disk there is no copy to go on with.
      EXPECT_THAT(a->Turn(id).status(), HasCode(kUnavailable));
      continue;
    }
    ASSERT_TRUE(a->Turn(id).ok());
    ASSERT_TRUE(a->Turn(id).ok());
    ASSERT_TRUE(b->Turn(id).ok());
    const SessionRecord of_a = *a->sessions().Load("t", id);
    a->objects().FailAll(absl::OkStatus());
    EXPECT_TRUE(
        Eventually([&] { return a->sessions().stats().num_ahead == 0; }));
    EXPECT_EQ(a->sessions().stats().branches, 1);
    EXPECT_EQ(a->TurnOf(id), 2u);
    const auto list = b->sessions().List("t", "", 10);
    ASSERT_TRUE(list.ok()) << list.status();
    ASSERT_EQ(list->sessions.size(), 2u);
    std::string fork;
    for (const SessionSummary& summary : list->sessions) {
      if (summary.id != id) fork = summary.id;
    }
    EXPECT_EQ(fork.rfind(absl::StrCat(id, ".fork-"), 0), 0u) << fork;
    const auto kept = b->sessions().Load("t", fork);
    ASSERT_TRUE(kept.ok()) << kept.status();
    EXPECT_EQ(kept->tokens, of_a.tokens);
    EXPECT_EQ(kept->messages, of_a.messages);
    EXPECT_EQ(kept->turn, 3u);
  }
}

// The turn that finds the branch is not acknowledged, and all before it is.
TEST_F(SharedSessionsTest, ATurnOnABranchSaysWhatBecameOfIt) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  const auto b = NewServer(SharedPolicy::kPrefer);
  ASSERT_TRUE(a->Create("s").ok());
  a->objects().FailAll(absl::UnavailableError("no route"));
  ASSERT_TRUE(a->Turn("s").ok());
  const SessionRecord ahead = *a->sessions().Load("t", "s");
  ASSERT_TRUE(b->Turn("s").ok());
  ASSERT_TRUE(b->Turn("s").ok());
  a->objects().FailAll(absl::OkStatus());
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  const auto committed = a->sessions().Commit(Server::After(ahead));
  EXPECT_THAT(committed.status(), HasCode(kAborted));
  EXPECT_TRUE(Eventually([&] { return a->sessions().stats().num_ahead == 0; }));
  EXPECT_EQ(a->sessions().stats().branches, 1);
  EXPECT_EQ(a->TurnOf("s"), 3u);
}

// A put that is believed lost arrives later, while the server went on alone.
TEST_F(SharedSessionsTest, APutThatWasDoneUnseenIsNoBranch) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  ASSERT_TRUE(a->Create("s").ok());
  const auto committed = a->TurnDoneUnseen("s");
  ASSERT_TRUE(committed.ok());
  EXPECT_EQ(committed->durability, Durability::kLocal);
  EXPECT_TRUE(Eventually([&] { return a->sessions().stats().num_ahead == 0; }));
  EXPECT_EQ(a->sessions().stats().branches, 0);
  EXPECT_EQ(a->TurnOf("s"), 2u);
  ASSERT_TRUE(a->Turn("s").ok());
  EXPECT_EQ(NewServer(SharedPolicy::kStrict)->TurnOf("s"), 3u);
}

// However many turns later the store is back.
TEST_F(SharedSessionsTest, APutThatWasDoneUnseenIsNoBranchOfALongOutage) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  ASSERT_TRUE(a->Create("s").ok());
  ASSERT_TRUE(a->TurnDoneUnseen("s").ok());
  a->objects().FailAll(absl::UnavailableError("no route"));
  while (a->TurnOf("s") < 40) {
    const auto committed = a->Turn("s");
    ASSERT_TRUE(committed.ok()) << committed.status();
    ASSERT_EQ(committed->durability, Durability::kLocal);
  }
  ASSERT_EQ(NewServer(SharedPolicy::kStrict)->TurnOf("s"), 2u);
  a->objects().FailAll(absl::OkStatus());
  EXPECT_TRUE(Eventually([&] { return a->sessions().stats().num_ahead == 0; }));
  EXPECT_EQ(a->sessions().stats().branches, 0);
  EXPECT_EQ(NewServer(SharedPolicy::kStrict)->TurnOf("s"), 40u);
}

// What was read of the store before a turn does not replace what is after it.
TEST_F(SharedSessionsTest, ALateReadingLeavesTheCopyOfALaterTurn) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  const auto b = NewServer(SharedPolicy::kPrefer);
  ASSERT_TRUE(a->Create("s").ok());
  ASSERT_EQ(b->TurnOf("s"), 1u);
  ASSERT_TRUE(a->Turn("s").ok());
  const auto at_b = b->sessions().Load("t", "s");
  ASSERT_EQ(at_b->turn, 2u);
  // What a slow reader still has, as if it had been read before the turn.
  const auto then = bucket_->objects();
  ASSERT_TRUE(b->sessions().Commit(Server::After(*at_b)).ok());
  for (const auto& [key, object] : then) bucket_->Set(key, object.bytes);
  EXPECT_EQ(b->TurnOf("s"), 2u);
  b->objects().FailAll(absl::UnavailableError("no route"));
  EXPECT_EQ(b->TurnOf("s"), 3u);
}

TEST_F(SharedSessionsTest, ADeletedSessionIsGoneEverywhere) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  const auto at_a = a->sessions().Load("t", "s");
  ASSERT_TRUE(b->sessions().Delete("t", "s").ok());
  EXPECT_THAT(b->sessions().Delete("t", "s"), HasCode(kNotFound));
  EXPECT_THAT(a->sessions().Commit(Server::After(*at_a)).status(),
              HasCode(kAborted));
  EXPECT_THAT(a->sessions().Load("t", "s").status(), HasCode(kNotFound));
  EXPECT_TRUE(a->sessions().List("t", "", 10)->sessions.empty());
  // What it said is in no object any more, and its id is free.
  for (const auto& [key, object] : bucket_->objects()) {
    EXPECT_TRUE(DecodeSessionObject(object.bytes)->is_deleted);
  }
  ASSERT_TRUE(a->Create("s").ok());
  EXPECT_EQ(b->TurnOf("s"), 1u);
}

TEST_F(SharedSessionsTest, DeletingIsDoneThoughItsAnswerIsLost) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  a->objects().FailNext(Call::kPut, 1, absl::UnknownError("who knows"),
                        When::kAfter);
  EXPECT_TRUE(a->sessions().Delete("t", "s").ok());
  EXPECT_EQ(a->TurnOf("s"), 0u);
}

// A bucket that is not the one it was: R11, nothing irreversible on one
// reading.
TEST_F(SharedSessionsTest, ASessionThatTheStoreLostIsPutAgain) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  for (const auto& [key, object] : bucket_->objects()) bucket_->Delete(key);
  EXPECT_EQ(a->TurnOf("s"), 1u);
  const auto committed = a->Turn("s");
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability, Durability::kShared);
  EXPECT_EQ(NewServer(SharedPolicy::kStrict)->TurnOf("s"), 2u);
}

TEST_F(SharedSessionsTest, ADamagedSessionIsDataLossAndNobodyCreatesOverIt) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  const std::string key = SessionObjectKey("t", "s");
  std::string bytes = bucket_->Find(key)->bytes;
  bytes[bytes.size() / 2] ^= 1;
  bucket_->Set(key, bytes);
  const auto b = NewServer(SharedPolicy::kStrict);
  EXPECT_THAT(b->sessions().Load("t", "s").status(),
              HasCode(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(b->sessions().Find("t", "s")->damaged);
  EXPECT_FALSE(b->Create("s").ok());
  EXPECT_EQ(bucket_->Find(key)->bytes, bytes);
  EXPECT_TRUE(b->sessions().Delete("t", "s").ok());
  EXPECT_TRUE(b->Create("s").ok());
}

// An object under another session's name.
TEST_F(SharedSessionsTest, AMisplacedSessionIsDataLoss) {
  const auto a = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(a->Create("s").ok());
  bucket_->Set(SessionObjectKey("t", "other"),
               bucket_->Find(SessionObjectKey("t", "s"))->bytes);
  EXPECT_THAT(a->sessions().Load("t", "other").status(),
              HasCode(absl::StatusCode::kDataLoss));
  const auto list = a->sessions().List("t", "", 10);
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(list->sessions.size(), 1u);
}

TEST_F(SharedSessionsTest, EveryServerListsAllOfThem) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE((i % 2 ? *a : *b).Create(absl::StrCat("s", i)).ok());
  }
  ASSERT_TRUE(a->sessions().Commit(RecordOf("u", "other", 1)).ok());
  for (Server* server : {a.get(), b.get()}) {
    std::set<std::string> ids;
    std::string token;
    do {
      const auto page = server->sessions().List("t", token, 7);
      ASSERT_TRUE(page.ok()) << page.status();
      for (const SessionSummary& summary : page->sessions) {
        EXPECT_EQ(summary.durability, Durability::kShared);
        EXPECT_TRUE(ids.insert(summary.id).second);
      }
      token = page->next_page_token;
    } while (!token.empty());
    EXPECT_EQ(ids.size(), 60u);
  }
  // What it makes itself it lists at once; and reads no more than what changed.
  ASSERT_TRUE(a->Create("new").ok());
  const int64_t gets = a->objects().num_calls(Call::kGet);
  EXPECT_EQ(a->sessions().List("t", "", 100)->sessions.size(), 61u);
  EXPECT_EQ(a->objects().num_calls(Call::kGet), gets + 1);
  EXPECT_THAT(a->sessions().List("t", "rubbish", 100).status(),
              HasCode(absl::StatusCode::kInvalidArgument));
}

// Each server deletes what expired, also of servers that are no more; and not
// what another one has used since.
TEST_F(SharedSessionsTest, ExpiryIsTheFleets) {
  const auto a = NewServer(SharedPolicy::kStrict);
  const auto b = NewServer(SharedPolicy::kStrict);
  for (const char* id : {"old", "used", "pinned"}) {
    SessionRecord record = RecordOf("t", id, 1);
    record.expire_ms = 1000;
    record.pinned = std::string_view(id) == "pinned";
    ASSERT_TRUE(a->sessions().Commit(record).ok());
  }
  SessionRecord used = *b->sessions().Load("t", "used");
  used.expire_ms = 9000;
  ASSERT_TRUE(b->sessions().Commit(used).ok());
  EXPECT_EQ(a->sessions().Sweep(999, nullptr), 0);
  EXPECT_EQ(a->sessions().Sweep(2000, nullptr), 1);
  EXPECT_EQ(b->TurnOf("old"), 0u);
  EXPECT_EQ(b->TurnOf("used"), 1u);
  EXPECT_EQ(b->TurnOf("pinned"), 1u);
  a->Stop();
  const auto c = NewServer(SharedPolicy::kStrict);
  EXPECT_EQ(c->sessions().Sweep(
                9000, [](std::string_view, std::string_view) { return true; }),
            0);
  EXPECT_EQ(c->sessions().Sweep(9000, nullptr), 1);
  EXPECT_EQ(b->TurnOf("used"), 0u);
}

TEST_F(SharedSessionsTest, ASweepReadsOnlyWhatHasChangedOrIsDue) {
  const auto a = NewServer(SharedPolicy::kStrict);
  for (int i = 0; i < 20; ++i) {
    SessionRecord record = RecordOf("t", absl::StrCat("s", i), 1);
    record.expire_ms = i == 7 ? 1000 : 0;
    ASSERT_TRUE(a->sessions().Commit(record).ok());
  }
  const auto b = NewServer(SharedPolicy::kStrict);
  const auto sweep_gets = [&](int64_t now_ms) {
    const int64_t before = b->objects().num_calls(Call::kGet);
    b->sessions().Sweep(now_ms, nullptr);
    return b->objects().num_calls(Call::kGet) - before;
  };
  EXPECT_EQ(sweep_gets(500), 20);
  EXPECT_EQ(sweep_gets(501), 0);
  ASSERT_TRUE(a->Turn("s3").ok());
  EXPECT_EQ(sweep_gets(502), 1);
  EXPECT_EQ(sweep_gets(1000), 1);
  EXPECT_EQ(b->TurnOf("s7"), 0u);
  EXPECT_EQ(b->sessions().stats().expired, 1);
  EXPECT_EQ(sweep_gets(1001), 1);  // its mark
  EXPECT_EQ(sweep_gets(1002), 0);
}

TEST_F(SharedSessionsTest, WhereARecordIsIsKnownWithoutAsking) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  const auto b = NewServer(SharedPolicy::kStrict, /*has_disk=*/false);
  ASSERT_TRUE(a->Create("s").ok());
  const auto shared = b->sessions().Load("t", "s");
  const int64_t before = b->objects().num_calls(Call::kGet);
  EXPECT_EQ(b->sessions().DurabilityOf(*shared), Durability::kShared);
  EXPECT_EQ(b->objects().num_calls(Call::kGet), before);
  a->objects().FailAll(absl::UnavailableError("no route"));
  ASSERT_TRUE(a->Turn("s").ok());
  EXPECT_EQ(a->sessions().DurabilityOf(*a->sessions().Load("t", "s")),
            Durability::kLocal);
}

// What a turn may begin with while the store is asked.
TEST_F(SharedSessionsTest, ACopyIsWhatTheStoreHadAndNothingThatIsAhead) {
  const auto a = NewServer(SharedPolicy::kPrefer);
  const auto b = NewServer(SharedPolicy::kPrefer);
  EXPECT_FALSE(a->sessions().LoadCopy("t", "s").has_value());
  ASSERT_TRUE(a->Create("s").ok());
  EXPECT_EQ(a->sessions().LoadCopy("t", "s"), *a->sessions().Load("t", "s"));
  EXPECT_FALSE(b->sessions().LoadCopy("t", "s").has_value());
  ASSERT_TRUE(b->Turn("s").ok());
  EXPECT_EQ(a->sessions().LoadCopy("t", "s")->turn, 1u);
  ASSERT_EQ(a->TurnOf("s"), 2u);
  EXPECT_EQ(a->sessions().LoadCopy("t", "s")->turn, 2u);
  a->objects().FailAll(absl::UnavailableError("no route"));
  ASSERT_TRUE(a->Turn("s").ok());
  EXPECT_FALSE(a->sessions().LoadCopy("t", "s").has_value());
}

TEST_F(SharedSessionsTest, ConversationsOfAServerThatJoinsComeWithIt) {
  TempDir dir;
  MemoryBudget budget(int64_t{256} << 20);
  CacheStoreOptions options;
  options.dir = dir.path();
  options.disk_bytes = int64_t{1} << 30;
  options.min_free_bytes = 0;
  const auto b = NewServer(SharedPolicy::kStrict);
  ASSERT_TRUE(b->Create("both").ok());
  ASSERT_TRUE(b->Turn("both").ok());
  {
    auto alone = *CacheStore::Open(options, budget);
    ASSERT_TRUE(alone->sessions().Commit(RecordOf("t", "mine", 3)).ok());
    ASSERT_TRUE(alone->sessions().Commit(RecordOf("t", "both", 4)).ok());
  }
  options.shared_sessions = std::make_shared<MemoryObjectStore>(bucket_);
  auto joined = *CacheStore::Open(options, budget);
  EXPECT_TRUE(
      Eventually([&] { return joined->sessions().stats().num_ahead == 0; }));
  EXPECT_EQ(b->TurnOf("mine"), 3u);
  EXPECT_EQ(b->TurnOf("both"), 2u);
  EXPECT_EQ(joined->sessions().stats().branches, 1);
  EXPECT_EQ(b->sessions().List("t", "", 10)->sessions.size(), 3u);
}

// Servers at random, on a way to the store that fails at random: every turn
// that was acknowledged is in the session's history, or in that of a branch.
TEST_F(SharedSessionsTest, NothingAcknowledgedIsLost) {
  std::mt19937 random(20261129);
  const auto below = [&](uint32_t n) { return random() % n; };
  for (const SharedPolicy policy :
       {SharedPolicy::kStrict, SharedPolicy::kPrefer}) {
    const auto bucket = std::make_shared<MemoryBucket>();
    std::vector<std::unique_ptr<Server>> servers;
    for (int i = 0; i < 3; ++i) {
      servers.push_back(std::make_unique<Server>(bucket, policy));
    }
    ASSERT_TRUE(servers[0]->Create("s").ok());
    std::vector<std::string> acknowledged;
    for (int i = 0; i < 300; ++i) {
      Server& server = *servers[below(3)];
      switch (below(12)) {
        case 0:
          server.objects().FailAll(absl::UnavailableError("no route"));
          break;
        case 1:
        case 2:
          server.objects().FailAll(absl::OkStatus());
          break;
        case 3:
          server.objects().FailNext(Call::kPut, 1, absl::UnknownError("?"),
                                    below(2) ? When::kAfter : When::kBefore);
          break;
        case 4:
          server.objects().FailNext(Call::kGet, 1,
                                    absl::UnavailableError("reset"));
          break;
        case 5:
          server.Restart();
          break;
        default:
          break;
      }
      auto record = server.sessions().Load("t", "s");
      if (!record.ok()) continue;
      const std::string said = absl::StrCat("message ", i);
      ++record->turn;
      record->messages.push_back(
          {.role = 1, .content = said, .token_begin = 0, .token_end = 0});
      if (server.sessions().Commit(*record).ok()) acknowledged.push_back(said);
    }
    for (const auto& server : servers) {
      server->objects().FailAll(absl::OkStatus());
    }
    for (const auto& server : servers) {
      EXPECT_TRUE(Eventually(
          [&] { return server->sessions().stats().num_ahead == 0; }));
    }
    std::multiset<std::string> said;
    uint64_t most_turns = 0;
    absl::StatusOr<SessionPage> list;
    EXPECT_TRUE(Eventually([&] {
      list = servers[0]->sessions().List("t", "", 1000);
      return list.ok() && servers[1]->TurnOf("s") > 0;
    }));
    ASSERT_TRUE(list.ok()) << list.status();
    for (const SessionSummary& summary : list->sessions) {
      const auto record = servers[1]->sessions().Load("t", summary.id);
      ASSERT_TRUE(record.ok()) << record.status();
      std::set<std::string> once;
      for (const SessionMessage& message : record->messages) {
        // In no history twice.
        EXPECT_TRUE(once.insert(message.content).second) << message.content;
        said.insert(message.content);
      }
      most_turns = std::max(most_turns, record->turn);
    }
    for (const std::string& message : acknowledged) {
      EXPECT_TRUE(said.contains(message)) << message;
    }
    EXPECT_GT(acknowledged.size(), 100u);
    if (policy == SharedPolicy::kStrict) {
      EXPECT_EQ(list->sessions.size(), 1u);
    }
  }
}

}  // namespace
}  // namespace xcache
