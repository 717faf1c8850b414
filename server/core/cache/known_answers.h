// What tokens an answer was made of, by the tokens that it was given to and by
// how it reads (rule R8): a client that sends a whole history has its texts
// alone, and what those are tokenized to may be other tokens than the model
// wrote, or fewer, where it leaves out what was thought. With the model's own
// the history is the one whose pages are known.
//
// A few that were used last stay, their memory promised by the budget (rule
// R5). In memory alone: a server that starts knows none, and takes the texts.
//
// Thread-safe.
#ifndef XCACHE_SERVER_CORE_CACHE_KNOWN_ANSWERS_H_
#define XCACHE_SERVER_CORE_CACHE_KNOWN_ANSWERS_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "engine/base/sha256.h"
#include "engine/types.h"

namespace xcache {

class KnownAnswers {
 public:
  // At most `max_bytes` in all, and a 64th of the budget's cap; 0: none.
  KnownAnswers(MemoryBudget& memory, int64_t max_bytes);

  // Where a tenant's conversation stands: at its beginning, and after a message
  // of these tokens.
  static Digest Begin(std::string_view tenant);
  static Digest After(const Digest& place, std::span<const TokenId> message);

  // Keeps what an assistant's message at `place` was made of, its header and
  // end included, by its text; one of that text that was there gives way. Not
  // under a lock that a reclaimer takes.
  void Add(const Digest& place, std::string_view text,
           std::span<const TokenId> tokens) XC_EXCLUDES(mu_);
  // What it was made of where it reads as `text`, which may lack what was
  // thought (think_reader.h), white space at its ends, and that of JSON in
  // calls (tool_format.h). Nothing: not known.
  std::optional<std::vector<TokenId>> Find(const Digest& place,
                                           std::string_view text)
      XC_EXCLUDES(mu_);

  size_t size() const XC_EXCLUDES(mu_);

 private:
  struct Answer {
    Digest key{};
    Digest thought{};  // of what was thought
    std::vector<TokenId> tokens;
    MemoryReservation memory;
  };
  using Answers = std::list<Answer>;  // the one used last first

  MemoryBudget& memory_;
  const int64_t max_bytes_;
  mutable Mutex mu_;
  Answers answers_ XC_GUARDED_BY(mu_);
  std::unordered_map<Digest, Answers::iterator, DigestHash> by_key_
      XC_GUARDED_BY(mu_);
  int64_t bytes_ XC_GUARDED_BY(mu_) = 0;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CACHE_KNOWN_ANSWERS_H_
