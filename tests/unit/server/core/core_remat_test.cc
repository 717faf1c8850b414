// Remat policies: who decides, when, and what is kept of it.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/remat_crossover.h"
#include "server/core/remat_choice.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

Harness::Options Default(RematChoice choice) {
  Harness::Options options;
  options.core.default_remat = choice;
  return options;
}

absl::StatusOr<SessionInfo> Create(Harness& h, const std::string& id,
                                   const std::string& remat) {
  CreateSessionOptions create = Harness::Named(id);
  create.remat = remat;
  return h.core->CreateSession(create);
}

// What the manifest says; "" where it says nothing.
std::string Setting(Harness& h, const std::string& id) {
  for (const auto& [name, value] : h.Record(id).settings) {
    if (name == kRematSetting) return value;
  }
  return "";
}

std::string Shown(Harness& h, const std::string& id) {
  return h.core->GetSession("t", id, false)->remat;
}

// The tokens that a turn may reach.
int64_t Reach(Harness& h, const ChatTurn& turn) {
  return static_cast<int64_t>(
             h.PromptOf(h.Record(turn.session_id), turn.messages[0].content)
                 .size()) +
         turn.options.max_tokens;
}

TEST(RematChoiceTest, NamesAndSettings) {
  for (RematChoice choice :
       {RematChoice::kAuto, RematChoice::kResume, RematChoice::kStep}) {
    EXPECT_EQ(ParseRematChoice(RematChoiceName(choice)), choice);
  }
  EXPECT_EQ(ParseRematChoice(""), std::nullopt);
  EXPECT_EQ(ParseRematChoice("Step"), std::nullopt);
  SessionSettings settings = {{"other", "step"}};
  EXPECT_EQ(RematOf(settings), std::nullopt);
  SetRemat(RematChoice::kAuto, &settings);
  EXPECT_EQ(RematOf(settings), RematChoice::kAuto);
  SetRemat(RematChoice::kStep, &settings);
  EXPECT_EQ(settings, (SessionSettings{{"other", "step"}, {"remat", "step"}}));
  settings[1].second = "sideways";  // of a later version
  EXPECT_EQ(RematOf(settings), std::nullopt);
}

TEST(CoreRematTest, ASessionHasThePolicyItWasCreatedWith) {
  Harness h(Default(RematChoice::kResume));
  ASSERT_TRUE(Create(h, "default", "").ok());
  ASSERT_TRUE(Create(h, "resume", "resume").ok());
  const auto step = Create(h, "step", "step");
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_EQ(step->remat, "step");
  EXPECT_EQ(Setting(h, "default"), "resume");
  EXPECT_EQ(Shown(h, "step"), "step");
  const std::string text = Letters(200, 1);
  std::vector<std::string> answers;
  for (const char* id : {"default", "resume", "step"}) {
    answers.push_back(h.Chat(h.Turn(id, text))->text());
    EXPECT_EQ(h.engine->step_sequences(), id == std::string("step") ? 1 : 0);
  }
  // Two of them found the blocks that the first one had made.
  EXPECT_EQ(answers[0], answers[1]);
  EXPECT_EQ(answers[0], answers[2]);
  EXPECT_EQ(Setting(h, "step"), "step");
  EXPECT_EQ(h.Count(CoreCounter::kSessionsResume), 2u);
  EXPECT_EQ(h.Count(CoreCounter::kSessionsStep), 1u);
  EXPECT_EQ(h.engine->crossover_calls(), 0) << "nobody asked for auto";

  const auto unknown = Create(h, "unknown", "sometimes");
  EXPECT_TRUE(absl::IsInvalidArgument(unknown.status())) << unknown.status();
  EXPECT_NE(unknown.status().message().find("sometimes"), std::string::npos);
  EXPECT_TRUE(
      absl::IsNotFound(h.core->GetSession("t", "unknown", false).status()));
}

