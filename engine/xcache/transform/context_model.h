// Which table each coefficient of a group of layers is coded with: by how large
// its channel is expected to be at the token's step, and by how active the
// token has been in the channels before it. Integers only, so that coder and
// decoder agree on every machine.
//
// Channels come in falling variance, in chunks of 32. Expectations are mean
// magnitudes in units of the token's step, times 2^12.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_CONTEXT_MODEL_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_CONTEXT_MODEL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/kernels/rans.h"

namespace xcache {

// Step classes of tokens: a token's step is the level's times 2^(c / 2 - 1).
inline constexpr int kNumSteps = 5;
// Levels of expected magnitude, each 2^(9/22) times the one before.
inline constexpr int kNumMagnitudes = 28;
inline constexpr int kNumActivities = 5;
inline constexpr int kNumContexts = kNumMagnitudes * kNumActivities;
// Tables beyond those of contexts: of tokens that are not coded, and of the
// step classes themselves.
inline constexpr int kZeroTable = kNumContexts;
inline constexpr int kStepTable = kNumContexts + 1;
inline constexpr int kNumTables = kNumContexts + 2;
static_assert(kNumTables <= 256);
// The class of lanes that are not coded: sinks.
inline constexpr uint32_t kUncodedClass = kRansClasses - 1;
static_assert(kNumSteps < kRansClasses);

inline constexpr int kChunkChannels = 32;
inline constexpr int kActivityChunks = 4;  // that activity looks back at
inline constexpr uint32_t kExpectationUnit = 1u << 12;

// The level of magnitude of an expectation, in [0, kNumMagnitudes).
int MagnitudeOf(uint32_t expectation);

class ContextModel {
 public:
  // `expectations` [channels][kNumSteps].
  explicit ContextModel(std::span<const uint32_t> expectations);

  int num_channels() const { return num_channels_; }
  int num_chunks() const { return static_cast<int>(limits_.size()); }
  int chunk_channels(int chunk) const;
  // Tables of a chunk's channels at activity 0: [channels][kRansClasses].
  const uint8_t* tables(int chunk) const {
    return &tables_[static_cast<size_t>(chunk) * kChunkChannels * kRansClasses];
  }

  // Walks through the chunks of one block.
  class Walk {
   public:
    // `classes` [kRansLanes]: step classes, or kUncodedClass.
    Walk(const ContextModel& model, const uint32_t* classes);
    // What to add to the tables of the chunk at hand, [kRansLanes].
    const uint32_t* offsets() const { return offsets_.data(); }
    // Goes on to the next chunk, by the symbols of this one:
    // [channels][kRansLanes].
    void Advance(const int16_t* symbols);

   private:
    void Look();

    const ContextModel& model_;
    const uint32_t* classes_;
    int chunk_ = 0;
    // Sums of magnitudes of each lane in the last chunks, and in all of them.
    std::array<std::array<int32_t, kRansLanes>, kActivityChunks> last_{};
    std::array<int32_t, kRansLanes> sum_{};
    std::array<uint32_t, kRansLanes> offsets_{};
  };

 private:
  // From which sum of magnitudes on an activity is at least 1, 2, 3, 4.
  using Limits = std::array<std::array<int32_t, kNumActivities - 1>, kNumSteps>;

  int num_channels_;
  std::vector<uint8_t> tables_;  // [channels][kRansClasses]
  std::vector<Limits> limits_;   // of each chunk
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_CONTEXT_MODEL_H_
