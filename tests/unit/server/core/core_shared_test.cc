// Replicas with one bucket of pages: what one has computed another fetches, and
// a bucket that is slow, damaged or away costs little and changes no answer.
#include <chrono>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cachestore/cache_store.h"
#include "cachestore/shared/page_object.h"
#include "gtest/gtest.h"
#include "server/core/server_core.h"
#include "tests/support/memory_object_store.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Call = MemoryObjectStore::Call;
using Restore = ServerCoreOptions::Restore;

constexpr size_t kPageBytes = 20'000;

struct Replica {
  explicit Replica(const std::shared_ptr<MemoryBucket>& bucket,
                   Restore restore = Restore::kAlways) {
    CacheStoreOptions store_options;
    if (bucket != nullptr) {
      objects = std::make_shared<MemoryObjectStore>(bucket);
      store_options.shared_pages = objects;
    }
    store_options.housekeeping_ms = 50;
    store = CacheStore::Open(store_options, memory).value();
    FakeEngine::Options engine_options;
    engine_options.page_bytes = kPageBytes;
    engine_options.step_delay = std::chrono::microseconds(500);
    engine = std::make_unique<FakeEngine>(engine_options);
    core_options.default_codec = kCodec;
    core_options.restore = restore;
    // What comes is not for a busy machine to decide.
    core_options.remote_wait = core_options.unknown_remote_wait =
        std::chrono::seconds(30);
    StartCore();
  }
  void WaitAsUsual() {
    core_options.remote_wait = ServerCoreOptions().remote_wait;
    core_options.unknown_remote_wait = ServerCoreOptions().unknown_remote_wait;
    StartCore();
  }
  ~Replica() { core.reset(); }

  // A new core over the same store: no working set is left.
  void StartCore() {
    core.reset();
    metrics = std::make_unique<PlainMetrics>();
    ServerCoreDeps deps;
    deps.engine = engine.get();
    deps.tokenizer = &tokenizer;
    deps.chat_template = &chat_template;
    deps.store = store.get();
    deps.memory = &memory;
    deps.metrics = metrics.get();
    core = ServerCore::Create(deps, core_options, {}).value();
  }
  void NewSession(const std::string& id,
                  const std::string& system_prompt = "") {
    CreateSessionOptions create;
    create.tenant = "t";
    create.id = id;
    create.system_prompt = system_prompt;
    ASSERT_TRUE(core->CreateSession(create).ok());
  }
  std::shared_ptr<CollectSink> Chat(const std::string& session,
                                    const std::string& text) {
    ChatTurn turn;
    turn.tenant = "t";
    turn.session_id = session;
    turn.messages = {{Role::kUser, text}};
    turn.options.max_tokens = 8;
    auto sink = std::make_shared<CollectSink>();
    core->SubmitChat(std::move(turn), sink);
    sink->Wait();
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    return sink;
  }
  std::shared_ptr<CollectSink> Generate(GenerateRequest request) {
    auto sink = std::make_shared<CollectSink>();
    core->SubmitGenerate(std::move(request), sink);
    sink->Wait();
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    return sink;
  }
  // The session's manifest as another machine has it.
  void TakeSessionFrom(Replica& other, const std::string& id) {
    const auto record = other.store->sessions().Load("t", id);
    ASSERT_TRUE(record.ok()) << record.status();
    EXPECT_TRUE(store->sessions().Commit(*record).ok());
    num_pages = record->page_keys.size();
  }
  PageStoreStats shared() const {
    return store->stats().tier(PageTier::kShared);
  }

  MemoryBudget memory{200 << 20};
  std::shared_ptr<MemoryObjectStore> objects;
  std::unique_ptr<CacheStore> store;
  FakeTokenizer tokenizer;
  FakeTemplate chat_template;
  std::unique_ptr<FakeEngine> engine;
  std::unique_ptr<PlainMetrics> metrics;
  ServerCoreOptions core_options;
  std::unique_ptr<ServerCore> core;
  size_t num_pages = 0;  // of the session that was taken
};

class CoreSharedTest : public ::testing::Test {
 protected:
  // A has had a turn of a session, and its pages are in the bucket.
  void FirstTurnOn(Replica& a) {
    a.NewSession("s");
    a.Chat("s", Letters(2000, 1));
    ASSERT_TRUE(a.store->Flush().ok());
    ASSERT_GT(bucket_->objects().size(), 30u);
  }
  // What the session's next turn is when nothing disturbs it.
  static std::string NextAnswer(Replica& a) {
    return a.Chat("s", "more")->text();
  }

