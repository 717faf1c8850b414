// Documents of sessions: whole, and in every way wrong.
#include "server/core/sessions/document.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace xcache {
namespace {

using ::testing::HasSubstr;

SessionRecord Example() {
  SessionRecord record;
  record.id = "customer-17";
  record.title = "Orders \"today\"";
  record.create_ms = 1'700'000'000'000;
  record.update_ms = 1'700'000'600'000;
  record.ttl_ms = 3'600'000;
  record.codec = "xquant-gqa:bits=4";
  record.model_fp = Sha256Of("model");
  record.numerics_id = "avx2-1";
  record.turn = 3;
  record.pinned = true;
  record.tokens = {7, 8, 9, 10, 11};
  record.messages = {
      {.role = 1, .content = "Gr\xC3\xBC\xC3\x9F dich\n", .token_end = 2},
      {.role = 2, .content = "Hello", .token_begin = 2, .token_end = 5}};
  record.settings = {{"remat", "step"}, {"retokenized", "yes"}};
  return record;
}

std::string Minimal(std::string_view more) {
  return absl::StrCat(R"({"format":"xcache-session","version":1)",
                      more.empty() ? "" : ",", std::string(more), "}");
}

TEST(SessionDocumentTest, IsReadAsItWasWritten) {
  SessionRecord record = Example();
  const auto whole = ParseSessionDocument(WriteSessionDocument(record, true));
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(*whole, record);
  const auto text = ParseSessionDocument(WriteSessionDocument(record, false));
  ASSERT_TRUE(text.ok()) << text.status();
  record.tokens.clear();
  for (SessionMessage& message : record.messages) {
    message.token_begin = message.token_end = 0;
  }
  EXPECT_EQ(*text, record);
}

TEST(SessionDocumentTest, MessagesAreEnough) {
  const auto record = ParseSessionDocument(
      Minimal(R"("messages":[{"role":"user","content":"hi"},)"
              R"({"role":"assistant","content":"\ud83d\ude00"}])"));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->turn, 1u);
  EXPECT_EQ(record->ttl_ms, 0);
  ASSERT_EQ(record->messages.size(), 2u);
  EXPECT_EQ(record->messages[1].content, "\xF0\x9F\x98\x80");
}

TEST(SessionDocumentTest, SaysWhatIsWrong) {
  const std::string deep = absl::StrCat("\"title\":", std::string(100000, '['));
  const std::pair<std::string, std::string> wrong[] = {
      {"", "JSON"},
      {"{", "byte 2"},
      {"[]", "a JSON object, not array"},
      {"7", "a JSON object, not number"},
      {"{}", "format must be 'xcache-session'"},
      {Minimal(""), "messages must be a list, not missing"},
      {Minimal(R"("messages":{})"), "messages must be a list, not object"},
      {Minimal(R"("messages":[1])"), "messages[0] must be an object, not 1"},
      {Minimal(R"("messages":[{"role":"tool","content":""}])"),
       "messages[0].role must be system, user or assistant, not 'tool'"},
      {Minimal(R"("messages":[{"role":"user"}])"),
       "messages[0].content must be a string, not missing"},
      {Minimal(R"("messages":[{"role":"user","content":null}])"),
       "messages[0].content must be a string, not null"},
      {Minimal(R"("messages":[{"role":"user","content":"","tokens":[-1]}])"),
       "messages[0].tokens must be a list of token ids, not one with -1"},
      {Minimal(R"("messages":[{"role":"user","content":"","tokens":[1.5]}])"),
       "not one with 1.5"},
      {Minimal(R"("messages":[{"role":"user","content":"",)"
               R"("tokens":[4294967296]}])"),
       "not one with 4294967296"},
      {Minimal(R"("messages":[{"role":"user","content":"","tokens":[1]},)"
               R"({"role":"assistant","content":""}])"),
       "all with tokens or all without, not 1 of 2 with"},
      {Minimal(R"("messages":[{"role":"user","content":"","extra":1}])"),
       "messages[0]. has 1 fields that version 1 does not know"},
      {Minimal(R"("messages":[],"colour":"red")"), "does not know"},
      {Minimal(R"("messages":[],"turn":-1)"), "turn must be an integer in [0,"},
      {Minimal(R"("messages":[],"turn":99999999999999999999)"), "turn must be"},
      {Minimal(R"("messages":[],"ttl_ms":1e3)"), "ttl_ms must be an integer"},
      {Minimal(R"("messages":[],"create_time_ms":9223372036854775807)"),
       "create_time_ms must be an integer"},
      {Minimal(R"("messages":[],"pinned":1)"),
       "pinned must be true or false, not 1"},
      {Minimal(R"("messages":[],"model_fp":"abc")"),
       "model_fp must be 64 of [0-9a-f], not 'abc'"},
      {Minimal(R"("messages":[],"remat":"auto")"), "remat is resume or step"},
      {Minimal(absl::StrCat(R"("messages":[],"title":")", std::string(257, 'x'),
                            "\"")),
       "title must be at most 256 bytes, not 257"},
      {Minimal(R"("messages":[{"role":"user","content":"\ud800"}])"), "JSON"},
      {Minimal("\"messages\":[{\"role\":\"user\",\"content\":\"\xFF\"}]"),
       "JSON"},
      {Minimal(deep), "at most 4 deep, not deeper"},
      {absl::StrReplaceAll(Minimal(R"("messages":[])"),
                           {{"\"version\":1", "\"version\":2"}}),
       "version must be 1, not 2"},
      {std::string(kMaxDocumentBytes + 1, ' '), "at most 16777216 bytes"},
  };
  for (const auto& [document, text] : wrong) {
    const auto record = ParseSessionDocument(document);
    ASSERT_TRUE(absl::IsInvalidArgument(record.status()))
        << document.substr(0, 100) << ": " << record.status();
    EXPECT_THAT(std::string(record.status().message()), HasSubstr(text))
        << document.substr(0, 100);
  }
}

TEST(SessionDocumentTest, MoreValuesThanASessionHasEndTheReading) {
  std::string ids = "0";
  for (int i = 0; i < 2'000'000; ++i) ids += ",0";
  const auto record = ParseSessionDocument(Minimal(absl::StrCat(
      R"("messages":[{"role":"user","content":"","tokens":[)", ids, "]}]")));
  ASSERT_TRUE(absl::IsInvalidArgument(record.status()));
  EXPECT_THAT(std::string(record.status().message()), HasSubstr("values"));
}

}  // namespace
}  // namespace xcache
