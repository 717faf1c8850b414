#include "engine/model/tool_format.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

using Kind = ToolCallReader::Part::Kind;

// "text" as it is, calls as "[name|arguments]".
std::string Show(const std::vector<ToolCallReader::Part>& parts) {
  std::string out;
  bool in_call = false;
  for (const auto& part : parts) {
    if (in_call && part.kind != Kind::kArguments) out += "]";
    if (part.kind == Kind::kCall) out += "[" + part.text + "|";
    if (part.kind != Kind::kCall) out += part.text;
    in_call = part.kind != Kind::kText && (in_call || part.kind == Kind::kCall);
  }
  return out + (in_call ? "]" : "");
}

// In pieces of so many bytes.
std::string Read(const std::string& text, size_t piece) {
  ToolCallReader reader;
  std::vector<ToolCallReader::Part> parts;
  const auto add = [&](std::vector<ToolCallReader::Part> more) {
    parts.insert(parts.end(), more.begin(), more.end());
  };
  for (size_t at = 0; at < text.size(); at += piece) {
    add(reader.Add(text.substr(at, piece)));
  }
  add(reader.Finish());
  return Show(parts);
}

void Expect(const std::string& text, const std::string& shown) {
  for (size_t piece = 1; piece <= text.size() + 1; ++piece) {
    EXPECT_EQ(Read(text, piece), shown) << piece << ": " << text;
  }
}

TEST(ToolFormatTest, WhatIsWrittenIsRead) {
  const std::vector<ToolCall> calls = {
      {"look_up", R"({"a": "}\"</tool_call>", "b": [{}, {"c": "\\"}]})"},
      {"now", "{}"}};
  Expect(WithCalls("", calls), "[look_up|" + calls[0].arguments + "][now|{}]");
  Expect(WithCalls("Well,  I see.", calls),
         "Well,  I see.[look_up|" + calls[0].arguments + "][now|{}]");
}

TEST(ToolFormatTest, ToolsAndResultsAreFoundAgain) {
  const std::vector<ToolDef> tools = {{"f", "{\"a\": 1}", "{}"}};
  for (const char* prompt : {"", "Be brief.", "Two\n\nparts."}) {
    EXPECT_EQ(WithoutTools(WithTools(prompt, tools)), prompt);
    EXPECT_EQ(WithoutTools(prompt), prompt);
  }
  for (const std::vector<std::string>& results :
       {std::vector<std::string>{"a"}, {"", "b\n"}, {"<x>", "", "c"}}) {
    EXPECT_EQ(ReadResults(ResultsText(results)), results);
  }
  for (const char* text :
       {"", "a", "<tool_response>\na", "<tool_response>\na\n</tool_response>b",
        "b<tool_response>\na\n</tool_response>"}) {
    EXPECT_TRUE(ReadResults(text).empty()) << text;
  }
}

TEST(ToolFormatTest, TextStaysText) {
  for (const char* text :
       {"", " ", "a < b and <tool", "<tool_call>", "<tool_call>\n{\"name\": 5}",
        "x <tool_call> y", "<tool_call>\n{\"name\": \"\", \"arguments\": {}}",
        "<tool_call>\n{\"name\": \"f\", \"other\": {}}", "<<tool_call",
        "two  spaces \n\n", "<tool_call>\n{\"name\": \"f"}) {
    Expect(text, text);
  }
}

TEST(ToolFormatTest, CallsThatAreCutAreThereAsFar) {
  const std::string begin = CallBegin("f");
  Expect(begin, "[f|]");
  Expect("Hm.\n" + begin + "{\"a\": \"b", "Hm.[f|{\"a\": \"b]");
  Expect(begin + "{\"a\": 1}", "[f|{\"a\": 1}]");
  Expect(begin + "{\"a\": 1}}\n</tool", "[f|{\"a\": 1}]");
  // No object, and another end than it has to have.
  Expect(begin + "12}\n</tool_call>", "[f|12]");
  Expect(begin + "{}} and more", "[f|{}]} and more");
}

TEST(ToolFormatTest, TextMayComeBetweenAndBehind) {
  const std::vector<ToolCall> call = {{"f", "{}"}};
  Expect(WithCalls("a", call) + "\n" + WithCalls("b", call) + "\nc",
         "a[f|{}]\nb[f|{}]\nc");
}

}  // namespace
}  // namespace xcache
