// Codecs by choice: the server's default by quality, another one for a session,
// and pages of different codecs side by side in one store.
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "tests/integration/app_fixture.h"

namespace xcache::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class ServerCodecTest : public AppFixture {
 protected:
  grpc::Status CreateWith(const std::string& id, const std::string& codec,
                          v1::Session* session) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    request.set_codec(codec);
    return sessions_->CreateSession(Context().get(), request, session);
  }
  std::string DefaultCodec() {
    v1::GetModelInfoResponse info;
    EXPECT_TRUE(
        inference_
            ->GetModelInfo(Context().get(), v1::GetModelInfoRequest(), &info)
            .ok());
    return info.codec();
  }
};

// Some 300 tokens, the same for every session.
std::string Prompt() {
  std::string text;
  for (int i = 0; i < 75; ++i) text += "w" + std::to_string(i) + " ";
  return text;
}

TEST_F(ServerCodecTest, AQualityNamesTheDefaultCodec) {
  const std::map<std::string, std::string> expected = {
      {"", "xquant-gqa:"},
      {"lossless", "kv-fp16"},
      {"balanced", "xquant-gqa:"},
      {"compact", "xquant-cl-gqa:"}};
  std::map<std::string, std::string> found;
  for (const auto& [quality, codec] : expected) {
    config_.quality = quality;
    config_.store_dir = folder_.path() + "/store-" + quality;
    config_.profile_dir = folder_.path();
    Start();
    found[quality] = DefaultCodec();
    EXPECT_THAT(found[quality], StartsWith(codec));
    Stop();
  }
  EXPECT_EQ(found[""], found["balanced"]);
  EXPECT_NE(found["compact"], found["balanced"]);
}

TEST_F(ServerCodecTest, SessionsOfDifferentCodecsLiveSideBySide) {
  // Session: the codec that its creator asks for. All say the same, so only
  // the codec keeps their pages apart.
  const std::map<std::string, std::string> choices = {
      {"default", ""},
      {"lossless", "lossless"},
      {"compact", "compact"},
      {"spec", "xquant-gqa:bits=3"},
      {"mha-form", "xquant:bits=8"},
      {"mha-cross-layer", "xquant-cl:bits=3"},
      {"baseline", "kivi:bits=4"}};
  const v1::ChatRequest more = Turn("", "go on", 24);
  std::map<std::string, Answer> expected;
  std::map<std::string, std::string> codecs;
  std::map<std::string, uint64_t> page_bytes;
  for (bool restart : {false, true}) {
    config_.store_dir = folder_.path() + (restart ? "/a" : "/b");
    config_.profile_dir = folder_.path();
    Start();
    for (const auto& [id, codec] : choices) {
      v1::Session session;
      const grpc::Status status = CreateWith(id, codec, &session);
      ASSERT_TRUE(status.ok()) << status.error_message();
      codecs[id] = session.codec();
      const Answer answer = Chat(Turn(id, Prompt()));
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      // Nobody's pages serve another codec.
      EXPECT_EQ(answer.final.prefilled_tokens(), answer.final.prompt_tokens())
          << id;
      ASSERT_TRUE(GetSession(id, &session).ok());
      EXPECT_EQ(session.codec(), codecs[id]);
      page_bytes[id] = session.page_bytes();
    }
    if (restart) {
      Stop();
      Start();
    }
    for (const auto& [id, codec] : choices) {
      v1::ChatRequest request = more;
      request.set_session_id(id);
      const Answer answer = Chat(request);
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      if (!restart) {
        expected[id] = answer;
        continue;
      }
      EXPECT_EQ(answer.tokens, expected[id].tokens) << id;
      EXPECT_EQ(answer.logprobs, expected[id].logprobs) << id;
      v1::Session session;
      ASSERT_TRUE(GetSession(id, &session).ok());
      EXPECT_EQ(session.codec(), codecs[id]);
    }
    Stop();
  }
  EXPECT_THAT(codecs["default"], HasSubstr("bits=4"));
  EXPECT_EQ(codecs["lossless"], "kv-fp16");
  EXPECT_THAT(codecs["spec"], HasSubstr("bits=3"));
  EXPECT_THAT(codecs["mha-form"], StartsWith("xquant:"));
  EXPECT_LT(page_bytes["compact"], page_bytes["spec"]);
  EXPECT_LT(page_bytes["spec"], page_bytes["default"]);
  EXPECT_LT(page_bytes["default"], page_bytes["lossless"]);
  // The bits that come back are those of the codec asked for.
  EXPECT_NE(expected["lossless"].logprobs, expected["compact"].logprobs);
}

TEST_F(ServerCodecTest, AForkKeepsItsCodec) {
  Start();
  v1::Session session;
  ASSERT_TRUE(CreateWith("from", "lossless", &session).ok());
  ASSERT_TRUE(Chat(Turn("from", Prompt())).status.ok());
  v1::ForkSessionRequest fork;
  fork.set_id("from");
  fork.set_new_id("to");
  ASSERT_TRUE(sessions_->ForkSession(Context().get(), fork, &session).ok());
  EXPECT_EQ(session.codec(), "kv-fp16");
  EXPECT_TRUE(Chat(Turn("to", "go on")).status.ok());
}

TEST_F(ServerCodecTest, AWrongChoiceIsTheCallersError) {
  Start();
  v1::Session session;
  const grpc::Status status = CreateWith("s", "tiny", &session);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("tiny"), HasSubstr("xquant-gqa")));
}

}  // namespace
}  // namespace xcache::testing
