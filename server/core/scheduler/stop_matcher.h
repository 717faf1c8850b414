// From the bytes of sampled tokens to the text that may be sent: finds stop
// strings, also across tokens, holds back what may become one, and cuts on
// UTF-8 boundaries. Looks at one turn's answer only.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_STOP_MATCHER_H_
#define XCACHE_SERVER_CORE_SCHEDULER_STOP_MATCHER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace xcache {

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next bytes of the answer and appends to `text` what may be sent
  // now. True: a stop string is complete; the text ends before it and no more
  // may be appended. The first to be complete counts, the longest of those that
  // end together, so the result does not depend on how the bytes were split.
  bool Append(std::string_view bytes, std::string* text);
  // The answer has ended: appends to `text` what was held back.
  void Finish(std::string* text);
  // Either way the text ends with a whole character: one that the answer's end
  // or the stop string cut off is dropped.

  // Of the raw answer: bytes that the text is made of, and those of which
  // nothing more comes: sent, or dropped at the end.
  size_t text_bytes() const { return text_bytes_; }
  size_t settled_bytes() const { return text_bytes_ + dropped_bytes_; }
  // The stop string that was found; empty: none.
  const std::string& stop() const { return stop_; }

 private:
  void Send(size_t num_bytes, std::string* text);
  size_t HeldBack() const;

  const std::vector<std::string> stops_;
  std::string held_;  // came in, not sent
  size_t text_bytes_ = 0;
  size_t dropped_bytes_ = 0;
  std::string stop_;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_STOP_MATCHER_H_
