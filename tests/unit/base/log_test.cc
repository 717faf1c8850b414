#include "engine/base/log.h"

#include <string>

#include "engine/base/json_log.h"
#include "engine/base/utf8.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace xcache {
namespace {

TEST(LogTest, UnknownLevelIsRefused) {
  EXPECT_TRUE(InitLogging("warn"));
  EXPECT_FALSE(InitLogging("loud"));
  EXPECT_TRUE(InitLogging("off"));
  EXPECT_TRUE(InitLogging("info"));
}

TEST(LogTest, ValuesAreQuotedWhereTheyNeedToBe) {
  EXPECT_EQ(LogValue("plain/path-1"), "plain/path-1");
  EXPECT_EQ(LogValue(""), "\"\"");
  EXPECT_EQ(LogValue("two words"), "\"two words\"");
  EXPECT_EQ(LogValue("a\"b\\c\nd"), "\"a\\\"b\\\\c\\nd\"");
  EXPECT_EQ(LogValue("\x1b[31m"), "\"?[31m\"");
  // A name is no number, whatever it is made of.
  for (const char* number : {"0", "-7", "12", "1.5e3"}) {
    EXPECT_EQ(LogValue(number), std::string("\"") + number + "\"");
  }
  for (const char* word : {"1a", "-", "007", "1.2.3.4:80", "true", "1e999"}) {
    EXPECT_EQ(LogValue(word), word);
  }
}

nlohmann::json Line(const std::string& line) {
  const std::string text = JsonLogLine("T", "info", line);
  EXPECT_EQ(text.find('\n'), text.npos) << text;
  for (const char c : text) EXPECT_TRUE(c >= ' ' && c <= '~') << text;
  return nlohmann::json::parse(text);
}

TEST(JsonLogTest, AnEventWithItsKeys) {
  EXPECT_EQ(JsonLogLine("2026-01-02T03:04:05.678Z", "warning",
                        "the disk is full: now a=1 b=\"x \\\"y\\\" z\" c=d"),
            R"({"time":"2026-01-02T03:04:05.678Z","level":"warning",)"
            R"("event":"the disk is full: now","a":1,"b":"x \"y\" z",)"
            R"("c":"d"})");
  EXPECT_EQ(Line("stopped").dump(),
            R"({"event":"stopped","level":"info","time":"T"})");
}

TEST(JsonLogTest, NumbersAreNumbersAndNamesStrings) {
  const nlohmann::json line =
      Line("request ms=412.0 turn=3 off=-2 session=" + LogValue("17") +
           " peer=1.2.3.4:5 big=1e999 empty= none=\"\"");
  EXPECT_EQ(line["ms"], 412.0);
  EXPECT_TRUE(line["turn"].is_number_integer());
  EXPECT_EQ(line["off"], -2);
  EXPECT_EQ(line["session"], "17");
  EXPECT_EQ(line["peer"], "1.2.3.4:5");
  EXPECT_EQ(line["big"], "1e999");
  EXPECT_EQ(line["empty"], "");
  EXPECT_EQ(line["none"], "");
}

TEST(JsonLogTest, AnyBytesOfAValueComeBackAsText) {
  for (int first = 0; first < 256; ++first) {
    for (const std::string tail : {"", "=", "\" level=error x=\"", "\\"}) {
      std::string value(1, static_cast<char>(first));
      value += tail;
      const nlohmann::json line = Line("e a=" + LogValue(value) + " b=2");
      ASSERT_EQ(line.size(), 5u) << line;
      EXPECT_EQ(line["b"], 2) << line;
      EXPECT_EQ(line["level"], "info");
      const bool kept =
          first >= ' ' || first == '\n' || first == '\r' || first == '\t';
      const std::string wanted =
          ToUtf8(kept && first != 0x7f ? value : "?" + tail);
      EXPECT_EQ(line["a"], wanted);
    }
  }
}

TEST(JsonLogTest, NothingTakesAnotherKeysPlace) {
  const nlohmann::json line = Line("e level=error time=1 event=x a=1 a=2");
  EXPECT_EQ(line["level"], "info");
  EXPECT_EQ(line["time"], "T");
  EXPECT_EQ(line["event"], "e");
  EXPECT_EQ(line["a"], 1);
}

TEST(JsonLogTest, WordsWithoutAKeyAreNotLost) {
  EXPECT_EQ(Line("e why=no room left b=1")["why"], "no room left");
  EXPECT_EQ(Line("")["event"], "");
  EXPECT_EQ(Line("e a=\"not closed")["a"], "not closed");
}

TEST(JsonLogTest, TheProcesssLogIsJsonOnceItIsAsked) {
  ASSERT_TRUE(InitLogging("info"));
  LogAsJson();
  testing::internal::CaptureStderr();
  XC_LOG_WARN("something happened", "path={} n={}", LogValue("a b"), 7);
  const std::string text = testing::internal::GetCapturedStderr();
  const nlohmann::json line = nlohmann::json::parse(text);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_EQ(line["level"], "warning");
  EXPECT_EQ(line["event"], "something happened");
  EXPECT_EQ(line["path"], "a b");
  EXPECT_EQ(line["n"], 7);
  EXPECT_EQ(line["time"].get<std::string>().size(),
            std::string("2026-01-02T03:04:05.678Z").size());
  // The text again, for who starts anew.
  ASSERT_TRUE(InitLogging("info"));
  testing::internal::CaptureStderr();
  XC_LOG_WARN("again");
  EXPECT_NE(testing::internal::GetCapturedStderr().find(" warning again"),
            std::string::npos);
}

}  // namespace
}  // namespace xcache
