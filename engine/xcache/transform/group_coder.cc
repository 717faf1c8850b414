#include "engine/xcache/transform/group_coder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"

namespace xcache {
namespace {

constexpr size_t kRows = kRansLanes;

// A channel whose coefficients are expected to have this many steps, in the
// middle class, has integers of 16 bits.
constexpr uint32_t kLargeExpectation = 2 * kExpectationUnit;

// How coefficients and the elements of their channels become integers.
struct Precision {
  int unit;            // of a step: what that rounds is small beside a step
  int32_t most_steps;  // of a symbol; more are halved
  float most_element;
};
constexpr Precision kPrecision16 = {32, 1022, 2047.0f};
constexpr Precision kPrecision8 = {8, 14, 127.0f};
constexpr const Precision& PrecisionOf(IntType type) {
  return type == IntType::kI16 ? kPrecision16 : kPrecision8;
}
// Sums stay below 2^31: half of that, for what rounding may add.
constexpr double kMostSum = 0x1p30;

// The largest integers of two factors of `k` products, whose sum is below 2^31.
struct Most {
  explicit Most(size_t k) {
    const int bits = 31 - static_cast<int>(std::bit_width(k));
    value = static_cast<float>((1 << (bits - bits / 2)) - 1);
    element = static_cast<float>((1 << (bits / 2)) - 1);
  }
  float value, element;
};

// To the nearest, away from 0 where two are equally near.
template <typename Int>
Int Nearest(float x) {
  return static_cast<Int>(x + (x < 0.0f ? -0.5f : 0.5f));
}

// An element of a matrix; 0 where a profile's numbers are beyond all measure.
int16_t Element(float x) {
  return std::abs(x) <= 32767.0f ? Nearest<int16_t>(x) : int16_t{0};
}

float LargestOf(const std::vector<float>& values) {
  float most = 0.0f;
  for (float v : values) most = std::max(most, std::abs(v));
  return most;
}

// Row `row` of `from`, without its scale.
std::vector<float> RowOf(const HalfRows& from, size_t row) {
  std::vector<float> out(from.cols);
  GetKernels(Isa::kRef).from_f16(&from.values[row * from.cols],
                                 static_cast<int>(from.cols), out.data());
  return out;
}

// 1 / x, or 0 where there is none.
float InverseOf(float x) { return x > 0x1p-100f ? 1.0f / x : 0.0f; }

}  // namespace

absl::StatusOr<GroupCoder> GroupCoder::Create(
    const TransformData& data, size_t g, const TransformLevel::Group& level,
    const CodecKernels& kernels) {
  const TransformGroup& from = data.groups[g];
  GroupCoder out(kernels);
  std::vector<float> scales;
  for (uint32_t j = 0; j < from.num_layers; ++j) {
    const std::vector<float>& of = data.layers[from.first_layer - 1 + j].scales;
    scales.insert(scales.end(), of.begin(), of.end());
  }
  out.width_ = scales.size();
  out.features_ = NumFeatures(data, g);
  out.rank_ = from.rank;
  out.channels_ = level.channels;
  XC_RETURN_IF_ERROR(out.PackPrediction(from, scales));
  XC_RETURN_IF_ERROR(out.PackEncode(from, scales));
  size_t large = 0;
  while (large < level.channels &&
         level.expectations[large * kNumSteps + kNumSteps / 2] >=
             kLargeExpectation) {
    ++large;
  }
  auto& [of_16, of_8] = out.parts_;
  of_16.count = large;
  of_8.type = IntType::kI8;
  of_8.first = large;
  of_8.count = out.channels_ - large;
  for (Part& part : out.parts_) {
    XC_RETURN_IF_ERROR(out.PackTransform(from, scales, &part));
    out.SetOffsets(level, &part);
  }
  return out;
}

// Features are scaled so that an error of each weighs alike in what is
// predicted, predicted values so that D's elements are all used up to the
// largest; latents are in units of what costs alike.
absl::Status GroupCoder::PackPrediction(const TransformGroup& from,
                                        std::span<const float> latent_scales) {
  const Most extend(rank_), predict(features_);
  most_predicted_ = extend.value;
  most_feature_ = predict.value;
  std::vector<float> largest(rank_), weights(rank_);
  const auto extend_row = [&](size_t i) {
    std::vector<float> row = RowOf(from.decode, i);
    for (size_t j = 0; j < width_; ++j) row[j] /= latent_scales[j];
    return row;
  };
  for (size_t i = 0; i < rank_; ++i) {
    const std::vector<float> row = extend_row(i);
    largest[i] = LargestOf(row);
    float square = 0.0f;
    for (float v : row) square += v * v;
    weights[i] =
        from.predict.scales[i] * from.decode.scales[i] * std::sqrt(square);
  }
  XC_ASSIGN_OR_RETURN(
      extend_,
      PackedInt::FromRows(
          static_cast<int>(rank_), static_cast<int>(width_), IntType::kI16,
          [&](int i, int16_t* to) {
            const std::vector<float> row = extend_row(static_cast<size_t>(i));
            const float scale =
                extend.element * InverseOf(largest[static_cast<size_t>(i)]);
            for (float v : row) *to++ = Element(v * scale);
          }));
  extend_scales_.assign(latent_scales.begin(), latent_scales.end());
  for (float& scale : extend_scales_) scale /= extend.element;

  std::vector<std::vector<float>> rows;
  feature_scales_.assign(features_, 0.0f);
  for (size_t i = 0; i < rank_; ++i) {
    const std::vector<float>& row = rows.emplace_back(RowOf(from.predict, i));
    for (size_t j = 0; j < features_; ++j) {
      const float v = row[j] * weights[i];
      feature_scales_[j] += v * v;
    }
  }
  for (float& scale : feature_scales_) scale = std::sqrt(scale);
  predict_scales_.resize(rank_);
  std::vector<float> to_elements(rank_);
  for (size_t i = 0; i < rank_; ++i) {
    for (size_t j = 0; j < features_; ++j) {
      rows[i][j] *= InverseOf(feature_scales_[j]);
    }
    const float most = LargestOf(rows[i]);
    to_elements[i] = predict.element * InverseOf(most);
    predict_scales_[i] = from.predict.scales[i] * from.decode.scales[i] *
                         (most / predict.element) * largest[i];
  }
  XC_ASSIGN_OR_RETURN(
      predict_, PackedInt::FromColumns(static_cast<int>(features_),
                                       static_cast<int>(rank_), IntType::kI16,
                                       [&](int i, int16_t* to) {
                                         const auto at = static_cast<size_t>(i);
                                         for (float v : rows[at])
                                           *to++ = Element(v * to_elements[at]);
                                       }));
  return absl::OkStatus();
}

// Without the columns of what is predicted: that is known as it comes back.
absl::Status GroupCoder::PackEncode(const TransformGroup& from,
                                    std::span<const float> latent_scales) {
  const Most encode(width_);
  most_residual_ = encode.value;
  for (float scale : latent_scales) {
    inverse_latent_scales_.push_back(InverseOf(scale));
  }
  encode_scales_.resize(channels_);
  XC_ASSIGN_OR_RETURN(
      encode_, PackedInt::FromColumns(
                   static_cast<int>(width_), static_cast<int>(channels_),
                   IntType::kI16, [&](int c, int16_t* to) {
                     const auto at = static_cast<size_t>(c);
                     std::vector<float> row = RowOf(from.encode, at);
                     row.resize(width_);
                     for (size_t j = 0; j < width_; ++j)
                       row[j] *= latent_scales[j];
                     const float most = LargestOf(row);
                     encode_scales_[at] =
                         from.encode.scales[at] * (most / encode.element);
                     const float to_element = encode.element * InverseOf(most);
                     for (float v : row) *to++ = Element(v * to_element);
                   }));
  return absl::OkStatus();
}

absl::Status GroupCoder::PackTransform(const TransformGroup& from,
                                       std::span<const float> latent_scales,
                                       Part* part) {
  if (part->count == 0) return absl::OkStatus();
  const Precision& precision = PrecisionOf(part->type);
  const auto row_of = [&](size_t c) {
    const size_t at = rank_ + part->first + c;
    std::vector<float> row = RowOf(from.decode, at);
    for (size_t j = 0; j < width_; ++j) {
      row[j] = row[j] * from.decode.scales[at] / latent_scales[j];
    }
    return row;
  };
  std::vector<float> largest(width_), to_elements(width_);
  for (size_t c = 0; c < part->count; ++c) {
    const std::vector<float> row = row_of(c);
    for (size_t j = 0; j < width_; ++j) {
      largest[j] = std::max(largest[j], std::abs(row[j]));
    }
  }
  part->scales.resize(width_);
  for (size_t j = 0; j < width_; ++j) {
    to_elements[j] = precision.most_element * InverseOf(largest[j]);
    part->scales[j] =
        latent_scales[j] * largest[j] /
        (precision.most_element * static_cast<float>(precision.unit));
  }
  std::vector<double> energies(width_);
  XC_ASSIGN_OR_RETURN(
      part->transform,
      PackedInt::FromRows(
          static_cast<int>(part->count), static_cast<int>(width_), part->type,
          [&](int c, int16_t* to) {
            const std::vector<float> row = row_of(static_cast<size_t>(c));
            for (size_t j = 0; j < width_; ++j) {
              to[j] = Element(row[j] * to_elements[j]);
              energies[j] += static_cast<double>(to[j]) * to[j];
            }
          }));
  // By Cauchy and Schwarz a sum is at most the root of the energies of a row of
  // integers and of a column; an integer is at most 2 units |q|.
  const double most =
      std::max(1.0, *std::max_element(energies.begin(), energies.end()));
  part->most_energy = static_cast<int64_t>(std::floor(
      kMostSum * kMostSum / most / (4.0 * precision.unit * precision.unit)));
  return absl::OkStatus();
}

void GroupCoder::SetOffsets(const TransformLevel::Group& level, Part* part) {
  const auto unit = static_cast<float>(PrecisionOf(part->type).unit);
  for (size_t i = part->first * kNumSteps;
       i < (part->first + part->count) * kNumSteps; ++i) {
    const auto magnitude =
        static_cast<size_t>(MagnitudeOf(level.expectations[i]));
    part->offsets.push_back(0);
    for (size_t m = 0; m < kNumShifts; ++m) {
      part->offsets.push_back(Nearest<int8_t>(
          std::clamp(level.shifts[m][magnitude], -1.0f, 1.0f) * unit));
    }
  }
}

void GroupCoder::Multiply(const void* rows, const float* row_scales,
                          const PackedInt& b, const std::vector<float>& scales,
                          Epilogue epilogue, const ParallelForFn& parallel,
                          float* out) const {
  const IntMatmulArgs args = {.a = rows,
                              .a_stride = b.row_bytes(),
                              .num_rows = kRows,
                              .b = b.view(),
                              .row_scales = row_scales,
                              .col_scales = scales.data(),
                              .out = out,
                              .out_stride = b.n(),
                              .epilogue = epilogue};
  if (!parallel) return kernels_->int_matmul(args, 0, b.num_panels());
  parallel(b.num_panels(), [&](int64_t panel) {
    kernels_->int_matmul(args, static_cast<int>(panel),
                         static_cast<int>(panel) + 1);
  });
}

void GroupCoder::MultiplyRounded(const std::vector<float>& rows, float most,
                                 const PackedInt& b,
                                 const std::vector<float>& scales,
                                 const ParallelForFn& parallel,
                                 float* out) const {
  const size_t n = rows.size() / kRows;
  const size_t width = static_cast<size_t>(b.row_bytes()) / sizeof(int16_t);
  std::vector<int16_t> integers(kRows * width);
  std::array<float, kRows> row_scales{};
  for (size_t r = 0; r < kRows; ++r) {
    const float* row = &rows[r * n];
    float largest = 0.0f;
    bool bounded = true;  // also: no NaN
    for (size_t i = 0; i < n; ++i) {
      const float size = std::abs(row[i]);
      largest = size > largest ? size : largest;
      bounded &= size < 0x1p100f;
    }
    // Rows beyond all measure are 0.
    if (!bounded || !(largest > 0x1p-100f)) continue;
    row_scales[r] = largest / most;
    const float scale = most / largest;
    int16_t* to = &integers[r * width];
    for (size_t i = 0; i < n; ++i) {
      to[i] = static_cast<int16_t>(Nearest<int>(row[i] * scale));
    }
  }
  Multiply(integers.data(), row_scales.data(), b, scales, Epilogue::kStore,
           parallel, out);
}

void GroupCoder::Encode(const float* latents, const float* known,
                        const ParallelForFn& parallel,
                        float* coefficients) const {
  std::vector<float> residuals(kRows * width_);
  for (size_t r = 0; r < kRows; ++r) {
    const size_t begin = r * width_;
    for (size_t j = 0; j < width_; ++j) {
      residuals[begin + j] =
          (latents[begin + j] - known[begin + j]) * inverse_latent_scales_[j];
    }
  }
  MultiplyRounded(residuals, most_residual_, encode_, encode_scales_, parallel,
                  coefficients);
}

void GroupCoder::Predict(const float* features, const ParallelForFn& parallel,
                         float* latents) const {
  std::vector<float> scaled(kRows * features_);
  for (size_t r = 0; r < kRows; ++r) {
    const float* row = features + r * features_;
    float* to = &scaled[r * features_];
    for (size_t i = 0; i < features_; ++i) to[i] = row[i] * feature_scales_[i];
  }
  std::vector<float> predicted(kRows * rank_);
  MultiplyRounded(scaled, most_feature_, predict_, predict_scales_, parallel,
                  predicted.data());
  MultiplyRounded(predicted, most_predicted_, extend_, extend_scales_, parallel,
                  latents);
}

// By how many bits the integers of each row are too large.
std::array<int, kRansLanes> GroupCoder::ChooseShifts(const Part& part,
                                                     const int16_t* symbols) {
  const int32_t most_steps = PrecisionOf(part.type).most_steps;
  std::array<int32_t, kRows> most{};
  std::array<int64_t, kRows> energies{};
  for (size_t c = 0; c < part.count; ++c) {
    const int16_t* of = symbols + c * kRows;
    for (size_t r = 0; r < kRows; ++r) {
      const int32_t q = std::abs(int32_t{of[r]});
      most[r] = std::max(most[r], q);
      energies[r] += int64_t{q} * q;
    }
  }
  std::array<int, kRows> shifts{};
  for (size_t r = 0; r < kRows; ++r) {
    while (most[r] > most_steps << shifts[r] ||
           energies[r] >> (2 * shifts[r]) > part.most_energy) {
      ++shifts[r];
    }
  }
  return shifts;
}

template <typename Int>
void GroupCoder::SetIntegers(const Part& part, const int16_t* symbols,
                             const std::array<uint32_t, kRansLanes>& classes,
                             const std::array<int, kRansLanes>& shifts,
                             Int* rows) {
  constexpr size_t kOffsets = kNumShifts + 1;
  const auto width =
      static_cast<size_t>(part.transform.row_bytes()) / sizeof(Int);
  const int unit = PrecisionOf(part.type).unit;
  std::array<size_t, kRows> offsets_at;
  std::array<int, kRows> halves;
  for (size_t r = 0; r < kRows; ++r) {
    offsets_at[r] = std::min<size_t>(classes[r], kNumSteps - 1) * kOffsets;
    halves[r] = (1 << shifts[r]) / 2;
  }
  const int8_t* offsets = part.offsets.data();
  for (size_t c = 0; c < part.count; ++c, offsets += kNumSteps * kOffsets) {
    const int16_t* of = symbols + c * kRows;
    for (size_t r = 0; r < kRows; ++r) {
      const int size = std::abs(int{of[r]});
      const int offset =
          offsets[offsets_at[r] + static_cast<size_t>(std::min<int>(
                                      size, static_cast<int>(kNumShifts)))];
      const int back = (size * unit + offset + halves[r]) >> shifts[r];
      rows[r * width + c] = static_cast<Int>(of[r] < 0 ? -back : back);
    }
  }
}

void GroupCoder::AddCoefficients(
    const int16_t* symbols, const std::array<uint32_t, kRansLanes>& classes,
    const std::array<float, kRansLanes>& steps, const ParallelForFn& parallel,
    float* latents) const {
  for (const Part& part : parts_) {
    if (part.count == 0) continue;
    const int16_t* of = symbols + part.first * kRows;
    const std::array<int, kRows> shifts = ChooseShifts(part, of);
    std::array<float, kRows> scales;
    for (size_t r = 0; r < kRows; ++r) {
      scales[r] = std::ldexp(steps[r], shifts[r]);
    }
    const auto bytes = kRows * static_cast<size_t>(part.transform.row_bytes());
    if (part.type == IntType::kI16) {
      std::vector<int16_t> rows(bytes / sizeof(int16_t));
      SetIntegers(part, of, classes, shifts, rows.data());
      Multiply(rows.data(), scales.data(), part.transform, part.scales,
               Epilogue::kAdd, parallel, latents);
    } else {
      std::vector<int8_t> rows(bytes);
      SetIntegers(part, of, classes, shifts, rows.data());
      Multiply(rows.data(), scales.data(), part.transform, part.scales,
               Epilogue::kAdd, parallel, latents);
    }
  }
}

}  // namespace xcache
