#include "engine/xcache/transform/context_model.h"

#include <algorithm>
#include <cstdlib>

namespace xcache {
namespace {

// round(2^12 2^(-6.5 + 9/22 i)): where levels of magnitude part.
constexpr std::array<uint32_t, kNumMagnitudes - 1> kMagnitudeEdges = {
    45,   60,   80,    106,   141,   187,   248,   329,   437,
    581,  771,  1024,  1360,  1805,  2397,  3183,  4227,  5613,
    7453, 9897, 13141, 17450, 23170, 30767, 40854, 54248, 72033};

// Activity is (found + 8) / (expected + 8), the 8 standing for what is not
// known yet; round(2^16 2^t), t = -.35, -.12, .1, .35: where activities part.
constexpr uint64_t kPrior = 8;
constexpr std::array<uint64_t, kNumActivities - 1> kActivityEdges = {
    51419, 60305, 70240, 83530};
// More than any sum of magnitudes.
constexpr uint64_t kMaxLimit = uint64_t{1} << 30;

}  // namespace

int MagnitudeOf(uint32_t expectation) {
  return static_cast<int>(std::upper_bound(kMagnitudeEdges.begin(),
                                           kMagnitudeEdges.end(), expectation) -
                          kMagnitudeEdges.begin());
}

ContextModel::ContextModel(std::span<const uint32_t> expectations)
    : num_channels_(static_cast<int>(expectations.size() / kNumSteps)),
      tables_(static_cast<size_t>(num_channels_) * kRansClasses, kZeroTable) {
  using Sums = std::array<uint64_t, kNumSteps>;
  const auto num_chunks = static_cast<size_t>(
      (num_channels_ + kChunkChannels - 1) / kChunkChannels);
  std::vector<Sums> sums(num_chunks);  // of expectations
  for (size_t c = 0; c < static_cast<size_t>(num_channels_); ++c) {
    for (size_t s = 0; s < kNumSteps; ++s) {
      const uint32_t expectation = expectations[c * kNumSteps + s];
      tables_[c * kRansClasses + s] =
          static_cast<uint8_t>(MagnitudeOf(expectation));
      sums[c / kChunkChannels][s] += expectation;
    }
  }
  limits_.resize(num_chunks);
  for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
    for (size_t s = 0; s < kNumSteps; ++s) {
      uint64_t expected = kPrior * kExpectationUnit;
      for (size_t back = 1; back <= kActivityChunks && back <= chunk; ++back) {
        expected += sums[chunk - back][s];
      }
      for (size_t a = 0; a < kActivityEdges.size(); ++a) {
        // found + 8 > edge (expected + 8)
        const uint64_t limit =
            kActivityEdges[a] * expected / (65536 * kExpectationUnit) + 1;
        limits_[chunk][s][a] = static_cast<int32_t>(
            limit > kPrior ? std::min(limit - kPrior, kMaxLimit) : 0);
      }
    }
  }
}

int ContextModel::chunk_channels(int chunk) const {
  return std::min(kChunkChannels, num_channels_ - chunk * kChunkChannels);
}

ContextModel::Walk::Walk(const ContextModel& model, const uint32_t* classes)
    : model_(model), classes_(classes) {
  Look();
}

void ContextModel::Walk::Look() {
  if (chunk_ >= model_.num_chunks()) return;
  const Limits& limits = model_.limits_[static_cast<size_t>(chunk_)];
  for (size_t lane = 0; lane < kRansLanes; ++lane) {
    const uint32_t step = classes_[lane];
    uint32_t activity = 0;
    if (step < kNumSteps) {
      for (int32_t limit : limits[step]) activity += sum_[lane] >= limit;
    }
    offsets_[lane] = activity * kNumMagnitudes;
  }
}

void ContextModel::Walk::Advance(const int16_t* symbols) {
  std::array<int32_t, kRansLanes> found{};
  for (int c = 0; c < model_.chunk_channels(chunk_); ++c) {
    for (size_t lane = 0; lane < kRansLanes; ++lane) {
      found[lane] += std::abs(static_cast<int32_t>(symbols[lane]));
    }
    symbols += kRansLanes;
  }
  auto& oldest = last_[static_cast<size_t>(chunk_ % kActivityChunks)];
  for (size_t lane = 0; lane < kRansLanes; ++lane) {
    sum_[lane] += found[lane] - oldest[lane];
  }
  oldest = found;
  ++chunk_;
  Look();
}

}  // namespace xcache
