// A server core over the fakes, and blocking calls for tests.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_CORE_HARNESS_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_CORE_HARNESS_H_

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/memory_budget.h"
#include "engine/base/mutex.h"
#include "server/core/reason.h"
#include "server/core/server_core.h"
#include "server/core/tenants/tenant_ledger.h"
#include "tests/unit/server/core/fake_engine.h"
#include "tests/unit/server/core/fake_store.h"
#include "tests/unit/server/core/fake_text.h"

namespace xcache::testing {

// Collects a request's output and waits for its end.
class CollectSink final : public RequestSink {
 public:
  void OnDelta(std::string_view text,
               std::span<const SampledToken> tokens) override {
    MutexLock lock(mu_);
    if (finished_) std::abort();  // nothing may follow the end
    deltas_.emplace_back(text);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    changed_.SignalAll();
  }
  void OnFinish(const absl::Status& status, const FinalInfo& final) override {
    MutexLock lock(mu_);
    if (finished_) std::abort();  // exactly one end
    finished_ = true;
    // A status of its own: Debian's Abseil counts references in code that TSan
    // does not see, so one that threads share looks like a race.
    status_ = absl::Status(status.code(), status.message());
    final_ = final;
    changed_.SignalAll();
  }

  void Wait() {
    MutexLock lock(mu_);
    while (!finished_) changed_.Wait(mu_);
  }
  void WaitForDelta() {
    MutexLock lock(mu_);
    while (deltas_.empty() && !finished_) changed_.Wait(mu_);
  }
  bool finished() const {
    MutexLock lock(mu_);
    return finished_;
  }
  absl::Status status() const {
    MutexLock lock(mu_);
    return status_;
  }
  FinalInfo final() const {
    MutexLock lock(mu_);
    return final_;
  }
  std::string text() const {
    MutexLock lock(mu_);
    std::string all;
    for (const std::string& delta : deltas_) all += delta;
    return all;
  }
  std::vector<std::string> deltas() const {
    MutexLock lock(mu_);
    return deltas_;
  }
  std::vector<SampledToken> tokens() const {
    MutexLock lock(mu_);
    return tokens_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool finished_ XC_GUARDED_BY(mu_) = false;
  std::vector<std::string> deltas_ XC_GUARDED_BY(mu_);
  std::vector<SampledToken> tokens_ XC_GUARDED_BY(mu_);
  absl::Status status_ XC_GUARDED_BY(mu_);
  FinalInfo final_ XC_GUARDED_BY(mu_);
};

inline ForkOptions Fork(std::string tenant, std::string id, std::string new_id,
                        uint64_t num_messages, uint64_t keep_last = 0) {
  return {.tenant = std::move(tenant),
          .id = std::move(id),
          .new_id = std::move(new_id),
          .num_messages = num_messages,
          .keep_last_messages = keep_last};
}

inline SessionUpdate Pinned(bool pinned) {
  SessionUpdate update;
  update.pinned = pinned;
  return update;
}

inline constexpr char kCodec[] = "fake:bits=4";

struct HarnessOptions {
  int64_t memory_bytes = 100 << 20;
  std::string codec = kCodec;
  FakeEngine::Options engine;
  ServerCoreOptions core;
};

struct Harness {
  using Options = HarnessOptions;
  explicit Harness(Options harness_options = {})
      : options(std::move(harness_options)), memory(options.memory_bytes) {
    options.core.default_codec = options.codec;
    options.core.embedding_codec = kCodec;
    Restart();
  }
  ~Harness() { core.reset(); }

  // A new engine and a new core over the same store, as after a restart.
  void Restart(bool forget_host = true) {
    core.reset();
    engine = std::make_unique<FakeEngine>(options.engine);
    metrics = std::make_unique<PlainMetrics>();
    if (forget_host) store.pages().ForgetHost();
    ServerCoreDeps deps;
    deps.engine = engine.get();
    deps.tokenizer = &tokenizer;
    deps.chat_template = &chat_template;
    deps.store = &store;
    deps.memory = &memory;
    deps.metrics = metrics.get();
    deps.tenants = &tenants;
    core = ServerCore::Create(deps, options.core, {}).value();
  }

