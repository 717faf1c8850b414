#include "engine/remat_crossover.h"

#include <algorithm>
#include <cmath>

namespace xcache {
namespace {

struct Line {
  double at_zero = 0.0;
  double slope = 0.0;
  double At(double n) const { return at_zero + slope * n; }
};

// REQUIRES: two different lengths at least.
Line FitLine(std::span<const StepTime> times, double StepTime::*seconds) {
  const auto count = static_cast<double>(times.size());
  double mean_n = 0.0, mean_t = 0.0;
  for (const StepTime& time : times) {
    mean_n += static_cast<double>(time.cached_tokens) / count;
    mean_t += time.*seconds / count;
  }
  double nn = 0.0, nt = 0.0;
  for (const StepTime& time : times) {
    const double n = static_cast<double>(time.cached_tokens) - mean_n;
    nn += n * n;
    nt += n * (time.*seconds - mean_t);
  }
  const double slope = std::max(nt / nn, 0.0);
  return {mean_t - slope * mean_n, slope};
}

bool IsTime(double seconds) { return std::isfinite(seconds) && seconds > 0.0; }

}  // namespace

int64_t FindRematCrossover(std::span<const StepTime> times) {
  double first = std::numeric_limits<double>::infinity(), last = -first;
  for (const StepTime& time : times) {
    if (!IsTime(time.resume_seconds) || !IsTime(time.step_seconds)) return 0;
    const auto n = static_cast<double>(time.cached_tokens);
    first = std::min(first, n);
    last = std::max(last, n);
  }
  if (!(first < last)) return 0;
  const Line resume = FitLine(times, &StepTime::resume_seconds);
  const Line step = FitLine(times, &StepTime::step_seconds);

  // How far differences are from the difference of the lines, root mean square;
  // a line takes two of the times for itself.
  double squares = 0.0;
  for (const StepTime& time : times) {
    const auto n = static_cast<double>(time.cached_tokens);
    const double off =
        (time.step_seconds - time.resume_seconds) - (step.At(n) - resume.At(n));
    squares += off * off;
  }
  const double noise = std::sqrt(
      squares / std::max(1.0, static_cast<double>(times.size()) - 2.0));

  if (resume.At(first) - step.At(first) <= noise) return 0;
  const double slope = step.slope - resume.slope;
  if (slope * (last - first) <= noise) return kNoRematCrossover;
  const double crossing = (resume.at_zero - step.at_zero) / slope;
  // Doubles hold integers up to 2^53; contexts are far below.
  if (crossing >= 0x1p53) return kNoRematCrossover;
  return static_cast<int64_t>(std::ceil(crossing));
}

}  // namespace xcache
