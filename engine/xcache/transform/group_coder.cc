#include "engine/xcache/transform/group_coder.h"

#include <algorithm>
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

// 1 / x, or 0 where there is none.
float InverseOf(float x) { return x > 0x1p-100f ? 1.0f / x : 0.0f; }

// Rows of A that are rounded to 16 bits have integers of at most this. Elements
// of B get what is left.
constexpr float kMostValue = 4095.0f;

// What the elements of a column become integers of 16 bits by: as much as
// leaves every sum below 2^31, `sum` being that of their sizes.
float ElementScale(size_t k, float largest, float sum) {
  const float most = 0x1p31f / kMostValue - static_cast<float>(k);
  return std::min(32767.0f * InverseOf(largest), most * InverseOf(sum));
}

// To the nearest, to even where two are equally near.
template <typename Int>
Int Nearest(float x) {
  return static_cast<Int>(std::nearbyint(x));
}

// An element of a matrix; bounded where a profile's numbers are beyond all
// measure.
int16_t Element(float x) {
  if (std::isnan(x)) return 0;
  return Nearest<int16_t>(std::clamp(x, -32767.0f, 32767.0f));
}

float LargestOf(const std::vector<float>& values) {
  float most = 0.0f;
  for (float v : values) most = std::max(most, std::abs(v));
  return most;
}

float SumOf(const std::vector<float>& values) {
  float sum = 0.0f;
  for (float v : values) sum += std::abs(v);
  return sum;
}

// Row `row` of `from`, without its scale.
std::vector<float> RowOf(const HalfRows& from, size_t row) {
  std::vector<float> out(from.cols);
  GetKernels(Isa::kRef).from_f16(&from.values[row * from.cols],
                                 static_cast<int>(from.cols), out.data());
  return out;
}

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
  XC_RETURN_IF_ERROR(out.PackPrediction(from, scales));
  for (float scale : scales) {
    out.inverse_latent_scales_.push_back(InverseOf(scale));
  }
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
  of_8.count = level.channels - large;
  for (Part& part : out.parts_) {
    if (part.count == 0) continue;
    XC_RETURN_IF_ERROR(out.PackEncode(from, scales, &part));
    XC_RETURN_IF_ERROR(out.PackDecode(from, scales, &part));
    out.SetOffsets(level, &part);
  }
  return out;
}

// Features are scaled so that an error of each weighs alike in what is
// predicted, predicted values so that the rows of D have equal largest
// elements; latents are in units of what costs alike.
absl::Status GroupCoder::PackPrediction(const TransformGroup& from,
                                        std::span<const float> latent_scales) {
  extend_.most = predict_.most = kMostValue;
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
  std::vector<float> most(width_), sums(width_), to_elements(width_);
  for (size_t i = 0; i < rank_; ++i) {
    const std::vector<float> row = extend_row(i);
    for (size_t j = 0; j < width_; ++j) {
      const float size = std::abs(row[j] * InverseOf(largest[i]));
      most[j] = std::max(most[j], size);
      sums[j] += size;
    }
  }
  extend_.scales.resize(width_);
  for (size_t j = 0; j < width_; ++j) {
    to_elements[j] = ElementScale(rank_, most[j], sums[j]);
    extend_.scales[j] = latent_scales[j] * InverseOf(to_elements[j]);
  }
  XC_ASSIGN_OR_RETURN(
      extend_.integers,
      PackedInt::FromRows(static_cast<int>(rank_), static_cast<int>(width_),
                          IntType::kI16, [&](int i, int16_t* to) {
                            const std::vector<float> row =
                                extend_row(static_cast<size_t>(i));
                            const float scale =
                                InverseOf(largest[static_cast<size_t>(i)]);
                            for (size_t j = 0; j < width_; ++j) {
                              to[j] = Element(row[j] * scale * to_elements[j]);
                            }
                          }));

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
  predict_.scales.resize(rank_);
  for (size_t i = 0; i < rank_; ++i) {
    for (size_t j = 0; j < features_; ++j) {
      rows[i][j] *= InverseOf(feature_scales_[j]);
    }
    const float scale =
        ElementScale(features_, LargestOf(rows[i]), SumOf(rows[i]));
    for (float& v : rows[i]) v *= scale;
    predict_.scales[i] = from.predict.scales[i] * from.decode.scales[i] *
                         InverseOf(scale) * largest[i];
  }
  XC_ASSIGN_OR_RETURN(predict_.integers,
                      PackedInt::FromColumns(
                          static_cast<int>(features_), static_cast<int>(rank_),
                          IntType::kI16, [&](int i, int16_t* to) {
                            for (float v : rows[static_cast<size_t>(i)]) {
                              *to++ = Element(v);
                            }
                          }));
  return absl::OkStatus();
}