  std::shared_ptr<MemoryBucket> bucket_ = std::make_shared<MemoryBucket>();
};

TEST_F(CoreSharedTest, AnotherMachineFetchesTheSessionsPages) {
  Replica a(bucket_), b(bucket_);
  FirstTurnOn(a);
  b.TakeSessionFrom(a, "s");
  b.objects->set_delay(milliseconds(5));
  const auto sink = b.Chat("s", "more");
  const FinalInfo final = sink->final();
  EXPECT_EQ(final.reused.remote, b.num_pages * kBlockTokens);
  EXPECT_EQ(final.reused.total(), final.reused.remote);
  EXPECT_LT(final.prefilled_tokens, 2 * uint64_t{kBlockTokens});
  EXPECT_EQ(b.metrics->counter(CoreCounter::kReusedRemote),
            final.reused.remote);
  EXPECT_EQ(b.metrics->observations(CoreHistogram::kRemoteWait), 1u);
  EXPECT_EQ(sink->text(), NextAnswer(a));
  // No page twice, nothing beside them but their envelopes.
  const auto page_bytes = static_cast<double>(b.num_pages * kPageBytes);
  EXPECT_EQ(b.objects->num_calls(Call::kGet),
            static_cast<int64_t>(b.num_pages));
  EXPECT_EQ(static_cast<double>(b.shared().get_bytes), page_bytes);
  EXPECT_LE(static_cast<double>(b.objects->stats().received_bytes),
            1.02 * page_bytes);
  EXPECT_EQ(b.shared().put_bytes, 0) << "it came from there";
  // Once they are here they are this machine's.
  b.StartCore();
  EXPECT_EQ(b.Chat("s", "and more")->final().reused.remote, 0u);
  EXPECT_EQ(b.objects->num_calls(Call::kGet),
            static_cast<int64_t>(b.num_pages));
}

TEST_F(CoreSharedTest, APageThatComesAsItIsLookedForIsUsed) {
  Replica a(bucket_);
  FirstTurnOn(a);
  for (int i = 0; i < 100; ++i) {
    Replica b(bucket_);
    b.TakeSessionFrom(a, "s");
    ASSERT_EQ(b.Chat("s", "more")->final().reused.remote,
              b.num_pages * kBlockTokens);
  }
}

TEST_F(CoreSharedTest, OneSystemPromptIsStoredOnceInTheFleet) {
  Replica a(bucket_), b(bucket_);
  const std::string system_prompt = Letters(1000, 7);
  for (int i = 0; i < 32; ++i) {
    for (Replica* replica : {&a, &b}) {
      const std::string id = "s" + std::to_string(i);
      replica->NewSession(id, system_prompt);
      replica->Chat(id, "hello");
      ASSERT_TRUE(replica->store->Flush().ok());
    }
  }
  std::set<PageKey> keys;
  for (Replica* replica : {&a, &b}) {
    for (int i = 0; i < 32; ++i) {
      const auto record =
          replica->store->sessions().Load("t", "s" + std::to_string(i));
      ASSERT_TRUE(record.ok());
      keys.insert(record->page_keys.begin(), record->page_keys.end());
    }
  }
  EXPECT_EQ(bucket_->objects().size(), keys.size());
  // Each was sent once: B found what A had made.
  EXPECT_EQ(a.objects->num_calls(Call::kPut) + b.objects->num_calls(Call::kPut),
            static_cast<int64_t>(keys.size()));
  EXPECT_GE(b.metrics->counter(CoreCounter::kReusedRemote), 10u * kBlockTokens);
}

TEST_F(CoreSharedTest, AStoreThatHangsCostsNoMoreThanTheBound) {
  Replica a(bucket_), b(bucket_), alone(nullptr);
  b.WaitAsUsual();
  FirstTurnOn(a);
  b.TakeSessionFrom(a, "s");
  alone.TakeSessionFrom(a, "s");
  const auto timed = [](Replica& replica, std::string* text) {
    const auto begin = steady_clock::now();
    const auto sink = replica.Chat("s", "more");
    *text = sink->text();
    EXPECT_EQ(sink->final().reused.total(), 0u);
    return steady_clock::now() - begin;
  };
  std::string text, expected;
  const auto recomputed = timed(alone, &expected);
  b.objects->Pause();
  const auto took = timed(b, &text);
  EXPECT_EQ(text, expected);
  EXPECT_GE(took, ServerCoreOptions().remote_wait);
  // This machine may be busy: some seconds for that; of 31 waits for 31 pages
  // the sum would be above it.
  EXPECT_LE(took, recomputed * 2 + ServerCoreOptions().remote_wait +
                      milliseconds(5000));
  EXPECT_EQ(b.metrics->observations(CoreHistogram::kRemoteWait), 1u);
}

