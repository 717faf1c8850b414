// The conversation of the quickstart: a developer pastes pages of the project's
// own documentation, one a turn, and asks about each.
#ifndef XCACHE_CLIENT_QUICKSTART_CONVERSATION_H_
#define XCACHE_CLIENT_QUICKSTART_CONVERSATION_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace xcache::quickstart {

inline constexpr char kSystemPrompt[] =
    "You are a patient assistant who explains software documentation to "
    "developers in plain words.";

// The question after the crash. Short, as a returning user's is.
inline constexpr char kLastQuestion[] =
    "Please sum up what we have talked about so far.";

class Conversation {
 public:
  // Reads the pages below `root`. NotFound where none of them is there.
  static absl::StatusOr<Conversation> Load(const std::string& root);

  // The user's message of turn `turn`, from 0; about 2,000 bytes of a page and
  // a question. Pages come again, with other questions, when all were shown.
  std::string Message(size_t turn) const;

 private:
  struct Excerpt {
    std::string path;
    std::string text;
  };
  std::vector<Excerpt> excerpts_;
};

}  // namespace xcache::quickstart

#endif  // XCACHE_CLIENT_QUICKSTART_CONVERSATION_H_
