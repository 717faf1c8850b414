// A request as the scheduler sees it, from its submission to its last message:
// plain state and the rules about its own tokens. Who runs it when is the
// scheduler's business.
#ifndef XCACHE_SERVER_CORE_SCHEDULER_ACTIVE_REQUEST_H_
#define XCACHE_SERVER_CORE_SCHEDULER_ACTIVE_REQUEST_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cachestore/page_key.h"
#include "cachestore/page_prefetch.h"
#include "cachestore/page_store.h"
#include "engine/base/memory_budget.h"
#include "engine/engine.h"
#include "engine/grammar/grammar.h"
#include "engine/model/chat_template.h"
#include "engine/model/tokenizer.h"
#include "engine/pooling.h"
#include "engine/sampler.h"
#include "server/core/cache/grammar_table.h"
#include "server/core/cache/idle_sets.h"
#include "server/core/cache/known_answers.h"
#include "server/core/request.h"
#include "server/core/scheduler/drafter.h"
#include "server/core/scheduler/stop_matcher.h"
#include "server/core/sessions/manager.h"
#include "server/core/tenants/take.h"
#include "server/core/tenants/tenant_ledger.h"

namespace xcache {

enum class RequestKind { kChat, kGenerate, kScore, kEmbed };

enum class RequestState {
  kQueued,     // not admitted, or preempted
  kReady,      // to be planned and computed
  kRestoring,  // its next pages are read and rematerialized
  kDone,       // reported, or with a committer
};

// A page that a request waits for, or has and is to rematerialize.
struct RestoreSlot {
  PageKey key{};
  std::optional<PageHit> hit;
};

// A request's pages that only the shared tier has (remote_pages.h).
struct RemoteWait {
  bool asked = false;
  std::unique_ptr<PagePrefetch> prefetch;  // null: nothing is to come
  SteadyTime began;  // of the wait for the next page; the epoch: does not wait
  SteadyTime until;  // it waits no longer than that
  double waited_seconds = 0;  // by waits that have ended
  double saved_seconds = 0;   // by pages that came
};

struct ActiveRequest {
  // What was asked.
  uint64_t id = 0;
  RequestKind kind = RequestKind::kChat;
  RequestBase base;
  std::shared_ptr<RequestSink> sink;
  GenerationOptions options;  // the seed is chosen, in `sampling`
  int top_logprobs = 0;       // for Score
  std::string codec_spec;
  CodecRef codec;  // known once admitted
  RematPolicy remat = RematPolicy::kResume;
  // What the answer is held to, if it is; the matcher is made once that is
  // compiled, and is where `tokens` end.
  GrammarTable::EntryPtr grammar;
  std::unique_ptr<GrammarMatcher> grammar_matcher;

  // What its tenant's limits gave it.
  TenantHold queued_tokens;  // while it waits for the first time
  TenantHold minute_tokens;  // those that it may still use
  TenantHold page_bytes;     // of the pages that it may add to its session
  // The session that it makes, with the pages that it begins with.
  SessionPlace place;
  // Tokens of the prompt that its session does not hold yet.
  int64_t asked_tokens() const;

  // The session's turn; null without a session.
  std::unique_ptr<SessionManager::Lease> lease;
  std::vector<SessionMessage> new_messages;
  size_t kept_messages = 0;  // of the session's: all, but for an answer redone
  ChatTurn::Note note;
  // Who is to know the answer, and by what it was given to; null: nobody.
  KnownAnswers* known_answers = nullptr;
  Digest answer_place{};
  bool keep_partial = false;
  absl::Status cut_short;  // why the answer that is kept is a partial one

  // The whole context: the prompt, then what was generated.
  std::vector<TokenId> tokens;
  int64_t prompt_tokens = 0;
  // What penalties look at, where there are any (penalty_history.h).
  std::vector<TokenId> penalty_history;
  std::vector<PageKey> keys;  // of the first full blocks, as far as needed

  // Where it stands.
  RequestState state = RequestState::kQueued;
  uint64_t order = 0;  // of admission; an older one is never preempted for it
  bool preempted = false;
  bool may_compute = false;  // the last plan said so
  uint64_t last_step = 0;    // the last one that it was in
  bool waiting = false;      // for another request's block
  SteadyTime stalled_since;  // no memory, alone; the epoch: is not
  bool solo = false;  // a step with it failed: next it runs in one of its own
  LiveSequence live;
  MemoryReservation next_block;     // for the block that fills up next
  std::deque<RestoreSlot> restore;  // of the blocks that come next, in order
  std::vector<PageKey> flights;     // blocks that others wait to get from it
  // Set once nobody wants the pages under way any more; loaders look at it.
  std::shared_ptr<std::atomic<bool>> load_ended;
  RemoteWait remote;
  int64_t no_restore_before = 0;  // blocks below this index are computed
  // But not those below this one: it is computed, and its window met blocks
  // that were not whole, which are restored once more. -1: there is none.
  int64_t restore_again_before = -1;
  int64_t whole_from = 0;  // blocks from this index on are wanted whole
  bool load_retried = false;

