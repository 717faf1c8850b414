#include "server/frontend/answer_reader.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace xcache {
namespace {

using Kind = AnswerPart::Kind;
using ::testing::MatchesRegex;

struct Call {
  std::string id, name, arguments;
};
struct Whole {
  std::string thought, text;
  std::vector<Call> calls;
};

// Read in pieces of so many bytes.
Whole Read(std::string_view answer, size_t bytes, bool with_calls) {
  AnswerReader reader(with_calls);
  Whole out;
  const auto take = [&](const std::vector<AnswerPart>& parts) {
    for (const AnswerPart& part : parts) {
      switch (part.kind) {
        case Kind::kThought:
          out.thought += part.text;
          break;
        case Kind::kText:
          out.text += part.text;
          break;
        case Kind::kCall:
          EXPECT_EQ(part.call, out.calls.size());
          out.calls.push_back({part.id, part.text, ""});
          break;
        case Kind::kArguments:
          EXPECT_EQ(part.call + 1, out.calls.size());
          out.calls.back().arguments += part.text;
          break;
      }
    }
  };
  for (size_t at = 0; at < answer.size(); at += bytes) {
    take(reader.Add(answer.substr(at, bytes)));
  }
  take(reader.Finish());
  EXPECT_EQ(reader.num_calls(), out.calls.size());
  return out;
}

const std::string& Answer() {
  static const std::string answer =
      "<think>\nCalls? <tool_call>\n</think>\n\nLet me see." +
      WithCalls(
          "", std::vector<ToolCall>{{"look", R"({"at": "}"})"}, {"ask", "{}"}});
  return answer;
}

TEST(AnswerReaderTest, ThoughtTextAndCallsHoweverTheyCome) {
  for (size_t bytes = 1; bytes <= Answer().size(); ++bytes) {
    const Whole whole = Read(Answer(), bytes, true);
    EXPECT_EQ(whole.thought, "Calls? <tool_call>");
    EXPECT_EQ(whole.text, "Let me see.");
    ASSERT_EQ(whole.calls.size(), 2u) << bytes;
    EXPECT_EQ(whole.calls[0].name, "look");
    EXPECT_EQ(whole.calls[0].arguments, R"({"at": "}"})");
    EXPECT_EQ(whole.calls[1].name, "ask");
    EXPECT_EQ(whole.calls[1].arguments, "{}");
  }
}

TEST(AnswerReaderTest, WithoutToolsACallIsText) {
  const Whole whole = Read(Answer(), 3, false);
  EXPECT_EQ(whole.thought, "Calls? <tool_call>");
  EXPECT_EQ(whole.text, Answer().substr(Answer().find("Let me")));
  EXPECT_TRUE(whole.calls.empty());
}

TEST(AnswerReaderTest, ACutCallIsThereAsFar) {
  const size_t cut = Answer().find("\"}\"") + 1;
  const Whole whole = Read(Answer().substr(0, cut), 1, true);
  ASSERT_EQ(whole.calls.size(), 1u);
  EXPECT_EQ(whole.calls[0].arguments, R"({"at": ")");
}

TEST(AnswerReaderTest, EveryCallHasAnIdOfItsOwn) {
  std::set<std::string> ids;
  for (int i = 0; i < 100; ++i) {
    for (const Call& call : Read(Answer(), 1000, true).calls) {
      EXPECT_THAT(call.id, MatchesRegex("call_[0-9a-f]+"));
      EXPECT_EQ(call.id.size(), 5u + 24u);
      ids.insert(call.id);
    }
  }
  EXPECT_EQ(ids.size(), 200u);
}

}  // namespace
}  // namespace xcache
