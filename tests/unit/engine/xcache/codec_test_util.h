// What the codec tests share: a small made-up model, its rows, and the round
// trip of a block. Numbers come from integer arithmetic, so that golden pages
// do not depend on a library's random distributions.
#ifndef XCACHE_TESTS_UNIT_ENGINE_XCACHE_CODEC_TEST_UTIL_H_
#define XCACHE_TESTS_UNIT_ENGINE_XCACHE_CODEC_TEST_UTIL_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/xcache/codec.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/profile_impl.h"
#include "engine/xcache/transform/transform_data.h"
#include "tests/unit/engine/xcache/transform_test_util.h"

namespace xcache {

// A model of made-up weights with everything that codecs are made from. The
// "bases" of its profiles are orthogonal, but no decompositions: a rotation of
// pairs of channels by one angle. Where d <= 2 k that of xquant-cl-gqa spans
// all.
class FakeModel {
 public:
  explicit FakeModel(const CodecShape& shape) : shape_(shape) {
    const auto k = static_cast<size_t>(shape.kv_dim);
    const auto d = static_cast<size_t>(shape.d_model);
    for (ProfileKind kind : {ProfileKind::kGqaSvd, ProfileKind::kClGqaSvd}) {
      const size_t rank = kind == ProfileKind::kGqaSvd ? k : std::min(d, 2 * k);
      const size_t width = kind == ProfileKind::kGqaSvd ? k : d;
      std::vector<float> values;
      for (int layer = 0; layer < shape.num_layers; ++layer) {
        for (size_t i = 0; i < rank; ++i) {
          values.push_back(8.0f / static_cast<float>(1 + i));
        }
        std::vector<float> basis(rank * width, 0.0f);
        for (size_t i = 0; i < rank; ++i) {
          const size_t pair = i ^ 1;
          basis[i * width + i] = pair < rank ? 0.8f : 1.0f;
          if (pair < rank) basis[i * width + pair] = i < pair ? 0.6f : -0.6f;
        }
        values.insert(values.end(), basis.begin(), basis.end());
      }
      profiles_.push_back(
          NewProfile({kind, static_cast<uint32_t>(shape.num_layers),
                      static_cast<uint32_t>(d), static_cast<uint32_t>(k)},
                     Digest{}, std::move(values)));
    }
    profiles_.push_back(
        NewTransformProfile(MakeUpTransform(shape, 2), Digest{}));
    Numbers numbers(7);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape.d_model));
    weights_ =
        numbers.Vector(static_cast<size_t>(shape.num_layers) * 2 * k * d);
    for (float& w : weights_) w *= scale;
  }

  // Puts the true decompositions of its weights in place of the made-up bases.
  void UseTrueBases() {
    const ProfileShape shape{ProfileKind::kClGqaSvd,
                             static_cast<uint32_t>(shape_.num_layers),
                             static_cast<uint32_t>(shape_.d_model),
                             static_cast<uint32_t>(shape_.kv_dim)};
    profiles_[1] =
        NewProfile(shape, Digest{},
                   MakeClGqaSvd(
                       shape,
                       [this](int layer, Projection projection, float* out) {
                         std::copy_n(Weights(layer, projection), side(), out);
                       },
                       nullptr));
  }

  // Puts another made-up profile of xquant-tc in place.
  void UseTransform(TransformData data) {
    profiles_.back() = NewTransformProfile(std::move(data), Digest{});
  }

  const CodecShape& shape() const { return shape_; }

  absl::StatusOr<std::unique_ptr<const Codec>> Make(std::string_view text,
                                                    Isa isa) const {
    const auto spec = CodecSpec::Parse(text);
    if (!spec.ok()) return spec.status();
    const CodecEntry* entry = FindCodec(spec->name);
    if (entry == nullptr) return absl::NotFoundError(spec->name);
    CodecSources sources;
    sources.shape = shape_;
    for (const auto& profile : profiles_) {
      if (profile->kind() == entry->profile_kind) {
        sources.profile = profile.get();
      }
    }
    sources.weights = [this](int layer, Projection projection, int row,
                             float* out) {
      const auto d = static_cast<size_t>(shape_.d_model);
      std::memcpy(out,
                  Weights(layer, projection) + static_cast<size_t>(row) * d,
                  d * sizeof(float));
    };
    sources.embedding = [shape = shape_](TokenId token, float* out) {
      Embed(token, shape, out);
    };
    sources.rms_norm_eps = 1e-5f;
    return entry->make(*spec, sources, isa);
  }

  // The row of a token, [d].
  static void Embed(TokenId token, const CodecShape& shape, float* out) {
    Numbers numbers(static_cast<uint64_t>(token) + 1000);
    for (int i = 0; i < shape.d_model; ++i) out[i] = numbers.Next();
  }

  // [k, d]
  const float* Weights(int layer, Projection projection) const {
    return &weights_[(static_cast<size_t>(layer) * 2 +
                      (projection == Projection::kKey ? 0 : 1)) *
                     side()];
  }

 private:
  // Elements of W_k, or W_v, of a layer.
  size_t side() const {
    return static_cast<size_t>(shape_.kv_dim) *
           static_cast<size_t>(shape_.d_model);
  }

  const CodecShape shape_;
  std::vector<std::unique_ptr<const Profile>> profiles_;
  std::vector<float> weights_;
};

