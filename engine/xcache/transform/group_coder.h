// A group of xquant-tc in integers (int_matmul.h), so that every instruction
// set gives the same bits: from latents to coefficients, and from what is known
// before and coefficients back to latents. PAGE_FORMAT.md, "Values", has the
// arithmetic of the way back, which is the same live and resumed.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/packed.h"
#include "engine/xcache/codec.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {

class GroupCoder {
 public:
  // Of group `g` of `data`, which need not outlive it, at a level.
  static absl::StatusOr<GroupCoder> Create(const TransformData& data, size_t g,
                                           const TransformLevel::Group& level,
                                           const CodecKernels& kernels);

  size_t width() const { return width_; }        // of its latents
  size_t features() const { return features_; }  // that it is predicted from

  // What the methods below work with: memory that they leave for the next call,
  // and threads, where `parallel` is not null.
  struct Work {
    std::vector<uint8_t> integers;
    std::vector<float> predicted;
    ParallelForFn parallel;

    void ForEach(int64_t num_tasks,
                 const std::function<void(int64_t)>& fn) const;
  };

  // latents [64, width] = what `features` [64, features] predict.
  void Predict(const float* features, Work& work, float* latents) const;
  // Channels come in parts, the first of those whose coefficients are large:
  // what they leave of the latents is small enough for fewer bits.
  static constexpr size_t kNumParts = 2;
  size_t first_channel(size_t part) const { return parts_[part].first; }
  size_t num_channels(size_t part) const { return parts_[part].count; }
  size_t num_channels() const { return parts_[0].count + parts_[1].count; }

  // coefficients [64, num_channels(part)], without the step, of `latents`
  // [64, width] less those that are known.
  void Encode(size_t part, const float* latents, const float* known, Work& work,
              float* coefficients) const;
  // Adds what a part's coefficients `symbols` [num_channels(part)][64] say to
  // `latents`. `classes`: step classes, any of a token whose step is 0; its
  // symbols are 0.
  void AddCoefficients(size_t part, const int16_t* symbols,
                       const std::array<uint32_t, kRansLanes>& classes,
                       const std::array<float, kRansLanes>& steps, Work& work,
                       float* latents) const;

 private:
  // B of a product A B.
  struct Matrix {
    PackedInt integers;
    std::vector<float> scales;  // [n]
    float most = 0.0f;          // of A's integers, where A is rounded
  };
  struct Part {
    IntType type = IntType::kI16;
    size_t first = 0;
    size_t count = 0;
    Matrix encode;            // [width, count]
    Matrix decode;            // [count, width]
    int64_t most_energy = 0;  // of a row's symbols: sum of their squares
    // What is added to the units of a magnitude, 0 to 3 or more:
    // [count][kNumSteps][1 + kNumShifts].
    std::vector<int8_t> offsets;
  };

  explicit GroupCoder(const CodecKernels& kernels) : kernels_(&kernels) {}

  // Of `work.integers`.
  void Multiply(const float* row_scales, const Matrix& b, Epilogue epilogue,
                const Work& work, float* out) const;
  // Rows as round_row takes them: `less` may be null, and `scales`.
  struct Rows {
    const float* values;  // [64, k]
    const float* less;    // [64, k]
    const float* scales;  // [k]
  };
  void MultiplyRounded(const Rows& rows, const Matrix& b, Work& work,
                       float* out) const;
  absl::Status PackPrediction(const TransformGroup& from,
                              std::span<const float> latent_scales);
  absl::Status PackEncode(const TransformGroup& from,
                          std::span<const float> latent_scales, Part* part);
  absl::Status PackDecode(const TransformGroup& from,
                          std::span<const float> latent_scales, Part* part);
  static void SetOffsets(const TransformLevel::Group& level, Part* part);
  // How often each row's integers of `part` are halved.
  static std::array<int, kRansLanes> ChooseShifts(const Part& part,
                                                  const int16_t* symbols);
  // Writes `work.integers`.
  template <typename Int>
  static void SetIntegers(const Part& part, const int16_t* symbols,
                          const std::array<uint32_t, kRansLanes>& classes,
                          const std::array<int, kRansLanes>& shifts,
                          Work& work);

  const CodecKernels* kernels_;
  size_t width_ = 0, features_ = 0, rank_ = 0;
  std::vector<float> feature_scales_;         // [features]
  Matrix predict_;                            // [features, rank]
  Matrix extend_;                             // [rank, width]
  std::vector<float> inverse_latent_scales_;  // [width]
  std::array<Part, kNumParts> parts_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_
