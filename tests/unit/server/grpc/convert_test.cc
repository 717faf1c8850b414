#include "server/grpc/convert.h"

#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "engine/base/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/grpc/status.h"
#include "tests/unit/server/grpc/fake_core.h"

namespace xcache {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// INVALID_ARGUMENT whose message has both words.
void ExpectBad(const absl::Status& status, std::string_view field,
               std::string_view value) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr(std::string(field)), HasSubstr(std::string(value))));
}

TEST(ToOptionsTest, UnsetFieldsTakeTheDocumentedDefaults) {
  const GenerationOptions options = ToOptions(v1::GenerationParams());
  EXPECT_EQ(options.sampling.temperature, 0.7f);
  EXPECT_EQ(options.sampling.top_k, 0);
  EXPECT_EQ(options.sampling.top_p, 1.0f);
  EXPECT_EQ(options.sampling.min_p, 0.0f);
  EXPECT_EQ(options.sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(options.sampling.presence_penalty, 0.0f);
  EXPECT_EQ(options.sampling.frequency_penalty, 0.0f);
  EXPECT_EQ(options.sampling.penalty_last_n, 64);
  EXPECT_FALSE(options.seed.has_value());
  EXPECT_EQ(options.max_tokens, 512);
  EXPECT_EQ(options.num_logprobs, 0);
  EXPECT_FALSE(options.no_cache);
  EXPECT_FALSE(options.ignore_eos);
  EXPECT_EQ(options.speculate, "");
  EXPECT_TRUE(options.stop.empty());
}

TEST(ToOptionsTest, EveryFieldArrives) {
  v1::GenerationParams params;
  v1::SamplingParams* s = params.mutable_sampling();
  s->set_temperature(0.0f);
  s->set_top_k(40);
  s->set_top_p(0.9f);
  s->set_min_p(0.05f);
  s->set_repetition_penalty(1.1f);
  s->set_presence_penalty(0.2f);
  s->set_frequency_penalty(-0.3f);
  s->set_penalty_last_n(0);
  s->set_seed(0);
  params.set_max_tokens(7);
  params.add_stop("\n\n");
  params.set_logprobs(21);
  params.set_no_cache(true);
  params.set_ignore_eos(true);
  params.set_speculate("off");
  const GenerationOptions options = ToOptions(params);
  EXPECT_EQ(options.sampling.temperature, 0.0f);
  EXPECT_EQ(options.sampling.top_k, 40);
  EXPECT_EQ(options.sampling.top_p, 0.9f);
  EXPECT_EQ(options.sampling.min_p, 0.05f);
  EXPECT_EQ(options.sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(options.sampling.presence_penalty, 0.2f);
  EXPECT_EQ(options.sampling.frequency_penalty, -0.3f);
  EXPECT_EQ(options.sampling.penalty_last_n, 0);
  EXPECT_EQ(options.seed, 0u);
  EXPECT_EQ(options.max_tokens, 7);
  EXPECT_THAT(options.stop, ElementsAre("\n\n"));
  EXPECT_EQ(options.num_logprobs, 21);
  EXPECT_TRUE(options.no_cache);
  EXPECT_TRUE(options.ignore_eos);
  EXPECT_EQ(options.speculate, "off");
  EXPECT_TRUE(ValidateSampling(options.sampling).ok());
}

TEST(ToOptionsTest, NothingWrapsAround) {
  v1::GenerationParams params;
  params.mutable_sampling()->set_top_k(0xFFFFFFFF);
  params.mutable_sampling()->set_penalty_last_n(0x80000000);
  params.set_logprobs(0xFFFFFFFF);
  const GenerationOptions options = ToOptions(params);
  constexpr int kMost = std::numeric_limits<int>::max();
  EXPECT_EQ(options.sampling.top_k, kMost);
  EXPECT_EQ(options.sampling.penalty_last_n, kMost);
  EXPECT_EQ(options.num_logprobs, kMost);
}

TEST(ToChatTurnTest, MessagesAndSession) {
  v1::ChatRequest request;
  request.set_session_id("a.b-c_9");
  request.set_expected_turn(0);
  v1::Message* m = request.add_messages();
  m->set_role(v1::ROLE_SYSTEM);
  m->set_content("s");
  m = request.add_messages();
  m->set_role(v1::ROLE_USER);
  m->set_content("u\xC3\xA9");
  const auto turn = ToChatTurn(request);
  ASSERT_TRUE(turn.ok()) << turn.status();
  EXPECT_EQ(turn->session_id, "a.b-c_9");
  EXPECT_EQ(turn->expected_turn, 0u);
  ASSERT_EQ(turn->messages.size(), 2u);
  EXPECT_EQ(turn->messages[0].role, Role::kSystem);
  EXPECT_EQ(turn->messages[1].role, Role::kUser);
  EXPECT_EQ(turn->messages[1].content, "u\xC3\xA9");
}

TEST(ToChatTurnTest, OnlyAnAnswerRedoneNeedsNoMessages) {
  v1::ChatRequest request;
  request.set_session_id("s");
  request.set_keep_partial(true);
  ExpectBad(ToChatTurn(request).status(), "messages", "at least one");
  request.set_regenerate(true);
  const auto turn = ToChatTurn(request);
  ASSERT_TRUE(turn.ok()) << turn.status();
  EXPECT_TRUE(turn->regenerate);
  EXPECT_TRUE(turn->keep_partial);
  EXPECT_TRUE(turn->messages.empty());
}

TEST(ToChatTurnTest, BadRequestsNameTheField) {
  v1::ChatRequest request;
  ExpectBad(ToChatTurn(request).status(), "messages", "at least one");
  v1::Message* m = request.add_messages();
  ExpectBad(ToChatTurn(request).status(), "messages[0].role", "not 0");
  m->set_role(static_cast<v1::Role>(77));
  ExpectBad(ToChatTurn(request).status(), "messages[0].role", "not 77");
  m->set_role(v1::ROLE_USER);
  m->set_content("\xFF");
  ExpectBad(ToChatTurn(request).status(), "messages[0].content", "UTF-8");
  m->set_content("x");
  EXPECT_TRUE(ToChatTurn(request).ok());
  for (int i = 0; i < kMaxMessages; ++i) *request.add_messages() = *m;
  ExpectBad(ToChatTurn(request).status(), "messages", "4097");
}

TEST(ToGenerateTest, TextGetsBosAndIdsDoNot) {
  const testing::ByteTokenizer tokenizer;
  v1::GenerateRequest request;
  ExpectBad(ToGenerate(request, tokenizer).status(), "prompt", "missing");
  request.set_text("ab");
  auto generate = ToGenerate(request, tokenizer);
  ASSERT_TRUE(generate.ok());
  EXPECT_THAT(generate->prompt, ElementsAre(256, 'a', 'b'));
  request.mutable_token_ids()->add_ids(257);
  generate = ToGenerate(request, tokenizer);
  ASSERT_TRUE(generate.ok());
  EXPECT_THAT(generate->prompt, ElementsAre(257));
  request.mutable_token_ids()->add_ids(258);
  ExpectBad(ToGenerate(request, tokenizer).status(), "token_ids.ids[1]",
            "not 258");
  request.mutable_token_ids()->set_ids(1, 0xFFFFFFFF);
  ExpectBad(ToGenerate(request, tokenizer).status(), "token_ids.ids[1]",
            "4294967295");
}

TEST(ToScoreTest, EveryFieldArrives) {
  const testing::ByteTokenizer tokenizer;
  v1::ScoreRequest request;
  request.mutable_token_ids()->add_ids(1);
  request.mutable_token_ids()->add_ids(2);
  request.set_first(0xFFFFFFFF);
  request.set_top_logprobs(0xFFFFFFFF);
  request.set_no_cache(true);
  const auto score = ToScore(request, tokenizer);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_THAT(score->tokens, ElementsAre(1, 2));
  EXPECT_EQ(score->first, 0xFFFFFFFF);
  EXPECT_EQ(score->top_logprobs, std::numeric_limits<int>::max());
  EXPECT_TRUE(score->no_cache);
}

TEST(ToCreateSessionTest, OnlyZeroMeansNever) {
  v1::CreateSessionRequest request;
  EXPECT_FALSE(ToCreateSession(request)->ttl.has_value());
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const auto& [seconds, nanos, sign] :
       {std::tuple<int64_t, int32_t, int>{0, 0, 0},
        {0, 1, 1},
        {0, -1, -1},
        {-1, 0, -1},
        {kMax, 5, 1},
        {-kMax, -5, -1}}) {
    request.mutable_ttl()->set_seconds(seconds);
    request.mutable_ttl()->set_nanos(nanos);
    const std::chrono::milliseconds ttl = *ToCreateSession(request)->ttl;
    EXPECT_EQ((ttl.count() > 0) - (ttl.count() < 0), sign) << seconds;
  }
  request.mutable_ttl()->set_nanos(1'000'000'000);
  ExpectBad(ToCreateSession(request).status(), "ttl", "not ");
  request.clear_ttl();
  request.set_remat("step");
  EXPECT_EQ(ToCreateSession(request)->remat, "step");
}

TEST(ToUpdateSessionTest, WhatIsNotSetStays) {
  v1::UpdateSessionRequest request;
  request.set_id("s");
  auto update = ToUpdateSession(request);
  ASSERT_TRUE(update.ok()) << update.status();
  EXPECT_FALSE(update->title.has_value());
  EXPECT_FALSE(update->ttl.has_value());
  EXPECT_FALSE(update->pinned.has_value());
  request.set_title("");
  request.mutable_ttl()->set_nanos(500'000'000);
  update = ToUpdateSession(request);
  ASSERT_TRUE(update.ok()) << update.status();
  EXPECT_EQ(update->title, "");
  EXPECT_EQ(update->ttl, std::chrono::seconds(1));
}

TEST(ToProtoTest, SessionTimesAreTimestamps) {
  SessionInfo info;
  info.id = "s";
  info.create_time_us = 1'600'000'000'123'456;
  info.update_time_us = 1'600'000'001'000'000;
  v1::Session session;
  ToProto(info, &session);
  EXPECT_EQ(session.create_time().seconds(), 1'600'000'000);
  EXPECT_EQ(session.create_time().nanos(), 123'456'000);
  EXPECT_EQ(session.update_time().seconds(), 1'600'000'001);
  EXPECT_FALSE(session.has_expire_time());
  info.remat = "step";
  ToProto(info, &session);
  EXPECT_EQ(session.remat(), "step");
}

TEST(ToProtoTest, EveryDurabilityHasItsName) {
  FinalInfo info;
  v1::Final final;
  for (const auto& [durability, name] :
       {std::pair{Durability::kNone, v1::DURABILITY_UNSPECIFIED},
        {Durability::kMemory, v1::DURABILITY_MEMORY},
        {Durability::kLocal, v1::DURABILITY_LOCAL}}) {
    info.durability = durability;
    ToProto(info, &final);
    EXPECT_EQ(final.durability(), name);
  }
  info.finish_reason = FinishReason::kCancelled;
  ToProto(info, &final);
  EXPECT_EQ(final.finish_reason(), v1::FINISH_REASON_CANCELLED);
}

TEST(ToGrpcStatusTest, CodesAreTheSameAndMessagesFit) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "m"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "m");
  }
  const grpc::Status cut =
      ToGrpcStatus(absl::InternalError(std::string(100'000, 'x') + "\xFF"));
  EXPECT_LT(cut.error_message().size(), 3000u);
  EXPECT_TRUE(
      IsUtf8(ToGrpcStatus(absl::InternalError("\xC3")).error_message()));
}

TEST(Utf8Test, AcceptsWhatTheStandardDoes) {
  for (const char* ok :
       {"", "a", "\xC3\xA9", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80",
        "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsUtf8(ok)) << ok;
    EXPECT_EQ(ToUtf8(ok), ok);
  }
  for (const char* bad :
       {"\x80", "\xC0\xAF", "\xC1\xBF", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80",
        "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF",
        "a\xE2\x82", "\xC3("}) {
    EXPECT_FALSE(IsUtf8(bad)) << bad;
    EXPECT_TRUE(IsUtf8(ToUtf8(bad)));
  }
  EXPECT_EQ(ToUtf8("a\xFF"
                   "b"),
            "a\xEF\xBF\xBD"
            "b");
}

}  // namespace
}  // namespace xcache
