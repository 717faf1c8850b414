// Many clients at once, with everything that may go wrong: cancellations,
// deadlines, forks, deletions, little memory. Afterwards every session is whole
// and at its last acknowledged turn, and every answer is the right one.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

constexpr int kClients = 8;

class Client {
 public:
  Client(Harness& h, int number)
      : h_(h),
        random_(static_cast<uint32_t>(number)),
        name_("c" + std::to_string(number) + "-") {}

  void Run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      switch (Random() % 12) {
        case 0:
          Create();
          break;
        case 1:
          Fork();
          break;
        case 2:
          Delete();
          break;
        case 3:
          Whole();
          break;
        case 4:
          Pin();
          break;
        case 5:
          Flush();
          break;
        default:
          Turn();
      }
    }
  }

  // Acknowledged turns of the sessions that this client has.
  const std::map<std::string, uint64_t>& turns() const { return turns_; }

 private:
  uint32_t Random() { return static_cast<uint32_t>(random_()); }

  std::string Any() {
    if (turns_.empty()) Create();
    auto it = turns_.begin();
    std::advance(it, Random() % turns_.size());
    return it->first;
  }

  void Create() {
    const std::string id = name_ + std::to_string(next_++);
    // Few system prompts, so that they are shared.
    h_.NewSession(id, Letters(150 + Random() % 3 * 100, Random() % 3));
    turns_[id] = 0;
  }

  void Fork() {
    const std::string id = Any();
    const std::string fork = name_ + std::to_string(next_++);
    const auto info = h_.core->ForkSession(testing::Fork("t", id, fork, 0));
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->turn, turns_[id]);
    turns_[fork] = info->turn;
  }

  void Delete() {
    const std::string id = Any();
    ASSERT_TRUE(h_.core->DeleteSession("t", id).ok());
    turns_.erase(id);
    EXPECT_TRUE(absl::IsNotFound(h_.Chat(h_.Turn(id, "x"))->status()));
  }

  void Pin() {
    const std::string id = Any();
    const bool pinned = Random() % 2 == 0;
    EXPECT_EQ(h_.core->UpdateSession("t", id, Pinned(pinned))->pinned, pinned);
  }

  void Flush() { EXPECT_TRUE(h_.core->FlushSession("t", Any()).ok()); }

  void Whole() {
    ChatTurn turn = h_.Turn("", Letters(Random() % 500 + 1, Random() % 4), 8);
    const auto sink = h_.Chat(turn);
    ASSERT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->text(),
              h_.Greedy(h_.PromptOf({}, turn.messages[0].content), 8));
  }

  void Turn() {
    const std::string id = Any();
    const SessionRecord before = h_.Record(id);
    EXPECT_EQ(before.turn, turns_[id]);
    ChatTurn turn = h_.Turn(id, Letters(Random() % 60 + 1, Random()),
                            static_cast<int64_t>(Random() % 30 + 1));
    turn.expected_turn = turns_[id];
    turn.options.no_cache = Random() % 16 == 0;
    turn.cancellation = std::make_shared<Cancellation>();
    const bool cancel = Random() % 4 == 0;
    const bool deadline = Random() % 8 == 0;
    if (deadline) {
      turn.deadline = std::chrono::steady_clock::now() +
                      std::chrono::microseconds(Random() % 3000);
    }
    const auto sink = h_.StartChat(turn);
    if (cancel) {
      std::this_thread::sleep_for(std::chrono::microseconds(Random() % 2000));
      turn.cancellation->Cancel();
    }
    sink->Wait();
    const absl::Status status = sink->status();
    const std::string expected =
        h_.Greedy(h_.PromptOf(before, turn.messages[0].content),
                  static_cast<int>(turn.options.max_tokens));
    if (status.ok()) {
      EXPECT_EQ(sink->text(), expected);
      EXPECT_EQ(sink->final().durability, Durability::kLocal);
      EXPECT_EQ(sink->final().turn, turns_[id] + 1);
      ++turns_[id];
      EXPECT_EQ(h_.Record(id).turn, turns_[id]);
    } else {
      EXPECT_TRUE((cancel && absl::IsCancelled(status)) ||
                  (deadline && absl::IsDeadlineExceeded(status)))
          << status;
      EXPECT_TRUE(expected.starts_with(sink->text()));
      SessionRecord after = h_.Record(id);
      after.pinned = before.pinned;
      EXPECT_EQ(after, before);
    }
  }

  Harness& h_;
  std::mt19937 random_;
  const std::string name_;
  int next_ = 0;
  std::map<std::string, uint64_t> turns_;
};

