#include "engine/xcache/cross_layer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/projection.h"

namespace xcache {
namespace {

// `a` in [0, 2), in steps of 1/128: off by 0.4 % at most, where differences are
// tens of per cent.
constexpr float kScaleSteps = 128.0f;

float ScaleOf(uint8_t code) { return static_cast<float>(code) / kScaleSteps; }

uint8_t ScaleCode(float a) {
  // Not a number, where rows are zero: predicts nothing.
  const float steps = a > 0.0f ? std::min(a * kScaleSteps, 255.0f) : 0.0f;
  return static_cast<uint8_t>(steps + 0.5f);
}

// Sums in 16 lanes of fixed places: the same bits however it is compiled.
float Dot(const float* a, const float* b, size_t n) {
  constexpr size_t kLanes = 16;
  std::array<float, kLanes> sums{};
  for (size_t i = 0; i < n; ++i) sums[i % kLanes] += a[i] * b[i];
  float sum = 0.0f;
  for (float s : sums) sum += s;
  return sum;
}

class CrossLayer final : public Codec {
 public:
  CrossLayer(CodecSpec spec, const CodecShape& shape, Prediction prediction,
             std::vector<CrossLayerLayer> layers, Isa isa)
      : spec_(std::move(spec)),
        shape_(shape),
        prediction_(prediction),
        layers_(std::move(layers)),
        kernels_(GetKernels(isa)),
        all_finite_(GetCodecKernels(isa).all_finite) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      payload_bytes_ += scale_bytes(i) + layers_[i].coder->bytes();
    }
  }

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override {
    return prediction_ == Prediction::kResidual ? kLiveUnitX | kLiveRms
                                                : kLiveUnitX;
  }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_bytes() const override { return payload_bytes_; }

