// What a model thinks before it answers, apart from its answer: text between
// <think> and </think>, where an answer begins with it (Qwen3, DeepSeek R1).
#ifndef XCACHE_ENGINE_MODEL_THINK_READER_H_
#define XCACHE_ENGINE_MODEL_THINK_READER_H_

#include <string>
#include <string_view>

namespace xcache {

class ThinkReader {
 public:
  // Without the white space around each.
  struct Part {
    std::string thought, text;
  };
  // What is known by the next text of the answer.
  Part Add(std::string_view text);
  // The same, at its end.
  Part Finish();

 private:
  enum class State { kStart, kThought, kBetween, kText };

  // Reads on in `held_`; false: it needs more.
  bool Read(bool at_end, Part* out);

  State state_ = State::kStart;
  bool said_ = false;  // something of the thought
  std::string held_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_THINK_READER_H_
