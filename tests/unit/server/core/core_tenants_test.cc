// Tenants beside each other in one core: their limits, and what one can tell
// of another by what its own requests cost.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <tuple>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TenantPolicies Limited(TenantLimit limit, int64_t most) {
  TenantPolicies policies;
  policies["t"].limits[static_cast<size_t>(limit)] = most;
  policies["other"];
  return policies;
}

GenerateRequest Of(std::string tenant, GenerateRequest request) {
  request.tenant = std::move(tenant);
  return request;
}

int64_t Used(const Harness& h) { return h.tenants.uses().at(0).used; }

TEST(CoreTenantsTest, TokensAMinuteAreThoseAskedFor) {
  Harness h;
  h.tenants.SetPolicies(Limited(TenantLimit::kTokensPerMinute, 200));
  EXPECT_TRUE(h.Generate(RawPrompt(60, 1, 20))->status().ok());
  EXPECT_EQ(Used(h), 80);
  const auto refused = h.Generate(RawPrompt(101, 2, 20));
  EXPECT_TRUE(absl::IsResourceExhausted(refused->status()));
  EXPECT_THAT(std::string(refused->status().message()),
              HasSubstr("tokens-per-minute=200; it has 80"));
  EXPECT_GT(refused->final().retry_after_ms, 50'000);
  EXPECT_LE(refused->final().retry_after_ms, 61'000);
  // Time would not help this one.
  EXPECT_EQ(h.Generate(RawPrompt(150, 2, 51))->final().retry_after_ms, 0);
  EXPECT_TRUE(h.Generate(Of("other", RawPrompt(150, 2, 51)))->status().ok());
  EXPECT_TRUE(h.Generate(RawPrompt(100, 2, 20))->status().ok());
  EXPECT_EQ(Used(h), 200);
}

TEST(CoreTenantsTest, OfASessionOnlyWhatIsNewIsAskedFor) {
  Harness h;
  h.tenants.SetPolicies(Limited(TenantLimit::kTokensPerMinute, 10'000));
  h.NewSession("s");
  int64_t expected = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    const size_t had = h.Record("s").tokens.size();
    const auto answer = h.Chat(h.Turn("s", Letters(100, i)));
    ASSERT_TRUE(answer->status().ok()) << answer->status();
    const FinalInfo final = answer->final();
    expected += static_cast<int64_t>(final.prompt_tokens - had +
                                     final.generated_tokens);
    EXPECT_EQ(Used(h), expected) << i;
  }
}

TEST(CoreTenantsTest, WhoEndsEarlyGivesTheRestBack) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  Harness h(options);
  h.tenants.SetPolicies(Limited(TenantLimit::kTokensPerMinute, 1000));
  GenerateRequest request = RawPrompt(10, 1, 900);
  request.cancellation = std::make_shared<Cancellation>();
  const auto sink = Start(h, request);
  sink->WaitForDelta();
  EXPECT_EQ(Used(h), 910);
  request.cancellation->Cancel();
  sink->Wait();
  EXPECT_EQ(Used(h), static_cast<int64_t>(10 + sink->final().generated_tokens));
}

TEST(CoreTenantsTest, QueuedTokens) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(5);
  options.core.max_running = 1;
  Harness h(options);
  h.tenants.SetPolicies(Limited(TenantLimit::kQueuedTokens, 100));
  const auto running = Start(h, RawPrompt(50, 1, 40));
  running->WaitForDelta();
  const auto waiting = Start(h, RawPrompt(60, 2, 1));
  const auto refused = Start(h, RawPrompt(60, 3, 1));
  ASSERT_TRUE(refused->finished());
  EXPECT_THAT(std::string(refused->status().message()),
              HasSubstr("queued-tokens=100; it has 60"));
  EXPECT_GT(refused->final().retry_after_ms, 0);
  const auto never = Start(h, RawPrompt(101, 3, 1));
  ASSERT_TRUE(absl::IsResourceExhausted(never->status()));
  EXPECT_EQ(never->final().retry_after_ms, 0);
  const auto other = Start(h, Of("other", RawPrompt(500, 3, 1)));
  waiting->Wait();
  other->Wait();
  EXPECT_TRUE(waiting->status().ok());
  EXPECT_TRUE(other->status().ok());
  EXPECT_EQ(Used(h), 0);
}

TEST(CoreTenantsTest, Sessions) {
  Harness h;
  h.tenants.SetPolicies(Limited(TenantLimit::kSessions, 2));
  h.NewSession("a");
  h.NewSession("b");
  const auto refused = h.core->CreateSession(h.Named("c")).status();
  EXPECT_EQ(ReasonOf(refused).id, Reason::kTenantSessions);
  EXPECT_EQ(RetryAfterOf(refused), 0);
  // One that is there is there.
  EXPECT_TRUE(
      absl::IsAlreadyExists(h.core->CreateSession(h.Named("a")).status()));
  EXPECT_EQ(ReasonOf(h.core->ForkSession(Fork("t", "a", "c", 0)).status()).id,
            Reason::kTenantSessions);
  const std::string document = h.core->ExportSession("t", "a", false).value();
  ImportOptions import;
  import.tenant = "t";
  import.document = document;
  import.id = "c";
  EXPECT_EQ(ReasonOf(h.core->ImportSession(import).status()).id,
            Reason::kTenantSessions);
  import.tenant = "other";
  EXPECT_TRUE(h.core->ImportSession(import).ok());
  ASSERT_TRUE(h.core->DeleteSession("t", "b").ok());
  EXPECT_TRUE(h.core->CreateSession(h.Named("c")).ok());
}

TEST(CoreTenantsTest, PageBytes) {
  Harness h;
  const auto page = static_cast<int64_t>(h.options.engine.page_bytes);
  h.tenants.SetPolicies(Limited(TenantLimit::kPageBytes, 3 * page));
  h.NewSession("a");
  ASSERT_TRUE(h.Chat(h.Turn("a", Letters(130, 1)))->status().ok());
  const auto had = static_cast<int64_t>(h.Record("a").page_keys.size());
  ASSERT_GE(had, 2);
  EXPECT_EQ(h.store.sessions().UseOf("t").page_bytes, had * page);
  // What a turn may come to counts, not what it did.
  const auto refused = h.Chat(h.Turn("a", Letters(130, 2)));
  ASSERT_TRUE(absl::IsResourceExhausted(refused->status()));
  EXPECT_THAT(std::string(refused->status().message()),
              HasSubstr("page-bytes=600"));
  EXPECT_EQ(refused->final().retry_after_ms, 0);
  EXPECT_EQ(h.Record("a").turn, 1u);  // as it was
  // A fork has the pages as well.
  EXPECT_EQ(ReasonOf(h.core->ForkSession(Fork("t", "a", "b", 0)).status()).id,
            Reason::kTenantPageBytes);
  // What keeps no page takes none.
  EXPECT_TRUE(h.Generate(RawPrompt(300, 3, 4))->status().ok());
  ASSERT_TRUE(h.core->DeleteSession("t", "a").ok());
  h.NewSession("b");
  EXPECT_TRUE(h.Chat(h.Turn("b", Letters(130, 2)))->status().ok());
}

TEST(CoreTenantsTest, AForkOfTheBeginningHasThosePagesOnly) {
  Harness h;
  h.NewSession("a");
  ASSERT_TRUE(h.Chat(h.Turn("a", Letters(130, 1)))->status().ok());
  ASSERT_TRUE(h.Chat(h.Turn("a", Letters(200, 2)))->status().ok());
  const SessionRecord whole = h.Record("a");
  EXPECT_EQ(whole.page_bytes,
            whole.page_keys.size() * h.options.engine.page_bytes);
  ASSERT_TRUE(h.core->ForkSession(Fork("t", "a", "b", 2)).ok());
  const SessionRecord part = h.Record("b");
  EXPECT_LT(part.page_keys.size(), whole.page_keys.size());
  EXPECT_EQ(part.page_bytes,
            part.page_keys.size() * h.options.engine.page_bytes);
}

TEST(CoreTenantsTest, AFullQueueOfOneTenantIsOpenToAnother) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(2);
  options.core.max_running = 16;
  options.core.max_queue_requests = 32;
  Harness h(options);
  h.tenants.SetPolicies({{"t", {}}, {"other", {}}});
  std::vector<std::shared_ptr<CollectSink>> flood;
  for (uint32_t i = 0; i < 100; ++i) {
    flood.push_back(Start(h, RawPrompt(20, i, 400)));
  }
  const auto num_refused =
      std::count_if(flood.begin(), flood.end(), [](const auto& sink) {
        return absl::IsResourceExhausted(sink->status());
      });
  EXPECT_GE(num_refused, 40) << flood.back()->status();
  // It runs at once, beside all of those.
  const auto good = h.Generate(Of("other", RawPrompt(20, 1, 4)));
  EXPECT_TRUE(good->status().ok()) << good->status();
  EXPECT_FALSE(flood.front()->finished());
  EXPECT_GE(h.core->Snapshot().waiting, 8u);
}