// The rows of one block, all layers: unit_x made up, K and V as the fake
// model's weights give them. `news` is the part of a layer's unit rows that
// those of the layer before do not have, as a deviation.
class BlockRows {
 public:
  BlockRows(const FakeModel& model, uint64_t seed, float news = 1.0f)
      : shape_(model.shape()),
        d_(static_cast<size_t>(shape_.d_model)),
        k_(static_cast<size_t>(shape_.kv_dim)) {
    Numbers numbers(seed);
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      std::vector<float> x = numbers.Vector(kBlockTokens * d_);
      for (size_t i = 0; layer > 0 && news < 1.0f && i < x.size(); ++i) {
        x[i] = news * x[i] + std::sqrt(1.0f - news * news) * x_.back()[i];
      }
      x_.push_back(std::move(x));
      keys_.push_back(
          Multiply(x_.back(), model.Weights(layer, Projection::kKey)));
      values_.push_back(
          Multiply(x_.back(), model.Weights(layer, Projection::kValue)));
      rms_.push_back(std::vector<float>(kBlockTokens, 1.0f));
      final_keys_.push_back(std::vector<uint16_t>(kBlockTokens * k_, 0x3c00));
      final_values_.push_back(std::vector<uint16_t>(kBlockTokens * k_, 0xbc00));
    }
  }

  LayerRows operator()(int layer) const {
    const auto i = static_cast<size_t>(layer);
    LayerRows rows;
    rows.unit_x = x_[i].data();
    rows.rms = rms_[i].data();
    rows.k_pre = keys_[i].data();
    rows.v_pre = values_[i].data();
    rows.k_final = final_keys_[i].data();
    rows.v_final = final_values_[i].data();
    return rows;
  }

  std::vector<float>& rms(int layer) {
    return rms_[static_cast<size_t>(layer)];
  }
  std::vector<float>& x(int layer) { return x_[static_cast<size_t>(layer)]; }
  std::vector<float>& k(int layer) { return keys_[static_cast<size_t>(layer)]; }
  std::vector<float>& v(int layer) {
    return values_[static_cast<size_t>(layer)];
  }

 private:
  std::vector<float> Multiply(const std::vector<float>& x,
                              const float* w) const {
    std::vector<float> out(kBlockTokens * k_);
    for (size_t t = 0; t < kBlockTokens; ++t) {
      for (size_t j = 0; j < k_; ++j) {
        float sum = 0.0f;
        for (size_t i = 0; i < d_; ++i) sum += x[t * d_ + i] * w[j * d_ + i];
        out[t * k_ + j] = sum;
      }
    }
    return out;
  }

  const CodecShape shape_;
  const size_t d_, k_;
  std::vector<std::vector<float>> x_, keys_, values_, rms_;
  std::vector<std::vector<uint16_t>> final_keys_, final_values_;
};

// K and V of every layer as Remat yields them, from `first_row` on.
struct Restored {
  std::vector<std::vector<float>> k, v;
};

inline absl::StatusOr<Restored> Restore(const Codec& codec,
                                        const CodecShape& shape,
                                        BlockInfo block,
                                        std::span<const uint8_t> payload) {
  Restored out;
  const auto begin = static_cast<size_t>(block.first_row * shape.kv_dim);
  const auto end = static_cast<size_t>(kBlockTokens * shape.kv_dim);
  const absl::Status status =
      codec.Remat(payload, block, [&](int, const RematRows& rows) {
        if (codec.remat_stage() == RematStage::kPre) {
          out.k.emplace_back(rows.k_pre + begin, rows.k_pre + end);
          out.v.emplace_back(rows.v_pre + begin, rows.v_pre + end);
        } else {
          out.k.emplace_back(rows.k_final + begin, rows.k_final + end);
          out.v.emplace_back(rows.v_final + begin, rows.v_final + end);
        }
      });
  if (!status.ok()) return status;
  return out;
}

}  // namespace xcache

#endif  // XCACHE_TESTS_UNIT_ENGINE_XCACHE_CODEC_TEST_UTIL_H_