TEST_F(CoreSharedTest, APromptThatIsNewWaitsLessAndAsksOnce) {
  Replica b(bucket_);
  b.WaitAsUsual();
  b.objects->Pause();
  const auto begin = steady_clock::now();
  b.Generate(RawPrompt(1000, 3, 4));
  EXPECT_GE(steady_clock::now() - begin,
            ServerCoreOptions().unknown_remote_wait);
  b.objects->Resume();
  b.Generate(RawPrompt(1000, 4, 4));
  EXPECT_EQ(b.objects->num_calls(Call::kGet), 2);
  EXPECT_EQ(b.metrics->counter(CoreCounter::kPagesMissing), 0u);
}

TEST_F(CoreSharedTest, WhatIsMissingIsComputedAndTheRestIsUsed) {
  Replica a(bucket_), b(bucket_);
  FirstTurnOn(a);
  b.TakeSessionFrom(a, "s");
  const std::vector<PageKey> keys =
      a.store->sessions().Load("t", "s")->page_keys;
  bucket_->Delete(PageObjectName(keys[5]));
  const std::string damaged = PageObjectName(keys[9]);
  bucket_->Set(damaged, bucket_->Find(damaged)->bytes.substr(0, 1000));
  const auto sink = b.Chat("s", "more");
  EXPECT_EQ(sink->final().reused.remote, (b.num_pages - 2) * kBlockTokens);
  EXPECT_EQ(sink->text(), NextAnswer(a));
  EXPECT_EQ(b.metrics->counter(CoreCounter::kPagesMissing), 2u);
  EXPECT_EQ(b.shared().corrupt, 1);
  // Both are whole there again.
  ASSERT_TRUE(b.store->Flush().ok());
  EXPECT_TRUE(bucket_->Find(PageObjectName(keys[5])));
  EXPECT_TRUE(ReadPageEnvelope(bucket_->Find(damaged)->bytes).ok());
}

TEST_F(CoreSharedTest, AStoreThatIsAwayIsNotWaitedForAndFoundAgain) {
  Replica a(bucket_), b(bucket_);
  b.WaitAsUsual();
  FirstTurnOn(a);
  b.TakeSessionFrom(a, "s");
  b.objects->FailAll(absl::UnavailableError("away"));
  EXPECT_EQ(b.Chat("s", "more")->final().reused.total(), 0u);
  const size_t before = bucket_->objects().size();
  b.Generate(RawPrompt(1000, 5, 4));
  b.objects->FailAll(absl::OkStatus());
  // What was made meanwhile is sent then, though nobody asks for it again.
  const auto until = steady_clock::now() + std::chrono::seconds(20);
  while (bucket_->objects().size() < before + 15 &&
         steady_clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_GE(bucket_->objects().size(), before + 15);
  EXPECT_EQ(b.store->stats().shared_pages->breaker,
            CircuitBreaker::State::kClosed);
}

TEST_F(CoreSharedTest, WhatIsCheaperToComputeIsNotFetched) {
  Replica a(bucket_), b(bucket_, Restore::kByCost);
  FirstTurnOn(a);
  b.TakeSessionFrom(a, "s");
  b.objects->set_delay(milliseconds(200));
  b.Chat("s", "more");  // measures
  EXPECT_GT(b.metrics->counter(CoreCounter::kReusedRemote), 0u);
  const int64_t gets = b.objects->num_calls(Call::kGet);
  b.Generate(RawPrompt(200, 8, 4));  // 3 blocks: a step of half a millisecond
  EXPECT_EQ(b.objects->num_calls(Call::kGet), gets);
  EXPECT_EQ(b.metrics->counter(CoreCounter::kNotFetchedByCost), 3u);
}

TEST_F(CoreSharedTest, WithoutCacheNothingIsAsked) {
  Replica b(bucket_), never(bucket_, Restore::kNever);
  GenerateRequest request = RawPrompt(1000, 3, 4);
  request.options.no_cache = true;
  b.Generate(request);
  never.Generate(RawPrompt(1000, 3, 4));
  EXPECT_EQ(b.objects->num_calls(Call::kGet), 0);
  EXPECT_EQ(never.objects->num_calls(Call::kGet), 0);
}

}  // namespace
}  // namespace xcache::testing
