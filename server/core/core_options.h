// What the core is made of and how it is set up: seen by its rooms and by who
// puts it together.
#ifndef XCACHE_SERVER_CORE_CORE_OPTIONS_H_
#define XCACHE_SERVER_CORE_CORE_OPTIONS_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/types.h"
#include "server/core/core_metrics.h"

namespace xcache {

class CacheStore;
class ChatTemplate;
class MemoryBudget;
class TenantLedger;
class Tokenizer;

// What the core works with. All are borrowed and must outlive it, and while it
// lives nobody else touches the engine.
struct ServerCoreDeps {
  Engine* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: Chat is refused
  CacheStore* store = nullptr;
  MemoryBudget* memory = nullptr;   // the one that `store` was opened with
  CoreMetrics* metrics = nullptr;   // null: not counted
  TenantLedger* tenants = nullptr;  // null: nobody has limits, all weigh alike
};

struct ServerCoreOptions {
  std::string default_codec = "xquant-gqa:bits=4";
  // Tokens of a context; 0, or more than the model's: the model's.
  int64_t max_context = 0;
  int max_running = 64;  // requests with a sequence at once
  // Rows of one step, decoding and prefill together: what bounds the time
  // between two tokens of a running chat while a long prompt is prefilled.
  int step_rows = 128;
  // The queue: submitted, not yet admitted.
  int max_queue_requests = 256;
  int64_t max_queue_tokens = 1 << 20;
  // Codecs open at once; the one used longest ago makes room for another.
  int max_codecs = 8;
  // Of embeddings, whose rows are kept for nobody: exact.
  std::string embedding_codec = "kv-fp16";
  // For the tokens of answers that clients may send back as text
  // (known_answers.h); 0: none are kept.
  int64_t answers_bytes = int64_t{16} << 20;
  int loader_threads = 2;  // read pages
  int commit_threads = 4;  // their syncs are grouped by the store
  // 0: never. At least a millisecond otherwise, and so in CreateSessionOptions.
  std::chrono::milliseconds default_ttl = std::chrono::hours(24 * 7);
  std::chrono::milliseconds sweep_interval = std::chrono::minutes(1);
  // Whether pages found are rematerialized or their tokens computed anew.
  enum class Restore { kByCost, kAlways, kNever };
  Restore restore = Restore::kByCost;
  // How long a request waits for pages of the shared tier, all in all, beside
  // what those that came have saved it. A store in the same region answers in a
  // tenth of it.
  std::chrono::milliseconds remote_wait{250};
  // The same for pages that nobody said are there, before the first one came: a
  // prompt that is new waits for the answer that they are not.
  std::chrono::milliseconds unknown_remote_wait{50};
  // Of sessions that ask for none, and of what has no session.
  RematPolicy default_remat = RematPolicy::kResume;
  // Of requests that do not say: whether answers are drafted from what was
  // said.
  bool speculate = false;
  // For tests: what is drafted after a context, at most so many tokens, in
  // place of what Drafter finds. Each of them gets its row.
  std::function<std::vector<TokenId>(std::span<const TokenId> context,
                                     size_t most)>
      draft;
  // As SessionClock has them; empty: the system's.
  std::function<int64_t()> wall_clock_ms;
  std::function<int64_t()> monotonic_clock_ms;
};

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_CORE_OPTIONS_H_
