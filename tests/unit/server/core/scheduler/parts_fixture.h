// The scheduler's parts over the fakes, without its thread: the test is it.
#ifndef XCACHE_TESTS_UNIT_SERVER_CORE_SCHEDULER_PARTS_FIXTURE_H_
#define XCACHE_TESTS_UNIT_SERVER_CORE_SCHEDULER_PARTS_FIXTURE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/base/memory_budget.h"
#include "server/core/scheduler/fair_shares.h"
#include "server/core/scheduler/restorer.h"
#include "server/core/scheduler/run_queue.h"
#include "server/core/scheduler/step_builder.h"
#include "server/core/scheduler/turn_finisher.h"
#include "server/core/scheduler/working_sets.h"
#include "server/core/sessions/clock.h"
#include "server/core/sessions/conversation.h"
#include "server/core/sessions/manager.h"
#include "server/core/tenants/tenant_ledger.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {

struct Parts {
  explicit Parts(ServerCoreOptions core_options = {},
                 int64_t memory_bytes = 100 << 20)
      : memory(memory_bytes), options(std::move(core_options)) {
    working_sets.BindThread();
  }
  ~Parts() {
    std::vector<RunQueue::RequestPtr> left(queue.waiting().begin(),
                                           queue.waiting().end());
    left.insert(left.end(), queue.running().begin(), queue.running().end());
    for (const auto& request : left) {
      finisher.Fail(*request, absl::CancelledError("the test ends"));
    }
    working_sets.DropAllIdle();
  }

  ServerCoreDeps Deps() {
    return {.engine = &engine,
            .tokenizer = &tokenizer,
            .chat_template = &chat_template,
            .store = &store,
            .memory = &memory,
            .metrics = &metrics};
  }

  std::shared_ptr<ActiveRequest> New(RequestKind kind,
                                     std::vector<TokenId> prompt,
                                     int64_t max_tokens = 4) {
    auto request = std::make_shared<ActiveRequest>();
    request->id = ++next_id;
    request->kind = kind;
    request->base.tenant = "t";
    request->sink = std::make_shared<CollectSink>();
    request->codec = codec;
    request->tokens = std::move(prompt);
    request->prompt_tokens = static_cast<int64_t>(request->tokens.size());
    request->options.max_tokens = max_tokens;
    request->options.ignore_eos = true;
    request->matcher.emplace(std::vector<std::string>());
    return request;
  }
  // A raw prompt of `n` letters.
  std::shared_ptr<ActiveRequest> Raw(size_t n, uint32_t seed,
                                     int64_t max_tokens = 4) {
    return New(RequestKind::kGenerate, RawPrompt(n, seed, 1).prompt,
               max_tokens);
  }
  // The next turn of a session, which is made where it is not there.
  std::shared_ptr<ActiveRequest> Turn(const std::string& id,
                                      const std::string& text,
                                      int64_t max_tokens = 4) {
    if (!sessions.Find("t", id).ok()) {
      const auto made = sessions.BeginNew("t", id).value();
      SessionRecord record = made->record();
      record.codec = kCodec;
      EXPECT_TRUE(made->Commit(record).ok());
    }
    auto lease = sessions.Begin("t", id, std::nullopt).value();
    const SessionRecord& record = lease->record();
    auto request = New(RequestKind::kChat, record.tokens, max_tokens);
    const std::vector<ChatMessage> messages = {{Role::kUser, text}};
    EXPECT_TRUE(Render(chat_template, messages, 0, &request->tokens,
                       &request->new_messages)
                    .ok());
    for (const TokenId token : chat_template.AssistantHeader()) {
      request->tokens.push_back(token);
    }
    request->prompt_tokens = static_cast<int64_t>(request->tokens.size());
    request->kept_messages = record.messages.size();
    request->lease = std::move(lease);
    return request;
  }

  // It runs from now on.
  void Admit(const std::shared_ptr<ActiveRequest>& request) {
    ASSERT_TRUE(queue.Enter(request).ok());
    queue.TakeEntered();
    ASSERT_EQ(queue.Next(), request.get());
    queue.Admit();
    working_sets.TakeIdle(*request);
  }
  // One round of the scheduler's loop.
  void Round() {
    restorer.TakeLoaded();
    working_sets.DropWanted();
    const bool restored = restorer.PlanAndRestore();
    const bool computed = steps.Compute();
    if (!restored && !computed) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  // Rounds until its answer has ended, though it may not be committed yet.
  void Finish(const std::shared_ptr<ActiveRequest>& request) {
    while (request->state != RequestState::kDone) Round();
  }
  // Runs it, and waits for its last message.
  std::shared_ptr<CollectSink> Answer(
      const std::shared_ptr<ActiveRequest>& request) {
    const std::shared_ptr<CollectSink> sink = SinkOf(*request);
    Admit(request);
    Finish(request);
    sink->Wait();
    return sink;
  }
  static std::shared_ptr<CollectSink> SinkOf(const ActiveRequest& request) {
    return std::static_pointer_cast<CollectSink>(request.sink);
  }
  // Nothing is left in memory but what running requests hold.
  void ForgetMemory() {
    working_sets.DropAllIdle();
    working_sets.blocks().Evict(std::numeric_limits<int64_t>::max());
  }
  bool Waits(const ActiveRequest& request) const {
    return request.state == RequestState::kQueued;
  }
  uint64_t Count(CoreCounter counter) const { return metrics.counter(counter); }
  int64_t free_bytes() const {
    return memory.cap_bytes() - memory.used_bytes();
  }

  uint64_t next_id = 0;
  MemoryBudget memory;
  ServerCoreOptions options;
  FakeStore store{memory};
  FakeEngine engine{FakeEngine::Options()};
  FakeTokenizer tokenizer;
  FakeTemplate chat_template;
  PlainMetrics metrics;
  Rates rates;
  SessionClock clock{{}, {}};
  SessionManager sessions{store.sessions(), metrics, clock, [] {}};
  // The engine's; it lives as long as that.
  const CodecRef codec{engine.OpenCodec(kCodec, {}).value(),
                       [](const CodecHandle*) {}};
  std::atomic<int> num_wakes{0};
  TenantLedger tenants;
  FairShares shares{&tenants};
  RunQueue queue{options, metrics, rates, &tenants};
  WorkingSets working_sets{Deps(), queue, [this] { ++num_wakes; }};
  TurnFinisher finisher{Deps(), 1, queue, working_sets};
  Restorer restorer{Deps(),   options, queue,  working_sets,
                    finisher, rates,   shares, [this] { ++num_wakes; }};
  StepBuilder steps{Deps(),       options,  8192,  queue,
                    working_sets, finisher, rates, shares};
};

}  // namespace xcache::testing

#endif  // XCACHE_TESTS_UNIT_SERVER_CORE_SCHEDULER_PARTS_FIXTURE_H_
