#include "cachestore/shared/circuit_breaker.h"

#include "gtest/gtest.h"

namespace xcache {
namespace {

using std::chrono::milliseconds;
using State = CircuitBreaker::State;

class CircuitBreakerTest : public ::testing::Test {
 protected:
  // A call that is let through and ends so.
  void Call(const absl::Status& status) {
    const auto ticket = breaker_.Begin(now_);
    ASSERT_TRUE(ticket.has_value());
    breaker_.End(*ticket, status, now_);
  }
  void Open() {
    for (int i = 0; i < 3; ++i) Call(absl::UnavailableError("away"));
    ASSERT_EQ(breaker_.state(), State::kOpen);
  }

  CircuitBreaker breaker_{{.max_failures = 3,
                           .first_pause = milliseconds(500),
                           .longest_pause = milliseconds(5000)}};
  CircuitBreaker::Clock::time_point now_ = CircuitBreaker::Clock::now();
};

TEST_F(CircuitBreakerTest, OpensAfterFailuresInARow) {
  for (int i = 0; i < 10; ++i) {
    Call(absl::UnavailableError("away"));
    Call(absl::DeadlineExceededError("away"));
    // There is none, and another was faster: the store answers.
    Call(i % 2 == 0 ? absl::NotFoundError("no") : absl::AbortedError("no"));
  }
  EXPECT_EQ(breaker_.state(), State::kClosed);
  Call(absl::UnavailableError("away"));
  Call(absl::DeadlineExceededError("away"));
  EXPECT_EQ(breaker_.num_opened(), 0);
  Call(absl::ResourceExhaustedError("slow down"));
  EXPECT_EQ(breaker_.state(), State::kOpen);
  EXPECT_EQ(breaker_.num_opened(), 1);
  EXPECT_FALSE(breaker_.Begin(now_).has_value());
}

TEST_F(CircuitBreakerTest, OneCallFindsOutWhetherItIsBack) {
  Open();
  EXPECT_FALSE(breaker_.Begin(now_ + milliseconds(374)).has_value());
  now_ += milliseconds(501);
  const auto probe = breaker_.Begin(now_);
  ASSERT_TRUE(probe.has_value());
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  EXPECT_FALSE(breaker_.Begin(now_).has_value());
  breaker_.End(*probe, absl::OkStatus(), now_);
  EXPECT_EQ(breaker_.state(), State::kClosed);
  EXPECT_TRUE(breaker_.Begin(now_).has_value());
}

TEST_F(CircuitBreakerTest, PausesDoubleUpToTheLongest) {
  Open();
  for (const int64_t pause : {500, 1000, 2000, 4000, 5000, 5000, 5000}) {
    EXPECT_FALSE(
        breaker_.Begin(now_ + milliseconds(pause * 3 / 4 - 1)).has_value());
    now_ += milliseconds(pause + 1);
    Call(absl::UnavailableError("away"));
  }
  EXPECT_EQ(breaker_.num_opened(), 1);
  // Once it was there it begins with the first pause again.
  now_ += milliseconds(5001);
  Call(absl::OkStatus());
  Open();
  now_ += milliseconds(501);
  EXPECT_TRUE(breaker_.Begin(now_).has_value());
  EXPECT_EQ(breaker_.num_opened(), 2);
}

TEST_F(CircuitBreakerTest, LateAnswersOfEarlierCallsDecideNothing) {
  const auto early = breaker_.Begin(now_);
  const auto earlier = breaker_.Begin(now_);
  Open();
  breaker_.End(*early, absl::OkStatus(), now_);
  EXPECT_EQ(breaker_.state(), State::kOpen);
  now_ += milliseconds(501);
  const auto probe = breaker_.Begin(now_);
  breaker_.End(*earlier, absl::UnavailableError("late"), now_);
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  breaker_.End(*probe, absl::OkStatus(), now_);
  EXPECT_EQ(breaker_.state(), State::kClosed);
}

TEST_F(CircuitBreakerTest, ACancelledProbeLeavesItToTheNext) {
  Open();
  now_ += milliseconds(501);
  Call(absl::CancelledError("the server stops"));
  EXPECT_EQ(breaker_.state(), State::kOpen);
  Call(absl::OkStatus());
  EXPECT_EQ(breaker_.state(), State::kClosed);
}

}  // namespace
}  // namespace xcache
