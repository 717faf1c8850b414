#include "engine/xcache/bit_allocation.h"

#include <array>
#include <cstddef>

namespace xcache {
namespace {

constexpr int kChannelRun = 16;
constexpr int kMaxBits = 8;

// Mean squared error of the best uniform quantizer of 0 to 8 bits for a normal
// distribution of variance 1 (J. Max, "Quantizing for minimum distortion", IRE
// Trans. IT-6, 1960, table II).
constexpr std::array<double, kMaxBits + 1> kNormalError = {
    1.0,     0.3634,  0.1188,  0.03744,  0.01154,
    0.00349, 0.00104, 0.00030, 0.0000855};

}  // namespace

std::vector<int> SpreadBits(std::span<const float> deviations, int bits) {
  struct Run {
    int size = 0;
    double variance = 0.0;  // of all its channels
    int bits = 1;
  };
  const int n = static_cast<int>(deviations.size());
  std::vector<Run> runs(
      static_cast<size_t>((n + kChannelRun - 1) / kChannelRun));
  for (int c = 0; c < n; ++c) {
    Run& run = runs[static_cast<size_t>(c / kChannelRun)];
    const double deviation = deviations[static_cast<size_t>(c)];
    ++run.size;
    run.variance += deviation * deviation;
  }
  // Greedily, a bit at a time where it takes away most error for its size: the
  // errors fall convexly, so this is the optimum of whole bits. Nothing gets
  // less than one bit: a channel's deviation in a block strays from what its
  // singular value promises, and a lost channel costs more than is saved.
  int left = n * (bits - 1);
  while (true) {
    Run* best = nullptr;
    double best_gain = -1.0;
    for (Run& run : runs) {
      if (run.bits == kMaxBits || run.size > left) continue;
      const auto b = static_cast<size_t>(run.bits);
      const double gain =
          run.variance * (kNormalError[b] - kNormalError[b + 1]) / run.size;
      if (gain > best_gain || (gain == best_gain && run.bits < best->bits)) {
        best = &run;
        best_gain = gain;
      }
    }
    if (best == nullptr) break;
    ++best->bits;
    left -= best->size;
  }
  std::vector<int> widths;
  for (const Run& run : runs) {
    widths.insert(widths.end(), static_cast<size_t>(run.size), run.bits);
  }
  return widths;
}

}  // namespace xcache
