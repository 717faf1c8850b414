// When sessions expire, and when they do not: rule R11.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/unit/server/core/core_harness.h"

namespace xcache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kDay = 24 * 3600 * 1000;
constexpr int64_t kNow = 20000 * kDay;

struct Clocks {
  std::atomic<int64_t> wall_ms{kNow};
  std::atomic<int64_t> monotonic_ms{5000};
  void Pass(int64_t ms) {
    monotonic_ms += ms;
    wall_ms += ms;
  }
};

class CoreExpiryTest : public ::testing::Test {
 protected:
  explicit CoreExpiryTest(milliseconds sweep_interval = std::chrono::hours(1)) {
    Harness::Options options;
    options.core.wall_clock_ms = [this] { return clocks_.wall_ms.load(); };
    options.core.monotonic_clock_ms = [this] {
      return clocks_.monotonic_ms.load();
    };
    options.core.default_ttl = std::chrono::hours(24 * 7);
    options.core.sweep_interval = sweep_interval;
    h_ = std::make_unique<Harness>(options);
  }

  std::vector<std::string> Listed(int page_size = 0) {
    std::vector<std::string> ids;
    std::string token;
    do {
      const auto page = h_->core->ListSessions("t", page_size, token);
      EXPECT_TRUE(page.ok()) << page.status();
      for (const SessionInfo& info : page->sessions) ids.push_back(info.id);
      token = page->next_page_token;
    } while (!token.empty());
    return ids;
  }
  int64_t ExpireMs(const std::string& id) {
    return h_->core->GetSession("t", id, false)->expire_time_us / 1000;
  }

  Clocks clocks_;
  std::unique_ptr<Harness> h_;
};

// Sweeps all the time.
class CoreSweepTest : public CoreExpiryTest {
 protected:
  CoreSweepTest() : CoreExpiryTest(milliseconds(1)) {}
  // Until the sweeper has been there, whatever it found.
  void Sweep() {
    const int64_t sweeps = h_->store.sessions().sweeps();
    while (h_->store.sessions().sweeps() < sweeps + 2) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
};

TEST_F(CoreSweepTest, AClockEightDaysAheadDeletesNothing) {
  h_->NewSession("s");
  clocks_.wall_ms += 8 * kDay;
  Sweep();
  EXPECT_EQ(h_->store.sessions().All().size(), 1u);
  EXPECT_TRUE(h_->core->GetSession("t", "s", false).ok());
  EXPECT_THAT(Listed(), ElementsAre("s"));
  EXPECT_TRUE(absl::IsAlreadyExists(
      h_->core->CreateSession(Harness::Named("s")).status()));
  EXPECT_NEAR(h_->core->Snapshot().clock_jump_seconds, 8 * 86400.0, 1.0);
  // Nor after a restart, with the clock as it is.
  h_->Restart();
  Sweep();
  EXPECT_TRUE(h_->core->GetSession("t", "s", false).ok());
  clocks_.wall_ms -= 8 * kDay;
  EXPECT_EQ(h_->core->Snapshot().clock_jump_seconds, 0.0);
  // A clock that stays so for a day is right.
  clocks_.wall_ms += 8 * kDay;
  Sweep();
  clocks_.Pass(kDay);
  Sweep();
  EXPECT_TRUE(h_->store.sessions().All().empty());
}

TEST_F(CoreSweepTest, WhatExpiresIsLogged) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  h_->NewSession("gone");
  h_->NewSession("pinned");
  ASSERT_TRUE(h_->core->UpdateSession("t", "pinned", Pinned(true)).ok());
  clocks_.Pass(7 * kDay);
  while (h_->Count(CoreCounter::kSessionsExpired) == 0) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  h_->core.reset();
  spdlog::set_default_logger(before);
  EXPECT_THAT(log.str(), HasSubstr("session expired id=gone tenant=t "
                                   "expire_time=2024-10-11T00:00:00Z "
                                   "last_used=2024-10-04T00:00:00Z"));
  EXPECT_THAT(log.str(), ::testing::Not(HasSubstr("pinned")));
}

TEST_F(CoreExpiryTest, ATurnAtAClockInThePastExpiresNoEarlier) {
  h_->NewSession("s");
  clocks_.wall_ms -= 30 * kDay;
  clocks_.Pass(1000);
  ASSERT_TRUE(h_->Chat(h_->Turn("s", "hi"))->status().ok());
  EXPECT_EQ(ExpireMs("s"), kNow + 1000 + 7 * kDay);
  // A start at such a clock goes on from the newest session.
  h_->Restart();
  ASSERT_TRUE(h_->Chat(h_->Turn("s", "hi"))->status().ok());
  EXPECT_EQ(ExpireMs("s"), kNow + 1000 + 7 * kDay);
}

TEST_F(CoreExpiryTest, ExpiredSessionsLeaveTheListWhenTheyLeaveGet) {
  for (const char* id : {"a", "b", "c", "d"}) {
    CreateSessionOptions create = Harness::Named(id);
    if (*id != 'b') create.ttl = milliseconds(500);
    ASSERT_TRUE(h_->core->CreateSession(create).ok());
  }
  clocks_.Pass(499);
  EXPECT_EQ(Listed(1).size(), 4u);
  clocks_.Pass(1);
  EXPECT_TRUE(absl::IsNotFound(h_->core->GetSession("t", "a", false).status()));
  for (int page_size : {0, 1, 2}) {
    EXPECT_THAT(Listed(page_size), ElementsAre("b")) << page_size;
  }
}

TEST_F(CoreExpiryTest, WhatCannotBeLookedUpIsNotNew) {
  h_->store.sessions().SetFindStatus(absl::UnavailableError("I/O error"));
  EXPECT_TRUE(absl::IsUnavailable(
      h_->core->CreateSession(Harness::Named("s")).status()));
  EXPECT_THAT(h_->store.sessions().All(), IsEmpty());
}

}  // namespace
}  // namespace xcache::testing
