#include "engine/model/think_reader.h"

#include <string>

#include "gtest/gtest.h"

namespace xcache {
namespace {

void Expect(const std::string& answer, const std::string& thought,
            const std::string& text) {
  for (size_t piece = 1; piece <= answer.size() + 1; ++piece) {
    ThinkReader reader;
    ThinkReader::Part all;
    const auto add = [&all](const ThinkReader::Part& part) {
      all.thought += part.thought;
      all.text += part.text;
    };
    for (size_t at = 0; at < answer.size(); at += piece) {
      add(reader.Add(answer.substr(at, piece)));
    }
    add(reader.Finish());
    EXPECT_EQ(all.thought, thought) << piece << ": " << answer;
    EXPECT_EQ(all.text, text) << piece << ": " << answer;
  }
}

TEST(ThinkReaderTest, ThoughtsAndAnswersAreApart) {
  Expect("<think>\nWell, a </thin b.\n\nSo.\n</think>\n\nYes. </think>\n",
         "Well, a </thin b.\n\nSo.", "Yes. </think>\n");
  Expect("\n<think>\n\n</think>\n\nYes.", "", "Yes.");
  Expect("<think></think>", "", "");
}

TEST(ThinkReaderTest, AnAnswerMayBeOneAlone) {
  Expect("Yes. <think>no</think>", "", "Yes. <think>no</think>");
  Expect(" \n<thin", "", " \n<thin");
  Expect("", "", "");
  Expect("<think>\nStill at it, and </th", "Still at it, and </th", "");
}

}  // namespace
}  // namespace xcache
