#include "engine/xcache/transform/level_choice.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/types.h"
#include "engine/xcache/transform/context_model.h"

namespace xcache {
namespace {

// How often the way between two levels is halved.
constexpr int kHalvings = 8;

// The level in the middle of two of one profile. Steps, and what is in units of
// them, by roots, which are the same on every machine: symbols are parsed by
// them.
TransformLevel Middle(const TransformLevel& fine,
                      const TransformLevel& coarse) {
  TransformLevel out = fine;
  out.step = std::sqrt(fine.step * coarse.step);
  for (size_t i = 0; i < out.errors.size(); ++i) {
    out.errors[i] = std::sqrt(fine.errors[i] * coarse.errors[i]);
  }
  for (size_t g = 0; g < out.groups.size(); ++g) {
    TransformLevel::Group& group = out.groups[g];
    const TransformLevel::Group& other = coarse.groups[g];
    group.channels = (group.channels + other.channels + 1) / 2;
    group.expectations.resize(size_t{group.channels} * kNumSteps);
    for (size_t i = 0; i < group.expectations.size(); ++i) {
      // What the coarser level does not code is all but never coded.
      const double there = i < other.expectations.size()
                               ? other.expectations[i]
                               : kExpectationUnit / 100;
      group.expectations[i] =
          static_cast<uint32_t>(std::sqrt(group.expectations[i] * there) + 0.5);
    }
    for (size_t m = 0; m < kNumShifts; ++m) {
      for (size_t i = 0; i < group.shifts[m].size(); ++i) {
        group.shifts[m][i] = (group.shifts[m][i] + other.shifts[m][i]) / 2.0f;
      }
    }
  }
  return out;
}

}  // namespace

size_t ExpectSymbolBytes(const TransformLevel& level,
                         const SymbolTables& tables) {
  std::array<double, kNumMagnitudes> entropies{};
  for (size_t m = 0; m < entropies.size(); ++m) {
    const size_t table = m + kNumActivities / 2 * size_t{kNumMagnitudes};
    for (int v = -kMaxTableMagnitude; v <= kMaxTableMagnitude; ++v) {
      const double p = static_cast<double>(tables.range(table, v).frequency) /
                       static_cast<double>(kRansTotal);
      if (p > 0.0) entropies[m] -= p * std::log2(p);
    }
  }
  double bits = 0.0;
  for (const TransformLevel::Group& group : level.groups) {
    for (size_t c = 0; c < group.channels; ++c) {
      bits += entropies[static_cast<size_t>(
          MagnitudeOf(group.expectations[c * kNumSteps + kNumSteps / 2]))];
    }
  }
  constexpr size_t kStateBytes = 4 + 2 + 4 * kRansLanes;
  return kStateBytes +
         static_cast<size_t>(bits * static_cast<double>(kRansLanes) / 8.0);
}

absl::StatusOr<TransformLevel> LevelOfRatio(const TransformData& data,
                                            const SymbolTables& tables,
                                            int ratio) {
  const double kv_bytes = 2.0 * kRansLanes * data.shape.num_layers * 2.0 *
                          static_cast<double>(data.shape.kv_dim);
  const auto ratio_of = [&](const TransformLevel& level) {
    return kv_bytes / static_cast<double>(ExpectSymbolBytes(level, tables) +
                                          kRansLanes * sizeof(TokenId));
  };
  const double least = ratio_of(data.levels.front());
  const double most = ratio_of(data.levels.back());
  if (ratio < least || ratio > most) {
    return absl::InvalidArgumentError(absl::StrCat(
        "codec xquant-tc: option rate=", ratio,
        ": of this model's profile: ", "expected ",
        static_cast<int>(std::ceil(least)), " to ", static_cast<int>(most)));
  }
  size_t l = 0;
  while (ratio > ratio_of(data.levels[l + 1])) ++l;
  TransformLevel fine = data.levels[l], coarse = data.levels[l + 1];
  for (int i = 0; i < kHalvings; ++i) {
    TransformLevel middle = Middle(fine, coarse);
    (ratio > ratio_of(middle) ? fine : coarse) = std::move(middle);
  }
  return coarse;
}

}  // namespace xcache
