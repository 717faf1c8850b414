// A group of xquant-tc in integers (int_matmul.h), so that every instruction
// set gives the same bits: from latents to coefficients, and from what is known
// before and coefficients back to latents. PAGE_FORMAT.md, "Values", has the
// arithmetic of the way back, which is the same live and resumed.
#ifndef XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_
#define XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_

#include <array>
#include <cstddef>
#include <cstdint>
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
  size_t channels() const { return channels_; }

  // latents [64, width] = what `features` [64, features] predict. `parallel`,
  // where it is not null, spreads the work.
  void Predict(const float* features, const ParallelForFn& parallel,
               float* latents) const;
  // coefficients [64, channels], without the step, of `latents` [64, width]
  // less those that are known.
  void Encode(const float* latents, const float* known,
              const ParallelForFn& parallel, float* coefficients) const;
  // Adds what the coefficients `symbols` [channels][64] say to `latents`.
  // `classes`: step classes, any of a token whose step is 0; its symbols are 0.
  void AddCoefficients(const int16_t* symbols,
                       const std::array<uint32_t, kRansLanes>& classes,
                       const std::array<float, kRansLanes>& steps,
                       const ParallelForFn& parallel, float* latents) const;

 private:
  // Channels whose integers have the same type.
  struct Part {
    IntType type = IntType::kI16;
    size_t first = 0;
    size_t count = 0;
    PackedInt transform;        // [count, width]
    std::vector<float> scales;  // [width]
    int64_t most_energy = 0;    // of a row's symbols: sum of their squares
    // What is added to the units of a magnitude, 0 to 3 or more:
    // [count][kNumSteps][1 + kNumShifts].
    std::vector<int8_t> offsets;
  };

  explicit GroupCoder(const CodecKernels& kernels) : kernels_(&kernels) {}

  void Multiply(const void* rows, const float* row_scales, const PackedInt& b,
                const std::vector<float>& scales, Epilogue epilogue,
                const ParallelForFn& parallel, float* out) const;
  // `rows` [64, k of b] become integers of at most `most`.
  void MultiplyRounded(const std::vector<float>& rows, float most,
                       const PackedInt& b, const std::vector<float>& scales,
                       const ParallelForFn& parallel, float* out) const;
  absl::Status PackEncode(const TransformGroup& from,
                          std::span<const float> latent_scales);
  absl::Status PackPrediction(const TransformGroup& from,
                              std::span<const float> latent_scales);
  absl::Status PackTransform(const TransformGroup& from,
                             std::span<const float> latent_scales, Part* part);
  static void SetOffsets(const TransformLevel::Group& level, Part* part);
  // How often each row's integers of `part` are halved.
  static std::array<int, kRansLanes> ChooseShifts(const Part& part,
                                                  const int16_t* symbols);
  template <typename Int>
  static void SetIntegers(const Part& part, const int16_t* symbols,
                          const std::array<uint32_t, kRansLanes>& classes,
                          const std::array<int, kRansLanes>& shifts, Int* rows);

  const CodecKernels* kernels_;
  size_t width_ = 0, features_ = 0, channels_ = 0, rank_ = 0;

  std::vector<float> feature_scales_;  // [features]
  float most_feature_ = 0.0f;          // of its integer
  PackedInt predict_;                  // [features, rank]
  std::vector<float> predict_scales_;  // [rank]
  float most_predicted_ = 0.0f;
  PackedInt extend_;                  // [rank, width]
  std::vector<float> extend_scales_;  // [width]

  std::vector<float> inverse_latent_scales_;  // [width]
  float most_residual_ = 0.0f;                // of its integer
  PackedInt encode_;                          // [width, channels]
  std::vector<float> encode_scales_;          // [channels]

  std::array<Part, 2> parts_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_XCACHE_TRANSFORM_GROUP_CODER_H_
