// Profiles of xquant-tc: PROFILE_FORMAT.md, format 2.
#include "engine/xcache/transform/transform_data.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/isa.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/profile_impl.h"

namespace xcache {
namespace {

static_assert(std::endian::native == std::endian::little,
              "arrays are copied as they lie in memory");

constexpr size_t kMaxOriginBytes = 1u << 16;

class Writer {
 public:
  void U32(uint32_t v) { Array(&v, 1); }
  void F32(float v) { Array(&v, 1); }
  template <typename T>
  void Array(const T* values, size_t n) {
    bytes_.append(reinterpret_cast<const char*>(values), n * sizeof(T));
  }
  template <typename T>
  void Array(const std::vector<T>& values) {
    Array(values.data(), values.size());
  }
  std::string bytes() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

absl::Status Corrupt(std::string_view what) {
  return absl::DataLossError(absl::StrCat("profile: ", std::string(what)));
}

// Takes from the front; refuses what is not there before room is made for it.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  absl::Status U32(uint32_t* v) { return Take(v, 1); }
  // In [least, most].
  absl::Status Count(uint32_t least, uint32_t most, uint32_t* v) {
    XC_RETURN_IF_ERROR(U32(v));
    if (*v >= least && *v <= most) return absl::OkStatus();
    return Corrupt(absl::StrCat("a count: expected ", least, " to ", most,
                                ", found ", *v));
  }
  template <typename T>
  absl::Status Array(uint64_t n, std::vector<T>* out) {
    if (n > bytes_.size() / sizeof(T)) return Truncated();
    out->resize(n);
    return Take(out->data(), n);
  }
  absl::Status Floats(uint64_t n, std::vector<float>* out) {
    XC_RETURN_IF_ERROR(Array(n, out));
    for (float v : *out) {
      if (!std::isfinite(v)) return Corrupt("a number is not finite");
    }
    return absl::OkStatus();
  }
  absl::Status Float(float* v) {
    std::vector<float> one;
    XC_RETURN_IF_ERROR(Floats(1, &one));
    *v = one[0];
    return absl::OkStatus();
  }
  absl::Status Halves(uint32_t rows, uint32_t cols, HalfRows* out) {
    out->rows = rows;
    out->cols = cols;
    XC_RETURN_IF_ERROR(Floats(rows, &out->scales));
    XC_RETURN_IF_ERROR(Array(uint64_t{rows} * cols, &out->values));
    constexpr uint16_t kExponent = 0x7c00;
    for (uint16_t v : out->values) {
      if ((v & kExponent) == kExponent) return Corrupt("a half is not finite");
    }
    return absl::OkStatus();
  }
  bool empty() const { return bytes_.empty(); }

 private:
  static absl::Status Truncated() { return Corrupt("truncated"); }
  template <typename T>
  absl::Status Take(T* out, uint64_t n) {
    if (n > bytes_.size() / sizeof(T)) return Truncated();
    if (n > 0) std::memcpy(out, bytes_.data(), n * sizeof(T));
    bytes_.remove_prefix(n * sizeof(T));
    return absl::OkStatus();
  }