// Without the columns of what is predicted: that is known as it comes back.
absl::Status GroupCoder::PackEncode(const TransformGroup& from,
                                    std::span<const float> latent_scales,
                                    Part* part) {
  const bool is_16 = part->type == IntType::kI16;
  Matrix& encode = part->encode;
  encode.most = is_16 ? kMostValue : kPrecision8.most_element;
  encode.scales.resize(part->count);
  XC_ASSIGN_OR_RETURN(
      encode.integers,
      PackedInt::FromColumns(
          static_cast<int>(width_), static_cast<int>(part->count), part->type,
          [&](int c, int16_t* to) {
            const size_t at = part->first + static_cast<size_t>(c);
            std::vector<float> row = RowOf(from.encode, at);
            row.resize(width_);
            for (size_t j = 0; j < width_; ++j) row[j] *= latent_scales[j];
            const float most = LargestOf(row);
            const float scale = is_16 ? ElementScale(width_, most, SumOf(row))
                                      : encode.most * InverseOf(most);
            encode.scales[static_cast<size_t>(c)] =
                from.encode.scales[at] * InverseOf(scale);
            for (float v : row) *to++ = Element(v * scale);
          }));
  return absl::OkStatus();
}

absl::Status GroupCoder::PackDecode(const TransformGroup& from,
                                    std::span<const float> latent_scales,
                                    Part* part) {
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
  part->decode.scales.resize(width_);
  for (size_t j = 0; j < width_; ++j) {
    to_elements[j] = precision.most_element * InverseOf(largest[j]);
    part->decode.scales[j] =
        latent_scales[j] * largest[j] /
        (precision.most_element * static_cast<float>(precision.unit));
  }
  std::vector<double> energies(width_);
  XC_ASSIGN_OR_RETURN(
      part->decode.integers,
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

void GroupCoder::Work::ForEach(int64_t num_tasks,
                               const std::function<void(int64_t)>& fn) const {
  if (parallel) return parallel(num_tasks, fn);
  for (int64_t task = 0; task < num_tasks; ++task) fn(task);
}

void GroupCoder::Multiply(const float* row_scales, const Matrix& b,
                          Epilogue epilogue, const Work& work,
                          float* out) const {
  const IntMatmulArgs args = {.a = work.integers.data(),
                              .a_stride = b.integers.row_bytes(),
                              .num_rows = kRows,
                              .b = b.integers.view(),
                              .row_scales = row_scales,
                              .col_scales = b.scales.data(),
                              .out = out,
                              .out_stride = b.integers.n(),
                              .epilogue = epilogue};
  work.ForEach(b.integers.num_panels(), [&](int64_t panel) {
    kernels_->int_matmul(args, static_cast<int>(panel),
                         static_cast<int>(panel) + 1);
  });
}

void GroupCoder::MultiplyRounded(const Rows& rows, const Matrix& b, Work& work,
                                 float* out) const {
  const IntMatrix& view = b.integers.view();
  const auto row_bytes = static_cast<size_t>(b.integers.row_bytes());
  const auto n = static_cast<size_t>(view.k);
  work.integers.resize(kRows * row_bytes);
  std::array<float, kRows> row_scales;
  constexpr size_t kAtOnce = 8;
  work.ForEach(int64_t{kRows / kAtOnce}, [&](int64_t task) {
    const size_t first = static_cast<size_t>(task) * kAtOnce;
    for (size_t r = first; r < first + kAtOnce; ++r) {
      row_scales[r] = kernels_->round_row(
          {.values = rows.values + r * n,
           .less = rows.less == nullptr ? nullptr : rows.less + r * n,
           .scales = rows.scales,
           .n = view.k,
           .most = b.most,
           .type = view.type,
           .out = &work.integers[r * row_bytes]});
    }
  });
  Multiply(row_scales.data(), b, Epilogue::kStore, work, out);
}

void GroupCoder::Encode(size_t part, const float* latents, const float* known,
                        Work& work, float* coefficients) const {
  MultiplyRounded({latents, known, inverse_latent_scales_.data()},
                  parts_[part].encode, work, coefficients);
}

void GroupCoder::Predict(const float* features, Work& work,
                         float* latents) const {
  work.predicted.resize(kRows * rank_);
  MultiplyRounded({features, nullptr, feature_scales_.data()}, predict_, work,
                  work.predicted.data());
  MultiplyRounded({work.predicted.data(), nullptr, nullptr}, extend_, work,
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
                             Work& work) {
  constexpr size_t kOffsets = kNumShifts + 1;
  const auto row_bytes = static_cast<size_t>(part.decode.integers.row_bytes());
  const int unit = PrecisionOf(part.type).unit;
  work.integers.resize(kRows * row_bytes);
  uint8_t* rows = work.integers.data();
  std::array<size_t, kRows> offsets_at;
  std::array<int, kRows> halves;
  for (size_t r = 0; r < kRows; ++r) {
    offsets_at[r] = std::min<size_t>(classes[r], kNumSteps - 1) * kOffsets;
    halves[r] = (1 << shifts[r]) / 2;
  }
  constexpr size_t kAtOnce = 64;
  const size_t tasks = (part.count + kAtOnce - 1) / kAtOnce;
  work.ForEach(static_cast<int64_t>(tasks), [&](int64_t task) {
    const size_t first = static_cast<size_t>(task) * kAtOnce;
    const size_t last = std::min(first + kAtOnce, part.count);
    for (size_t c = first; c < last; ++c) {
      const int16_t* of = symbols + c * kRows;
      const int8_t* offsets = &part.offsets[c * kNumSteps * kOffsets];
      for (size_t r = 0; r < kRows; ++r) {
        const int size = std::abs(int{of[r]});
        const int offset =
            offsets[offsets_at[r] + static_cast<size_t>(std::min<int>(
                                        size, static_cast<int>(kNumShifts)))];
        const int back = (size * unit + offset + halves[r]) >> shifts[r];
        reinterpret_cast<Int*>(rows + r * row_bytes)[c] =
            static_cast<Int>(of[r] < 0 ? -back : back);
      }
    }
  });
}

void GroupCoder::AddCoefficients(
    size_t part, const int16_t* symbols,
    const std::array<uint32_t, kRansLanes>& classes,
    const std::array<float, kRansLanes>& steps, Work& work,
    float* latents) const {
  const Part& of = parts_[part];
  const std::array<int, kRows> shifts = ChooseShifts(of, symbols);
  std::array<float, kRows> scales;
  for (size_t r = 0; r < kRows; ++r) {
    scales[r] = std::ldexp(steps[r], shifts[r]);
  }
  if (of.type == IntType::kI16) {
    SetIntegers<int16_t>(of, symbols, classes, shifts, work);
  } else {
    SetIntegers<int8_t>(of, symbols, classes, shifts, work);
  }
  Multiply(scales.data(), of.decode, Epilogue::kAdd, work, latents);
}

}  // namespace xcache