  // The answer.
  std::optional<StopMatcher> matcher;  // where there is one
  std::string text;
  size_t num_sent = 0;             // bytes of it
  bool at_end_token = false;       // its last token is one
  std::string answer_bytes;        // raw, for cutting at a stop string
  std::vector<size_t> token_ends;  // end of each generated token in it
  std::vector<SampledToken> undelivered;
  size_t num_delivered = 0;  // generated tokens whose log-probs were sent
  int64_t next_score = 0;    // index of the next token to score, or to pool
  Pooling pooling = Pooling::kMean;
  std::vector<double> pooled;  // [d_model], of the tokens before `next_score`

  // What may come next, and how much of it is in the step at hand: its rows are
  // those of `draft_rows`, the last token and so many more.
  bool speculates = false;
  Drafter drafter;
  size_t num_drafted = 0;
  std::vector<TokenId> draft_rows;

  int64_t num_staged = 0;  // pages of `restore` that Engine::StagePages took

  // The account.
  FinalInfo final;
  SteadyTime submitted;
  SteadyTime admitted;
  SteadyTime restore_began;
  SteadyTime first_token;
  SteadyTime last_token;

  // Tokens that must have been forwarded before the next logits: all, or for
  // Score all but the last.
  int64_t target_rows() const;
  // Whole blocks that need not be computed: those before the first row whose
  // logits are needed.
  int64_t reusable_blocks() const;
  // Whether it goes on behind its prompt.
  bool answers() const {
    return kind == RequestKind::kChat || kind == RequestKind::kGenerate;
  }
  int64_t generated() const {
    return static_cast<int64_t>(tokens.size()) - prompt_tokens;
  }
  // The most tokens that its context may come to.
  int64_t max_tokens(int64_t max_context) const;
  // One row a step: its last token was just sampled.
  bool decoding() const {
    return answers() && generated() > 0 && live.num_rows() + 1 == target_rows();
  }
  // Its limits are its tenant's again: it has ended.
  void GiveBack();
  // Forgets the pages that it waits for or has.
  void EndLoad();
  bool MayRestore(int64_t block) const {
    return block >= no_restore_before || block < restore_again_before;
  }
  // Blocks [first, last) are computed, whatever the store has.
  void ComputeBlocks(int64_t first, int64_t last);
  const PageKey& KeyOfBlock(int64_t block_index) {
    return KeyOfBlock(block_index, codec->cache_fp());
  }
  // Of a codec that is not its own yet, but will be.
  const PageKey& KeyOfBlock(int64_t block_index, const Digest& cache_fp);
  std::span<const TokenId> TokensOfBlock(int64_t block_index) const;

  // Appends a sampled token to the context and its text to the sink, once its
  // session is known to be what it was taken for. Returns
  // why the answer ends here, kNone where it goes on.
  FinishReason AcceptToken(const SampledToken& token,
                           const Tokenizer& tokenizer, int64_t max_context);
  // Sends what is held back: the answer has ended.
  void FlushText();
  // Sends what was held back for the check of its session, once that says OK.
  void SendHeld() { Deliver(""); }
  // The session's history once the answer has ended, as it is now: prompt,
  // answer, and the end of the answer as the template has it. The answer's
  // tokens spell `text`, with U+FFFD for bytes that are no UTF-8: those that
  // were sampled, as far as the text goes by whole tokens and characters, and
  // what the text has beyond them encoded anew.
  // REQUIRES: FlushText was called.
  absl::StatusOr<std::vector<TokenId>> History(
      const ChatTemplate& chat_template, const Tokenizer& tokenizer) const;

 private:
  void Deliver(const std::string& new_text);
};

// Bytes of working set that a context of so many tokens takes at most, with
// the block that comes after them (rule R5).
int64_t WorkingSetBytes(const Engine& engine, const CodecHandle& codec,
                        int64_t num_tokens);

// Microseconds from `begin` to `end`.
int64_t MicrosBetween(SteadyTime begin, SteadyTime end);
double SecondsBetween(SteadyTime begin, SteadyTime end);

}  // namespace xcache

#endif  // XCACHE_SERVER_CORE_SCHEDULER_ACTIVE_REQUEST_H_