TEST(CoreRematTest, TheServersDefaultIsForTheOthers) {
  Harness h(Default(RematChoice::kStep));
  ASSERT_TRUE(Create(h, "default", "").ok());
  ASSERT_TRUE(Create(h, "resume", "resume").ok());
  EXPECT_EQ(Shown(h, "default"), "step");
  h.Chat(h.Turn("default", "one"));
  EXPECT_EQ(h.engine->step_sequences(), 1);
  h.Chat(h.Turn("resume", "one"));
  EXPECT_EQ(h.engine->step_sequences(), 1);
  EXPECT_EQ(h.engine->sequences(), 2);
  // And for what has no session.
  GenerateRequest request;
  request.prompt = {'a', 'b'};
  h.Generate(request);
  ScoreRequest score;
  score.tokens = {'a', 'b', 'c'};
  h.Score(score);
  EXPECT_EQ(h.engine->step_sequences(), 3);
  EXPECT_EQ(h.engine->sequences(), 4);
}

TEST(CoreRematTest, AutoIsDecidedByWhatTheFirstTurnMayReach) {
  Harness h;
  const ChatTurn turn = h.Turn("below", Letters(100, 2), 30);
  ASSERT_TRUE(Create(h, "below", "").ok());
  ASSERT_TRUE(Create(h, "above", "auto").ok());
  EXPECT_EQ(Shown(h, "above"), "auto");
  const int64_t reach = Reach(h, turn);
  h.engine->set_crossover(reach + 1);
  ASSERT_TRUE(h.Chat(turn)->status().ok());
  EXPECT_EQ(Setting(h, "below"), "step");
  EXPECT_EQ(Shown(h, "below"), "step");
  EXPECT_EQ(h.engine->step_sequences(), 1);

  h.engine->set_crossover(reach);
  ChatTurn same = turn;
  same.session_id = "above";
  ASSERT_TRUE(h.Chat(same)->status().ok());
  EXPECT_EQ(Setting(h, "above"), "resume");
  EXPECT_EQ(h.engine->step_sequences(), 1);

  // It stays what it was, however long it becomes, and after a restart.
  const int64_t calls = h.engine->crossover_calls();
  h.Chat(h.Turn("below", Letters(700, 3)));
  EXPECT_EQ(h.engine->crossover_calls(), calls);
  h.options.core.default_remat = RematChoice::kResume;
  h.Restart();
  const auto sink = h.Chat(h.Turn("below", "more"));
  EXPECT_EQ(Setting(h, "below"), "step");
  EXPECT_EQ(h.engine->step_sequences(), 1);
  EXPECT_GT(h.engine->step_remats(), 0);
  EXPECT_EQ(h.engine->step_remats(), h.engine->remats());
}

TEST(CoreRematTest, WhereThereIsNoCrossoverAutoIsOneOfTheTwo) {
  Harness h;
  for (const auto& [crossover, policy] :
       {std::pair{int64_t{0}, "resume"}, {kNoRematCrossover, "step"}}) {
    h.engine->set_crossover(crossover);
    ASSERT_TRUE(Create(h, policy, "").ok());
    ASSERT_TRUE(h.Chat(h.Turn(policy, "one"))->status().ok());
    EXPECT_EQ(Setting(h, policy), policy);
    const auto gauges = h.core->Snapshot().remat_crossovers;
    ASSERT_EQ(gauges.size(), 1u);
    EXPECT_EQ(gauges[0].first, kCodec);
    EXPECT_EQ(gauges[0].second, crossover);
  }
  EXPECT_EQ(h.Count(CoreCounter::kSessionsResume), 1u);
  EXPECT_EQ(h.Count(CoreCounter::kSessionsStep), 1u);
}

TEST(CoreRematTest, WithoutAMeasurementAutoIsResume) {
  Harness h;
  h.engine->set_crossover(absl::ResourceExhaustedError("no room"));
  ASSERT_TRUE(Create(h, "s", "").ok());
  ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
  EXPECT_EQ(Setting(h, "s"), "resume");
}