  std::string_view bytes_;
};

std::string SerializeBody(const TransformData& data) {
  Writer out;
  out.U32(static_cast<uint32_t>(data.origin.size()));
  out.Array(data.origin.data(), data.origin.size());
  for (uint32_t layer : data.class_layers) out.U32(layer);
  out.Array(data.class_weights);
  out.F32(data.class_bias);
  for (const SymbolFrequencies& table : data.tables) {
    out.U32(static_cast<uint32_t>(table.slots.size()));
    out.Array(table.slots);
    out.Array(&table.escape, 1);
  }
  out.U32(static_cast<uint32_t>(data.groups.size()));
  for (const TransformGroup& group : data.groups) {
    for (uint32_t v :
         {group.first_layer, group.num_layers, group.rank, group.channels}) {
      out.U32(v);
    }
    for (const HalfRows* m : {&group.predict, &group.encode, &group.decode}) {
      out.Array(m->scales);
      out.Array(m->values);
    }
  }
  for (const TransformLayer& layer : data.layers) {
    out.Array(layer.measure.scales);
    out.Array(layer.measure.values);
    out.Array(layer.scales);
  }
  for (const TransformLevel& level : data.levels) {
    out.F32(level.step);
    out.Array(level.errors);
    for (const TransformLevel::Group& group : level.groups) {
      out.U32(group.channels);
      out.Array(group.expectations);
      for (const auto& row : group.shifts) out.Array(row.data(), row.size());
    }
  }
  return std::move(out).bytes();
}

absl::Status ReadTables(Reader& in, TransformData* data) {
  for (int t = 0; t <= kNumContexts; ++t) {
    SymbolFrequencies& table = data->tables.emplace_back();
    const bool steps = t == kNumContexts;
    uint32_t magnitudes = 0;
    XC_RETURN_IF_ERROR(in.Count(
        steps ? kNumSteps / 2 + 1 : 1,
        steps ? kNumSteps / 2 + 1 : kMaxTableMagnitude + 1, &magnitudes));
    XC_RETURN_IF_ERROR(in.Array(magnitudes, &table.slots));
    std::vector<uint16_t> escape;
    XC_RETURN_IF_ERROR(in.Array(1, &escape));
    table.escape = escape[0];
    if ((table.escape == 0) != steps) {
      return Corrupt(absl::StrCat("table ", t, ": its escape"));
    }
  }
  const auto checked = SymbolTables::Create(data->tables);
  return checked.ok() ? absl::OkStatus()
                      : Corrupt(std::string(checked.status().message()));
}

absl::Status ReadGroups(Reader& in, TransformData* data) {
  const uint32_t latent = 2 * static_cast<uint32_t>(data->shape.kv_dim);
  const auto layers = static_cast<uint32_t>(data->shape.num_layers);
  uint32_t num_groups = 0;
  XC_RETURN_IF_ERROR(in.Count(layers > 1 ? 1 : 0, layers - 1, &num_groups));
  uint32_t next = 1;
  for (uint32_t g = 0; g < num_groups; ++g) {
    TransformGroup& group = data->groups.emplace_back();
    XC_RETURN_IF_ERROR(in.Count(next, next, &group.first_layer));
    XC_RETURN_IF_ERROR(in.Count(1, std::min(layers - next, kMostGroupLayers),
                                &group.num_layers));
    next += group.num_layers;
    // Keeps products of two of them within 64 bits, and sums within 32.
    constexpr uint64_t kMaxWidth = 1u << 24;
    if (uint64_t{group.num_layers} * latent > kMaxWidth) {
      return Corrupt("a group is too wide");
    }
    const uint32_t width = group.num_layers * latent;
    XC_RETURN_IF_ERROR(in.Count(1, std::min(width, kMostRank), &group.rank));
    XC_RETURN_IF_ERROR(in.Count(1, static_cast<uint32_t>(MostChannels(width)),
                                &group.channels));
    XC_RETURN_IF_ERROR(in.Halves(group.rank,
                                 static_cast<uint32_t>(NumFeatures(*data, g)),
                                 &group.predict));
    XC_RETURN_IF_ERROR(
        in.Halves(group.channels, width + group.rank, &group.encode));
    XC_RETURN_IF_ERROR(
        in.Halves(group.rank + group.channels, width, &group.decode));
  }
  return next == layers ? absl::OkStatus() : Corrupt("groups leave layers out");
}

absl::Status ReadLayers(Reader& in, TransformData* data) {
  const uint32_t latent = 2 * static_cast<uint32_t>(data->shape.kv_dim);
  for (int layer = 1; layer < data->shape.num_layers; ++layer) {
    TransformLayer& of = data->layers.emplace_back();
    XC_RETURN_IF_ERROR(in.Halves(kMeasures, latent, &of.measure));
    XC_RETURN_IF_ERROR(in.Floats(latent, &of.scales));
    for (float scale : of.scales) {
      if (!(scale > 0.0f)) return Corrupt("a scale is not positive");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadLevels(Reader& in, TransformData* data) {
  for (size_t l = 0; l < kLevelNames.size(); ++l) {
    TransformLevel& level = data->levels.emplace_back();
    XC_RETURN_IF_ERROR(in.Float(&level.step));
    if (!(level.step > 0.0f)) return Corrupt("a step is not positive");
    XC_RETURN_IF_ERROR(in.Floats(data->layers.size(), &level.errors));
    for (const TransformGroup& of : data->groups) {
      TransformLevel::Group& group = level.groups.emplace_back();
      XC_RETURN_IF_ERROR(in.Count(1, of.channels, &group.channels));
      XC_RETURN_IF_ERROR(
          in.Array(uint64_t{group.channels} * kNumSteps, &group.expectations));
      for (auto& row : group.shifts) {
        std::vector<float> values;
        XC_RETURN_IF_ERROR(in.Floats(row.size(), &values));
        std::copy(values.begin(), values.end(), row.begin());
      }
    }
  }
  return absl::OkStatus();
}

class TransformProfile final : public Profile {
 public:
  TransformProfile(TransformData data, const Digest& model_fp,
                   std::optional<Digest> digest)
      : data_(std::move(data)),
        model_fp_(model_fp),
        digest_(digest.has_value() ? *digest : Sha256Of(Serialize())) {}

  ProfileKind kind() const override { return ProfileKind::kTransform; }
  const Digest& digest() const override { return digest_; }
  std::span<const float> matrix(int, std::string_view) const override {
    return {};
  }
  const TransformData* transform() const override { return &data_; }
  std::string Serialize() const override {
    return SerializeProfile(
        kTransformProfileVersion,
        {ProfileKind::kTransform, static_cast<uint32_t>(data_.shape.num_layers),
         static_cast<uint32_t>(data_.shape.d_model),
         static_cast<uint32_t>(data_.shape.kv_dim)},
        model_fp_, SerializeBody(data_));
  }

 private:
  const TransformData data_;
  const Digest model_fp_;
  const Digest digest_;
};

}  // namespace

HalfRows MakeHalfRows(uint32_t rows, uint32_t cols, const double* values) {
  const Kernels& kernels = GetKernels(Isa::kRef);
  HalfRows out{rows, cols, std::vector<float>(rows),
               std::vector<uint16_t>(size_t{rows} * cols)};
  std::vector<float> row(cols);
  for (size_t r = 0; r < rows; ++r) {
    const double* in = values + r * cols;
    double most = 0.0;
    for (size_t c = 0; c < cols; ++c) most = std::max(most, std::abs(in[c]));
    const auto scale = static_cast<float>(most);
    out.scales[r] = scale;
    for (size_t c = 0; c < cols; ++c) {
      row[c] = scale > 0.0f
                   ? static_cast<float>(in[c] / static_cast<double>(scale))
                   : 0.0f;
    }
    kernels.to_f16(row.data(), static_cast<int>(cols), &out.values[r * cols]);
  }
  return out;
}

absl::StatusOr<PackedFloat> PackRows(const HalfRows& rows, size_t count) {
  const Kernels& kernels = GetKernels(Isa::kRef);
  const auto cols = static_cast<int>(rows.cols);
  return PackedFloat::FromWeightRows(
      static_cast<int>(count), cols, FloatType::kF16, [&](int row, float* to) {
        kernels.from_f16(&rows.values[static_cast<size_t>(row) * rows.cols],
                         cols, to);
      });
}

size_t NumFeatures(const TransformData& data, size_t g) {
  const auto d = static_cast<size_t>(data.shape.d_model);
  if (g == 0) return d + 1;
  const size_t layers = std::min(kFeatureLayers, data.groups[g - 1].num_layers);
  return d + layers * 2 * static_cast<size_t>(data.shape.kv_dim) + 1;
}

std::unique_ptr<const Profile> NewTransformProfile(
    TransformData data, const Digest& model_fp, std::optional<Digest> digest) {
  return std::make_unique<const TransformProfile>(std::move(data), model_fp,
                                                  digest);
}

absl::StatusOr<std::unique_ptr<const Profile>> ParseTransformProfile(
    std::string_view body, const CodecShape& shape, const Digest& model_fp,
    const Digest& digest) {
  TransformData data;
  data.shape = shape;
  Reader in(body);
  std::vector<char> origin;
  uint32_t origin_bytes = 0;
  XC_RETURN_IF_ERROR(in.Count(0, kMaxOriginBytes, &origin_bytes));
  XC_RETURN_IF_ERROR(in.Array(origin_bytes, &origin));
  data.origin.assign(origin.begin(), origin.end());
  for (uint32_t& layer : data.class_layers) {
    XC_RETURN_IF_ERROR(
        in.Count(0, static_cast<uint32_t>(shape.num_layers) - 1, &layer));
  }
  XC_RETURN_IF_ERROR(in.Floats(static_cast<uint64_t>(shape.d_model) +
                                   4 * static_cast<uint64_t>(shape.kv_dim),
                               &data.class_weights));
  XC_RETURN_IF_ERROR(in.Float(&data.class_bias));
  XC_RETURN_IF_ERROR(ReadTables(in, &data));
  XC_RETURN_IF_ERROR(ReadGroups(in, &data));
  XC_RETURN_IF_ERROR(ReadLayers(in, &data));
  XC_RETURN_IF_ERROR(ReadLevels(in, &data));
  if (!in.empty()) return Corrupt("bytes are left over");
  return NewTransformProfile(std::move(data), model_fp, digest);
}

}  // namespace xcache