// What a request of tenant "other" costs: nothing in it depends on whether
// another tenant has the very same text, stored, in memory, or in the making.
struct Trace {
  uint64_t reused = 0, prefilled = 0;
  int64_t rows = 0, sequences = 0, remats = 0, staged = 0, page_reads = 0;
  uint64_t waits = 0, by_cost = 0, missing = 0, sealed = 0;
  size_t new_pages = 0;
  std::string text;
  bool operator==(const Trace&) const = default;
};

Trace TraceOf(Harness& h, const GenerateRequest& request) {
  const auto engine = [&] {
    return std::tuple(h.engine->rows(), h.engine->sequences(),
                      h.engine->remats(), h.engine->staged(),
                      h.store.pages().gets());
  };
  const auto [rows, sequences, remats, staged, gets] = engine();
  const uint64_t waits = h.Count(CoreCounter::kSingleFlightWaits);
  const uint64_t by_cost = h.Count(CoreCounter::kRecomputedByCost);
  const uint64_t missing = h.Count(CoreCounter::kPagesMissing);
  const uint64_t sealed = h.Count(CoreCounter::kBlocksSealed);
  const size_t pages = h.store.pages().num_pages();
  const auto sink = h.Generate(request);
  EXPECT_TRUE(sink->status().ok()) << sink->status();
  const auto [rows2, sequences2, remats2, staged2, gets2] = engine();
  return {.reused = sink->final().reused.total(),
          .prefilled = sink->final().prefilled_tokens,
          .rows = rows2 - rows,
          .sequences = sequences2 - sequences,
          .remats = remats2 - remats,
          .staged = staged2 - staged,
          .page_reads = gets2 - gets,
          .waits = h.Count(CoreCounter::kSingleFlightWaits) - waits,
          .by_cost = h.Count(CoreCounter::kRecomputedByCost) - by_cost,
          .missing = h.Count(CoreCounter::kPagesMissing) - missing,
          .sealed = h.Count(CoreCounter::kBlocksSealed) - sealed,
          .new_pages = h.store.pages().num_pages() - pages,
          .text = sink->text()};
}

