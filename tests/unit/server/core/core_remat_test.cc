// Remat policies: who decides, when, and what is kept of it.
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/core/sessions/remat_setting.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

Harness::Options Default(RematPolicy choice) {
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

TEST(RematSettingTest, NamesAndSettings) {
  for (RematPolicy policy : {RematPolicy::kResume, RematPolicy::kStep}) {
    EXPECT_EQ(*ParseRematPolicy(RematPolicyName(policy)), policy);
  }
  for (const char* name : {"", "Step", "auto"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseRematPolicy(name).status()));
  }
  SessionSettings settings = {{"other", "step"}};
  EXPECT_EQ(RematOf(settings), std::nullopt);
  SetRemat(RematPolicy::kResume, &settings);
  EXPECT_EQ(RematOf(settings), RematPolicy::kResume);
  SetRemat(RematPolicy::kStep, &settings);
  EXPECT_EQ(settings, (SessionSettings{{"other", "step"}, {"remat", "step"}}));
  settings[1].second = "sideways";  // of a later version
  EXPECT_EQ(RematOf(settings), std::nullopt);
  settings[1].second = "auto";  // of an earlier one
  EXPECT_EQ(RematOf(settings), RematPolicy::kResume);
}

TEST(CoreRematTest, ASessionHasThePolicyItWasCreatedWith) {
  Harness h(Default(RematPolicy::kResume));
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

  const auto unknown = Create(h, "unknown", "sometimes");
  EXPECT_TRUE(absl::IsInvalidArgument(unknown.status())) << unknown.status();
  EXPECT_NE(unknown.status().message().find("sometimes"), std::string::npos);
  EXPECT_TRUE(
      absl::IsNotFound(h.core->GetSession("t", "unknown", false).status()));
}

TEST(CoreRematTest, TheServersDefaultIsForTheOthers) {
  Harness h(Default(RematPolicy::kStep));
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

// What an older server stored of a session that left the choice to it.
TEST(CoreRematTest, AStoredAutoIsResume) {
  Harness h(Default(RematPolicy::kStep));
  for (const char* id : {"s", "source"}) {
    h.NewSession(id);
    SessionRecord record = h.Record(id);
    record.settings = {{"remat", "auto"}};
    ASSERT_TRUE(h.store.sessions().Commit(record).ok());
  }
  EXPECT_EQ(Shown(h, "s"), "resume");
  h.Restart();
  ASSERT_TRUE(h.Chat(h.Turn("s", "one"))->status().ok());
  EXPECT_EQ(h.engine->step_sequences(), 0);
  EXPECT_EQ(Shown(h, "s"), "resume");
  EXPECT_EQ(h.core->ForkSession(Fork("t", "source", "fork", 0))->remat,
            "resume");
  // It can no longer be asked for.
  const auto created = Create(h, "new", "auto");
  EXPECT_TRUE(absl::IsInvalidArgument(created.status())) << created.status();
  EXPECT_NE(created.status().message().find("resume or step"),
            std::string::npos);
}

TEST(CoreRematTest, SessionsOfOlderStoresGetTheServersDefault) {
  Harness h(Default(RematPolicy::kStep));
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
  Harness h(Default(RematPolicy::kResume));
  ASSERT_TRUE(Create(h, "step", "step").ok());
  h.Chat(h.Turn("step", "one"));
  EXPECT_EQ(h.core->ForkSession(Fork("t", "step", "fork", 0))->remat, "step");
  EXPECT_EQ(Setting(h, "fork"), "step");
  EXPECT_EQ(h.Count(CoreCounter::kSessionsStep), 2u);
}

// Rule R5: what is kept as codes gives back what it does not take.
TEST(CoreRematTest, BlocksKeptAsCodesTakeTheirOwnBytes) {
  for (const bool restarted : {false, true}) {
    std::vector<int64_t> used;
    for (RematPolicy choice : {RematPolicy::kResume, RematPolicy::kStep}) {
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
