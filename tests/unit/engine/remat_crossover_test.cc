// Where two policies' times cross: known lines, and what measuring does to
// them.
#include "engine/remat_crossover.h"

#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace xcache {
namespace {

// A policy's line: milliseconds without cached tokens, microseconds for each.
struct Cost {
  double ms = 0.0;
  double us_per_token = 0.0;
  double At(int64_t n) const {
    return ms * 1e-3 + us_per_token * 1e-6 * static_cast<double>(n);
  }
};

std::vector<StepTime> Times(const Cost& resume, const Cost& step,
                            std::vector<int64_t> lengths = {512, 1024, 2048,
                                                            4096}) {
  std::vector<StepTime> times;
  for (int64_t n : lengths) times.push_back({n, resume.At(n), step.At(n)});
  return times;
}

double Crossing(const std::vector<StepTime>& times) {
  return static_cast<double>(FindRematCrossover(times));
}

TEST(RematCrossoverTest, LinesThatCross) {
  // Both are 12 ms + 2 us * 2000 there.
  EXPECT_NEAR(Crossing(Times({14.0, 1.0}, {12.0, 2.0})), 2000, 1);
  // Beyond what was measured, also.
  EXPECT_NEAR(Crossing(Times({14.0, 1.0}, {12.0, 1.1})), 20000, 1);
  // Two lengths are a line.
  EXPECT_NEAR(Crossing(Times({14.0, 1.0}, {12.0, 2.0}, {64, 128})), 2000, 1);
  // In any order, more than once.
  EXPECT_NEAR(Crossing(Times({14.0, 1.0}, {12.0, 2.0}, {128, 64, 128, 256})),
              2000, 1);
}

TEST(RematCrossoverTest, TokensBelowItAreThoseThatStepIsFasterFor) {
  const Cost resume{14.0, 1.0}, step{12.0, 1.7};
  const int64_t n = FindRematCrossover(Times(resume, step));
  EXPECT_LT(step.At(n - 1), resume.At(n - 1));
  EXPECT_GE(step.At(n + 1), resume.At(n + 1));
}

TEST(RematCrossoverTest, SlowerFromTheStartIsResume) {
  EXPECT_EQ(FindRematCrossover(Times({12.0, 1.0}, {12.5, 2.0})), 0);
  EXPECT_EQ(FindRematCrossover(Times({12.0, 1.0}, {12.5, 1.0})), 0);
  // Slower at first, faster later.
  EXPECT_EQ(FindRematCrossover(Times({12.0, 2.0}, {14.0, 1.0})), 0);
  // Faster without cached tokens, but not at what was measured.
  EXPECT_EQ(FindRematCrossover(Times({12.0, 1.0}, {11.9, 2.0})), 0);
}

TEST(RematCrossoverTest, EqualTimesAreResume) {
  EXPECT_EQ(FindRematCrossover(Times({12.0, 1.0}, {12.0, 1.0})), 0);
  EXPECT_EQ(FindRematCrossover(Times({12.0, 0.0}, {12.0, 0.0})), 0);
}

TEST(RematCrossoverTest, FasterByAConstantNeverCrosses) {
  EXPECT_EQ(FindRematCrossover(Times({14.0, 1.0}, {12.0, 1.0})),
            kNoRematCrossover);
  EXPECT_EQ(FindRematCrossover(Times({14.0, 2.0}, {12.0, 1.0})),
            kNoRematCrossover);
  // So flat that no context gets there.
  EXPECT_EQ(FindRematCrossover(Times({14.0, 0.0}, {12.0, 1e-13})),
            kNoRematCrossover);
}

TEST(RematCrossoverTest, LinesThatFallAreFlat) {
  // Resume is 14 ms less noise: 12 ms + 1 us * n crosses its mean.
  const std::vector<StepTime> times = {{1000, 14.02e-3, 12.5e-3},
                                       {2000, 14.00e-3, 13.0e-3},
                                       {3000, 13.98e-3, 13.5e-3}};
  EXPECT_NEAR(Crossing(times), 4000, 1);
  // Both fall: two flat lines, one above the other.
  EXPECT_EQ(FindRematCrossover(Times({14.0, -0.1}, {12.0, -0.05})),
            kNoRematCrossover);
  EXPECT_EQ(FindRematCrossover(Times({12.0, -0.1}, {14.0, -0.05})), 0);
}

TEST(RematCrossoverTest, ADifferenceWithinTheNoiseIsNone) {
  std::mt19937 gen(3);
  std::normal_distribution<double> noise(0.0, 1e-4);
  for (int i = 0; i < 50; ++i) {
    // Off by a tenth of a millisecond.
    std::vector<StepTime> times = Times({14.0, 1.0}, {12.0, 2.0});
    for (StepTime& time : times) time.step_seconds += noise(gen);
    EXPECT_NEAR(Crossing(times), 2000, 400) << i;
  }
  // Faster at every length, but by less than the times scatter.
  const std::vector<StepTime> scattered = {{1000, 12.0e-3, 11.9e-3},
                                           {2000, 12.0e-3, 10.0e-3},
                                           {3000, 12.0e-3, 11.9e-3},
                                           {4000, 12.0e-3, 10.0e-3}};
  EXPECT_EQ(FindRematCrossover(scattered), 0);
}

TEST(RematCrossoverTest, WhatIsNoMeasurementIsResume) {
  EXPECT_EQ(FindRematCrossover({}), 0);
  EXPECT_EQ(FindRematCrossover(Times({14.0, 1.0}, {12.0, 2.0}, {512})), 0);
  EXPECT_EQ(FindRematCrossover(Times({14.0, 1.0}, {12.0, 2.0}, {512, 512})), 0);
  for (double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    std::vector<StepTime> times = Times({14.0, 1.0}, {12.0, 2.0});
    times[1].step_seconds = bad;
    EXPECT_EQ(FindRematCrossover(times), 0) << bad;
    std::swap(times[1].step_seconds, times[1].resume_seconds);
    EXPECT_EQ(FindRematCrossover(times), 0) << bad;
  }
}

}  // namespace
}  // namespace xcache