TEST(CoreTenantsTest, PagesOfAnotherTenantLeaveNoTrace) {
  const GenerateRequest secret = RawPrompt(400, 7, 4);
  const GenerateRequest something_else = RawPrompt(400, 8, 4);
  const GenerateRequest probe = Of("other", secret);
  enum class Where { kInMemory, kInHost, kOnDisk };
  for (const Where where : {Where::kInMemory, Where::kInHost, Where::kOnDisk}) {
    Trace traces[2];
    for (const bool same : {false, true}) {
      Harness h;
      h.tenants.SetPolicies({{"t", {}}, {"other", {}}});
      const auto first = h.Generate(same ? secret : something_else);
      ASSERT_TRUE(first->status().ok());
      ASSERT_GE(h.store.pages().num_pages(), 6u);
      if (where != Where::kInMemory) h.Restart(where == Where::kOnDisk);
      traces[same ? 1 : 0] = TraceOf(h, probe);
      // The tenant itself is quick: there is something to see.
      const auto again = h.Generate(same ? secret : something_else);
      EXPECT_GE(again->final().reused.total(), 384u);
    }
    EXPECT_EQ(traces[0], traces[1]) << static_cast<int>(where);
    EXPECT_EQ(traces[1].reused, 0u);
    EXPECT_EQ(traces[1].prefilled, 400u);
    EXPECT_EQ(traces[1].page_reads, 0);
    EXPECT_EQ(traces[1].new_pages, 6u);
  }
}

TEST(CoreTenantsTest, BlocksInTheMakingAreNotWaitedForByAnotherTenant) {
  Harness::Options options;
  options.engine.step_delay = milliseconds(3);
  options.core.step_rows = 64;
  Harness h(options);
  h.tenants.SetPolicies({{"t", {}}, {"other", {}}});
  const GenerateRequest secret = RawPrompt(2000, 7, 1);
  const auto maker = Start(h, secret);
  const auto probe = Start(h, Of("other", secret));
  maker->Wait();
  probe->Wait();
  EXPECT_EQ(probe->final().reused.total(), 0u);
  EXPECT_EQ(probe->final().prefilled_tokens, 2000u);
  EXPECT_EQ(h.Count(CoreCounter::kSingleFlightWaits), 0u);
  // As the same two of one tenant do.
  const auto one = Start(h, RawPrompt(2000, 9, 1));
  const auto two = Start(h, RawPrompt(2000, 9, 1));
  one->Wait();
  two->Wait();
  EXPECT_GT(h.Count(CoreCounter::kSingleFlightWaits), 0u);
}

}  // namespace
}  // namespace xcache::testing