  std::shared_ptr<CollectSink> StartChat(ChatTurn turn) {
    auto sink = std::make_shared<CollectSink>();
    core->SubmitChat(std::move(turn), sink);
    return sink;
  }
  std::shared_ptr<CollectSink> Chat(ChatTurn turn) {
    auto sink = StartChat(std::move(turn));
    sink->Wait();
    return sink;
  }
  std::shared_ptr<CollectSink> Generate(GenerateRequest request) {
    auto sink = std::make_shared<CollectSink>();
    core->SubmitGenerate(std::move(request), sink);
    sink->Wait();
    return sink;
  }
  std::shared_ptr<CollectSink> Score(ScoreRequest request) {
    auto sink = std::make_shared<CollectSink>();
    core->SubmitScore(std::move(request), sink);
    sink->Wait();
    return sink;
  }
  std::shared_ptr<CollectSink> StartEmbed(EmbedRequest request) {
    auto sink = std::make_shared<CollectSink>();
    core->SubmitEmbed(std::move(request), sink);
    return sink;
  }
  // A turn of a session of tenant "t".
  ChatTurn Turn(std::string session, std::string text,
                int64_t max_tokens = 16) const {
    ChatTurn turn;
    turn.tenant = "t";
    turn.session_id = std::move(session);
    turn.messages = {{Role::kUser, std::move(text)}};
    turn.options.max_tokens = max_tokens;
    return turn;
  }
  static CreateSessionOptions Named(std::string id) {
    CreateSessionOptions create;
    create.tenant = "t";
    create.id = std::move(id);
    return create;
  }
  void NewSession(std::string id, std::string system_prompt = "") {
    CreateSessionOptions create = Named(std::move(id));
    create.system_prompt = std::move(system_prompt);
    if (!core->CreateSession(create).ok()) std::abort();
  }
  SessionRecord Record(std::string_view id) {
    return store.sessions().Load("t", id).value();
  }
  // The text of the greedy answer to `prompt`, computed directly.
  std::string Greedy(const std::vector<TokenId>& prompt,
                     int max_tokens = 16) const {
    std::string text;
    for (const TokenId token :
         FakeGreedy(options.engine, options.codec, prompt, max_tokens, false)) {
      text += tokenizer.TokenBytes(token, false);
    }
    return text;
  }
  // The prompt that the next turn of a session is answered from.
  std::vector<TokenId> PromptOf(const SessionRecord& record,
                                const std::string& text) const {
    std::vector<TokenId> prompt(record.tokens.begin(), record.tokens.end());
    const auto message =
        chat_template.RenderMessage({Role::kUser, text}, 0).value();
    prompt.insert(prompt.end(), message.begin(), message.end());
    const auto header = chat_template.AssistantHeader();
    prompt.insert(prompt.end(), header.begin(), header.end());
    return prompt;
  }
  uint64_t Count(CoreCounter counter) const {
    return metrics->counter(counter);
  }

  Options options;
  MemoryBudget memory;
  FakeStore store{memory};
  TenantLedger tenants;
  FakeTokenizer tokenizer;
  FakeTemplate chat_template;
  std::unique_ptr<FakeEngine> engine;
  std::unique_ptr<PlainMetrics> metrics;
  std::unique_ptr<ServerCore> core;
};

// Text of so many letters, the same for the same seed.
inline std::string Letters(size_t n, uint32_t seed) {
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    text += static_cast<char>('a' + (seed >> 24) % 26);
  }
  return text;
}

// A raw prompt of `n` letters, answered with exactly `max_tokens` tokens.
inline GenerateRequest RawPrompt(size_t n, uint32_t seed, int64_t max_tokens) {
  GenerateRequest request;
  request.tenant = "t";
  for (const char c : Letters(n, seed)) request.prompt.push_back(c);
  request.options.max_tokens = max_tokens;
  request.options.ignore_eos = true;
  return request;
}

// A turn of a session. Its answer is the one that is computed from nothing, and
// its tokens are reused or computed, each once.
inline FinalInfo Ask(Harness& h, const std::string& id,
                     const std::string& text) {
  const std::vector<TokenId> prompt = h.PromptOf(h.Record(id), text);
  const auto sink = h.Chat(h.Turn(id, text));
  EXPECT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->text(), h.Greedy(prompt));
  const FinalInfo final = sink->final();
  EXPECT_EQ(final.reused.total() + final.prefilled_tokens, final.prompt_tokens);
  return final;
}

inline std::shared_ptr<CollectSink> Start(Harness& h, GenerateRequest request) {
  auto sink = std::make_shared<CollectSink>();
  h.core->SubmitGenerate(std::move(request), sink);
  return sink;
}

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_CORE_HARNESS_H_