TEST(CoreRematTest, AFirstTurnThatFailsDecidesNothing) {
  Harness h;
  h.engine->set_crossover(100000);
  ASSERT_TRUE(Create(h, "s", "").ok());
  h.engine->set_poison('q');
  EXPECT_FALSE(h.Chat(h.Turn("s", "q"))->status().ok());
  EXPECT_EQ(Setting(h, "s"), "auto");
  EXPECT_EQ(h.Count(CoreCounter::kSessionsStep), 0u);
  h.engine->set_poison(-1);
  h.engine->set_crossover(0);
  EXPECT_TRUE(h.Chat(h.Turn("s", "q"))->status().ok());
  EXPECT_EQ(Setting(h, "s"), "resume");
}

// What it leaves in memory is of the policy that it had.
TEST(CoreRematTest, AfterACancelledFirstTurnTheNextOneDecidesAnew) {
  Harness::Options options;
  options.engine.step_delay = std::chrono::milliseconds(1);
  options.engine.end_one_in = 0;
  Harness h(options);
  h.NewSession("s", "be brief");
  h.engine->set_crossover(kNoRematCrossover);
  ChatTurn turn = h.Turn("s", "one", 5000);
  turn.cancellation = std::make_shared<Cancellation>();
  const auto cancelled = h.StartChat(turn);
  cancelled->WaitForDelta();
  turn.cancellation->Cancel();
  cancelled->Wait();
  EXPECT_TRUE(absl::IsCancelled(cancelled->status()));
  EXPECT_EQ(h.engine->step_sequences(), 1);
  EXPECT_EQ(Setting(h, "s"), "auto");
  h.engine->set_crossover(0);
  ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
  EXPECT_EQ(Setting(h, "s"), "resume");
  EXPECT_EQ(h.engine->sequences(), 2);
  EXPECT_EQ(h.engine->step_sequences(), 1);
}

TEST(CoreRematTest, SessionsOfOlderStoresGetTheServersDefault) {
  Harness h(Default(RematChoice::kStep));
  h.NewSession("s");
  SessionRecord record = h.Record("s");
  record.settings.clear();
  ASSERT_TRUE(h.store.sessions().Commit(record).ok());
  EXPECT_EQ(Shown(h, "s"), "step");
  ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
  EXPECT_EQ(h.engine->step_sequences(), 1);
  EXPECT_EQ(Setting(h, "s"), "step");
}

TEST(CoreRematTest, AForkInheritsThePolicy) {
  Harness h(Default(RematChoice::kResume));
  ASSERT_TRUE(Create(h, "step", "step").ok());
  ASSERT_TRUE(Create(h, "auto", "auto").ok());
  h.Chat(h.Turn("step", "one"));
  EXPECT_EQ(h.core->ForkSession("t", "step", "fork", 0)->remat, "step");
  EXPECT_EQ(Setting(h, "fork"), "step");
  EXPECT_EQ(h.core->ForkSession("t", "auto", "undecided", 0)->remat, "auto");
  EXPECT_EQ(h.Count(CoreCounter::kSessionsStep), 2u);
}

// Rule R5: what is kept as codes gives back what it does not take.
TEST(CoreRematTest, BlocksKeptAsCodesTakeTheirOwnBytes) {
  for (const bool restarted : {false, true}) {
    std::vector<int64_t> used;
    for (RematChoice choice : {RematChoice::kResume, RematChoice::kStep}) {
      Harness h(Default(choice));
      h.NewSession("s");
      const auto turn = [&](const std::string& text) {
        ChatTurn t = h.Turn("s", text, 1);
        t.options.ignore_eos = true;
        ASSERT_TRUE(h.Chat(t)->status().ok());
      };
      turn(Letters(640, 5));
      if (restarted) {
        h.Restart();
        turn("more");
        EXPECT_GE(h.engine->remats(), 10);
      }
      used.push_back(h.memory.used_bytes(MemoryAccount::kWorkingSets) +
                     h.memory.used_bytes(MemoryAccount::kSequences));
      EXPECT_EQ(used.back(), h.engine->live_bytes());
    }
    const FakeEngine::Options engine;
    EXPECT_GE(used[0] - used[1],
              10 * static_cast<int64_t>(engine.kv_block_bytes -
                                        engine.step_block_bytes));
  }
}

}  // namespace
}  // namespace xcache::testing
