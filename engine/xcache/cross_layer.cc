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
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) sums[l] += a[i + l] * b[i + l];
  }
  for (size_t l = 0; i + l < n; ++l) sums[l] += a[i + l] * b[i + l];
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
    payload_at_ = {0};
    for (size_t i = 0; i < layers_.size(); ++i) {
      payload_at_.push_back(payload_at_[i] + scale_bytes(i) +
                            layers_[i].coder->bytes());
    }
  }

  const CodecSpec& spec() const override { return spec_; }
  unsigned live_rows() const override {
    return prediction_ == Prediction::kResidual ? kLiveUnitX | kLiveRms
                                                : kLiveUnitX;
  }
  RematStage remat_stage() const override { return RematStage::kPre; }
  size_t payload_at(int layer) const override {
    return payload_at_[static_cast<size_t>(layer)];
  }

  int num_layers() const override { return shape_.num_layers; }
  bool layers_independent() const override { return false; }

  absl::Status SealLayers(LayerRange range,
                          const std::function<LayerRows(int layer)>& rows,
                          int first_row,
                          std::span<uint8_t> payload) const override {
    XC_RETURN_IF_ERROR(CheckRange(range));
    return SealRemat(rows, first_row, payload, nullptr, nullptr);
  }

  // Rows depend on each other only in the quantizer. So a layer takes two
  // rounds: in the first, over rows, the layer before comes back and this one's
  // latent is made; in the second this one is quantized, beside `sink`.
  absl::Status SealRemat(const std::function<LayerRows(int layer)>& rows,
                         int first_row, std::span<uint8_t> payload,
                         const RematSink& sink,
                         const ParallelForFn& parallel) const override {
    XC_RETURN_IF_ERROR(CheckSize(payload.size()));
    Block block(*this, first_row, sink != nullptr);
    std::vector<float> difference(kBlockTokens * d());
    std::vector<float> previous_rms(kBlockTokens);
    uint8_t* out = payload.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
      const CrossLayerLayer& layer = layers_[i];
      const LayerRows in = rows(static_cast<int>(i));
      XC_RETURN_IF_ERROR(CheckRows("X", in.unit_x, shape_.d_model, first_row,
                                   static_cast<int>(i), all_finite_));
      std::fill_n(out, scale_bytes(i) == 0 ? 0 : first_row, uint8_t{0});
      ForRows(first_row, parallel, [&](int first, int last) {
        if (i > 0) Advance(i - 1, first, last, block);
        ChooseScales(i, in, previous_rms, first, last, block, out);
        Predict(i, out, first, last, block);
        for (size_t e = At(first); e < At(last); ++e) {
          difference[e] = in.unit_x[e] - block.x[e];
        }
        if (layer.to_latent) {
          ProjectRows(kernels_, difference.data(), *layer.to_latent, first,
                      last, block.latent.data());
        }
      });
      out += scale_bytes(i);
      absl::Status decoded;
      const auto quantize = [&] {
        layer.coder->Encode(
            layer.to_latent ? block.latent.data() : difference.data(),
            first_row, out);
        decoded = layer.coder->Decode(out, block.latent.data());
      };
      if (parallel && sink && i > 0) {
        parallel(2, [&](int64_t task) {
          if (task == 0) return quantize();
          Emit(i - 1, block, sink);
        });
      } else {
        if (sink && i > 0) Emit(i - 1, block, sink);
        quantize();
      }
      XC_RETURN_IF_ERROR(decoded);
      out += layer.coder->bytes();
      if (in.rms != nullptr) {
        std::copy_n(in.rms, kBlockTokens, previous_rms.begin());
      }
    }
    const size_t last_layer = layers_.size() - 1;
    ForRows(first_row, parallel, [&](int first, int last) {
      Advance(last_layer, first, last, block);
    });
    if (sink) Emit(last_layer, block, sink);
    return CheckSum(block);
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           int first_row,
                           const RematSink& sink) const override {
    XC_RETURN_IF_ERROR(CheckRange(range));
    XC_RETURN_IF_ERROR(CheckSize(payload.size()));
    Block block(*this, first_row, true);
    const uint8_t* in = payload.data();
    for (size_t i = 0; i < layers_.size(); ++i) {
      Predict(i, in, first_row, kBlockTokens, block);
      in += scale_bytes(i);
      XC_RETURN_IF_ERROR(layers_[i].coder->Decode(in, block.latent.data()));
      in += layers_[i].coder->bytes();
      Advance(i, first_row, kBlockTokens, block);
      Emit(i, block, sink);
    }
    return CheckSum(block);
  }

 private:
  // A block on its way through the layers.
  struct Block {
    Block(const CrossLayer& codec, int first, bool wants_kv)
        : first_row(first),
          emits(wants_kv),
          x(codec.At(kBlockTokens)),
          latent(x.size()),
          keys(kBlockTokens * static_cast<size_t>(codec.shape_.kv_dim)),
          values(keys.size()) {}

    const int first_row;
    const bool emits;
    std::vector<float> x;             // [64, d] X^, or P
    std::vector<float> latent;        // [64, m], m at most d
    std::vector<float> keys, values;  // [64, k]
  };

  // Calls fn(first, last) for rows [first_row, 64), in parts where they can be
  // worked on at once. A part is two row tiles of the products.
  template <typename Fn>
  void ForRows(int first_row, const ParallelForFn& parallel,
               const Fn& fn) const {
    if (!parallel) return fn(first_row, kBlockTokens);
    const int rows = 2 * kernels_.float_row_tile;
    parallel((kBlockTokens - first_row + rows - 1) / rows, [&](int64_t part) {
      const int first = first_row + static_cast<int>(part) * rows;
      fn(first, std::min(first + rows, kBlockTokens));
    });
  }

  size_t d() const { return static_cast<size_t>(shape_.d_model); }
  // Where a row starts in a matrix [64, d].
  size_t At(int row) const { return static_cast<size_t>(row) * d(); }

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
    if (bytes == payload_bytes()) return absl::OkStatus();
    return WrongPayloadSize(payload_bytes(), bytes);
  }

  // X^ of crafted scales may have grown beyond FP32; no later layer makes it
  // finite again.
  absl::Status CheckSum(const Block& block) const {
    const size_t begin = At(block.first_row);
    if (all_finite_(block.x.data() + begin,
                    static_cast<int64_t>(block.x.size() - begin))) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("payload: the layers' sum is not finite");
  }

  void ChooseScales(size_t i, const LayerRows& in,
                    const std::vector<float>& previous_rms, int first, int last,
                    const Block& block, uint8_t* codes) const {
    if (scale_bytes(i) == 0) return;
    for (int r = first; r < last; ++r) {
      const auto row = static_cast<size_t>(r);
      float a;
      if (prediction_ == Prediction::kResidual) {
        a = previous_rms[row] / in.rms[row];
      } else {
        const float* known = block.x.data() + At(r);
        a = Dot(in.unit_x + At(r), known, d()) / Dot(known, known, d());
      }
      codes[row] = ScaleCode(a);
    }
  }

  // X^ to P.
  void Predict(size_t i, const uint8_t* codes, int first, int last,
               Block& block) const {
    if (!predicted(i)) {
      std::fill(block.x.data() + At(first), block.x.data() + At(last), 0.0f);
      return;
    }
    if (scale_bytes(i) == 0) return;
    for (int row = first; row < last; ++row) {
      const float a = ScaleOf(codes[row]);
      for (size_t e = At(row); e < At(row + 1); ++e) block.x[e] *= a;
    }
  }

  // P to X^ of layer i, by the latent that came back, and X^ to K and V where
  // they are wanted.
  void Advance(size_t i, int first, int last, Block& block) const {
    const CrossLayerLayer& layer = layers_[i];
    if (layer.from_latent) {
      ProjectRows(kernels_, block.latent.data(), *layer.from_latent, first,
                  last, block.x.data(), Epilogue::kAdd);
    } else {
      for (size_t e = At(first); e < At(last); ++e) {
        block.x[e] += block.latent[e];
      }
    }
    if (!block.emits) return;
    ProjectRows(kernels_, block.x.data(), layer.wk, first, last,
                block.keys.data());
    ProjectRows(kernels_, block.x.data(), layer.wv, first, last,
                block.values.data());
  }

  void Emit(size_t i, Block& block, const RematSink& sink) const {
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
  std::vector<size_t> payload_at_;
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