  int num_layers() const override { return shape_.num_layers; }
  bool layers_independent() const override { return false; }

  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          int first_row,
                          std::span<uint8_t> payload) const override {
    XC_RETURN_IF_ERROR(CheckRange(range));
    return SealRemat(rows, first_row, payload, nullptr, nullptr);
  }

  absl::Status SealRemat(const std::function<LayerRows(int layer)>& rows,
                         int first_row, std::span<uint8_t> payload,
                         const RematSink& sink,
                         const ParallelForFn& parallel) const override {
    XC_RETURN_IF_ERROR(CheckSize(payload.size()));
    Block block(*this, first_row, parallel);
    std::vector<float> difference(kBlockTokens * d());
    std::vector<float> previous_rms(kBlockTokens);
    uint8_t* out = payload.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
      const CrossLayerLayer& layer = layers_[i];
      const LayerRows in = rows(static_cast<int>(i));
      XC_RETURN_IF_ERROR(CheckRows("X", in.unit_x, shape_.d_model, first_row,
                                   static_cast<int>(i), all_finite_));
      ChooseScales(i, in, previous_rms, block, out);
      Predict(i, out, block);
      out += scale_bytes(i);
      for (size_t e = block.begin(); e < difference.size(); ++e) {
        difference[e] = in.unit_x[e] - block.x[e];
      }
      const float* latent = difference.data();
      if (layer.to_latent) {
        ProjectRows(kernels_,
                    RowProduct{latent, &*layer.to_latent, block.latent.data()},
                    first_row, parallel);
        latent = block.latent.data();
      }
      layer.coder->Encode(latent, first_row, out);
      XC_RETURN_IF_ERROR(Advance(layer, out, block));
      out += layer.coder->bytes();
      if (sink) Emit(i, block, sink);
      if (in.rms != nullptr) {
        std::copy_n(in.rms, kBlockTokens, previous_rms.begin());
      }
    }
    return CheckSum(block);
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int first_row,
                           const RematSink& sink) const override {
    XC_RETURN_IF_ERROR(CheckRange(range));
    XC_RETURN_IF_ERROR(CheckSize(payload.size()));
    Block block(*this, first_row, nullptr);
    const uint8_t* in = payload.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
      Predict(i, in, block);
      in += scale_bytes(i);
      XC_RETURN_IF_ERROR(Advance(layers_[i], in, block));
      in += layers_[i].coder->bytes();
      Emit(i, block, sink);
    }
    return CheckSum(block);
  }

 private:
  // A block on its way through the layers.
  struct Block {
    Block(const CrossLayer& codec, int first, ParallelForFn spread)
        : first_row(first),
          parallel(std::move(spread)),
          d(codec.d()),
          x(kBlockTokens * d),
          latent(x.size()),
          keys(kBlockTokens * static_cast<size_t>(codec.shape_.kv_dim)),
          values(keys.size()) {}
    // Where the first row that counts starts in x.
    size_t begin() const { return static_cast<size_t>(first_row) * d; }

    const int first_row;
    const ParallelForFn parallel;
    const size_t d;
    std::vector<float> x;             // [64, d] X^
    std::vector<float> latent;        // [64, m], m at most d
    std::vector<float> keys, values;  // [64, k]
  };

  size_t d() const { return static_cast<size_t>(shape_.d_model); }

  bool predicted(size_t layer) const {
    return layer > 0 && !layers_[layer].direct;
  }
  // A byte a token where the prediction is scaled.
  size_t scale_bytes(size_t layer) const {
    return predicted(layer) && prediction_ != Prediction::kUnit ? kBlockTokens
                                                                : 0;
  }

  absl::Status CheckRange(LayerRange range) const {
    if (range.begin == 0 && range.end == shape_.num_layers) {
      return absl::OkStatus();
    }
    return absl::InternalError(absl::StrCat(
        "codec ", spec_.name, ": its layers depend on each other: expected ",
        "all of them, found [", range.begin, ", ", range.end, ")"));
  }
  absl::Status CheckSize(size_t bytes) const {
    if (bytes == payload_bytes_) return absl::OkStatus();
    return WrongPayloadSize(payload_bytes_, bytes);
  }

  // X^ of crafted scales may have grown beyond FP32; no later layer makes it
  // finite again.
  absl::Status CheckSum(const Block& block) const {
    if (all_finite_(block.x.data() + block.begin(),
                    static_cast<int64_t>(block.x.size() - block.begin()))) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("payload: the layers' sum is not finite");
  }

  void ChooseScales(size_t i, const LayerRows& in,
                    const std::vector<float>& previous_rms, const Block& block,
                    uint8_t* codes) const {
    if (scale_bytes(i) == 0) return;
    std::fill_n(codes, block.first_row, uint8_t{0});
    for (size_t row = static_cast<size_t>(block.first_row); row < kBlockTokens;
         ++row) {
      float a;
      if (prediction_ == Prediction::kResidual) {
        a = previous_rms[row] / in.rms[row];
      } else {
        const float* known = block.x.data() + row * d();
        a = Dot(in.unit_x + row * d(), known, d()) / Dot(known, known, d());
      }
      codes[row] = ScaleCode(a);
    }
  }

  // X^ to P.
  void Predict(size_t i, const uint8_t* codes, Block& block) const {
    if (!predicted(i)) {
      std::fill(block.x.begin(), block.x.end(), 0.0f);
      return;
    }
    if (scale_bytes(i) == 0) return;
    for (size_t row = static_cast<size_t>(block.first_row); row < kBlockTokens;
         ++row) {
      const float a = ScaleOf(codes[row]);
      float* values = block.x.data() + row * d();
      for (size_t e = 0; e < d(); ++e) values[e] *= a;
    }
  }

  // P to X^ of the next layer: adds what `in` gives back.
  absl::Status Advance(const CrossLayerLayer& layer, const uint8_t* in,
                       Block& block) const {
    XC_RETURN_IF_ERROR(layer.coder->Decode(in, block.latent.data()));
    if (layer.from_latent) {
      ProjectRows(kernels_,
                  RowProduct{block.latent.data(), &*layer.from_latent,
                             block.x.data(), Epilogue::kAdd},
                  block.first_row, block.parallel);
      return absl::OkStatus();
    }
    for (size_t e = block.begin(); e < block.x.size(); ++e) {
      block.x[e] += block.latent[e];
    }
    return absl::OkStatus();
  }

  // X^ to K and V.
  void Emit(size_t i, Block& block, const RematSink& sink) const {
    const CrossLayerLayer& layer = layers_[i];
    const RowProduct products[] = {
        {block.x.data(), &layer.wk, block.keys.data()},
        {block.x.data(), &layer.wv, block.values.data()}};
    ProjectRows(kernels_, products, block.first_row, block.parallel);
    RematRows out;
    out.k_pre = block.keys.data();
    out.v_pre = block.values.data();
    sink(static_cast<int>(i), out);
  }

  const CodecSpec spec_;
  const CodecShape shape_;
  const Prediction prediction_;
  const std::vector<CrossLayerLayer> layers_;
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
  size_t payload_bytes_ = 0;
};

}  // namespace

Prediction ReadPrediction(OptionReader& options, std::string_view fallback) {
  const std::string x =
      options.Choice("x", {"unit", "residual", "fit"}, fallback);
  if (x == "unit") return Prediction::kUnit;
  return x == "fit" ? Prediction::kFit : Prediction::kResidual;
}

std::unique_ptr<const Codec> NewCrossLayerCodec(
    CodecSpec spec, const CodecShape& shape, Prediction prediction,
    std::vector<CrossLayerLayer> layers, Isa isa) {
  return std::make_unique<const CrossLayer>(std::move(spec), shape, prediction,
                                            std::move(layers), isa);
}

}  // namespace xcache