void RunClients(Harness& h, std::vector<Client>& clients, int operations) {
  std::vector<std::thread> threads;
  for (Client& client : clients) {
    threads.emplace_back([&client, operations] { client.Run(operations); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(h.core->Snapshot().running, 0u);
  EXPECT_EQ(h.core->Snapshot().waiting, 0u);
}

void RunStress(int64_t memory_bytes, int operations, bool preempts,
               int window = 0) {
  Harness::Options options;
  options.memory_bytes = memory_bytes;
  options.engine.window = window;
  options.engine.step_delay = std::chrono::microseconds(50);
  options.core.restore = ServerCoreOptions::Restore::kAlways;
  options.core.max_running = 6;
  options.core.step_rows = 32;
  // Drafts, some of them right.
  options.core.speculate = true;
  options.core.draft = [random = std::make_shared<std::mt19937>(1)](
                           std::span<const TokenId> context, size_t most) {
    std::vector<TokenId> draft = FakeGreedy(
        {}, kCodec, {context.begin(), context.end()},
        static_cast<int>(std::min(most, (*random)() % size_t{8})), false);
    if (!draft.empty() && (*random)() % 2 == 0) {
      draft[(*random)() % draft.size()] = 'q';
    }
    return draft;
  };
  Harness h(options);
  std::vector<Client> clients;
  for (int i = 0; i < kClients; ++i) clients.emplace_back(h, i);
  for (int round = 0; round < 3; ++round) {
    RunClients(h, clients, operations);
    EXPECT_LE(h.engine->peak_bytes(), memory_bytes);
    EXPECT_GT(h.Count(CoreCounter::kAcceptedTokens), 0u);
    EXPECT_GT(h.Count(CoreCounter::kDraftedTokens),
              h.Count(CoreCounter::kAcceptedTokens));
    if (preempts) {
      EXPECT_GT(h.Count(CoreCounter::kPreemptions) +
                    h.Count(CoreCounter::kSequenceEvictions),
                0u);
    }
    if (window == 0) {
      EXPECT_EQ(h.engine->partial_remats(), 0);
    } else if (round > 0) {
      EXPECT_GT(h.engine->partial_remats(), 0);
    }
    h.Restart();
    EXPECT_EQ(h.memory.used_bytes(), 0);
    size_t num_sessions = 0;
    for (const Client& client : clients) {
      num_sessions += client.turns().size();
      for (const auto& [id, turn] : client.turns()) {
        const SessionRecord record = h.Record(id);
        EXPECT_EQ(record.turn, turn);
        EXPECT_EQ(record.tokens.size(), record.messages.empty()
                                            ? 0
                                            : record.messages.back().token_end);
        EXPECT_LE(record.page_keys.size(), record.tokens.size() / 64);
      }
    }
    EXPECT_EQ(h.store.sessions().All().size(), num_sessions);
  }
}

TEST(CoreStressTest, EverySessionIsWholeAndEveryAnswerRight) {
  RunStress(100 << 20, 60, false);
}

TEST(CoreStressTest, AlsoWithLittleMemory) { RunStress(60000, 40, true); }

TEST(CoreStressTest, AlsoWhereAttentionSlides) {
  RunStress(100 << 20, 40, false, /*window=*/70);
}

}  // namespace
}  // namespace xcache::testing
