// From the bytes of sampled tokens to the text that may be sent: finds stop
// strings, also across tokens, holds back what may become one, and cuts on
// UTF-8 boundaries. Looks at one turn's answer only.
#ifndef XCACHE_SERVER_CORE_STOP_MATCHER_H_
#define XCACHE_SERVER_CORE_STOP_MATCHER_H_

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

  // Of the raw answer: bytes that were sent, and where the stop string began.
  size_t sent_bytes() const { return sent_bytes_; }
  size_t stop_begin() const { return stop_begin_; }
  // The stop string that was found; empty: none.
  const std::string& stop() const { return stop_; }

 private:
  void Send(size_t num_bytes, std::string* text);
  size_t HeldBack() const;

  const std::vector<std::string> stops_;
  std::string held_;  // came in, not sent
  size_t sent_bytes_ = 0;
  size_t stop_begin_ = 0;
  std::string stop_;
};

// `bytes` with every byte that is not part of a well-formed UTF-8 character
// (Unicode 15, table 3-7) replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_STOP_MATCHER_H_
