#include "engine/xcache/cross_layer.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/block_coder.h"
#include "engine/xcache/dependent_layers.h"

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

class CrossLayer final : public DependentLayers {
 public:
  CrossLayer(CodecSpec spec, PayloadPlan plan,
             std::vector<CrossLayerMatrices> matrices, Isa isa)
      : DependentLayers(std::move(spec), std::move(plan)),
        matrices_(std::move(matrices)),
        coders_(CodersOf(this->plan(), isa)),
        kernels_(GetKernels(isa)),
        all_finite_(GetCodecKernels(isa).all_finite) {}

  unsigned live_rows() const override {
    for (int i = 0; i < num_layers(); ++i) {
      if (plan().layer(i).prediction == Prediction::kResidual) {
        return kLiveUnitX | kLiveRms;
      }
    }
    return kLiveUnitX;
  }

  // Rows depend on each other only in the quantizer. So a layer takes two
  // rounds: in the first, over rows, the layer before comes back and this one's
  // latent is made; in the second this one is quantized, beside `sink`.
  absl::Status SealRemat(const std::function<LayerRows(int layer)>& rows,
                         BlockInfo info, std::span<uint8_t> payload,
                         const RematSink& sink,
                         const ParallelForFn& parallel) const override {
    const int first_row = info.first_row;
    XC_RETURN_IF_ERROR(CheckPayloadSize(plan(), payload.size()));
    Block block(plan().shape(), first_row, sink != nullptr);
    std::vector<float> difference(kBlockTokens * d());
    std::vector<float> previous_rms(kBlockTokens);
    for (int i = 0; i < num_layers(); ++i) {
      const std::optional<PackedFloat>& to_latent = At(i).to_latent;
      const LayerRows in = rows(i);
      XC_RETURN_IF_ERROR(
          CheckRows(kLiveUnitX, plan().shape(), in, first_row, i, all_finite_));
      uint8_t* scales = nullptr;
      if (const auto at = plan().layer(i).scales_at; at.has_value()) {
        scales = payload.data() + *at;
        std::fill_n(scales, first_row, uint8_t{0});
      }
      ForRows(first_row, parallel, [&](int first, int last) {
        if (i > 0) Advance(i - 1, first, last, block);
        if (scales != nullptr) {
          ChooseScales(i, in, previous_rms, first, last, block, scales);
        }
        Predict(i, scales, first, last, block);
        for (size_t e = RowAt(first); e < RowAt(last); ++e) {
          difference[e] = in.unit_x[e] - block.x[e];
        }
        if (to_latent) {
          ProjectRows(kernels_, difference.data(), *to_latent, first, last,
                      block.latent.data());
        }
      });
      absl::Status decoded;
      const auto quantize = [&] {
        uint8_t* out = payload.data() + plan().part(i, 0).at;
        coder(i).Encode(to_latent ? block.latent.data() : difference.data(),
                        first_row, out);
        decoded = coder(i).Decode(out, block.latent.data());
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
      if (in.rms != nullptr) {
        std::copy_n(in.rms, kBlockTokens, previous_rms.begin());
      }
    }
    const int last_layer = num_layers() - 1;
    ForRows(first_row, parallel, [&](int first, int last) {
      Advance(last_layer, first, last, block);
    });
    if (sink) Emit(last_layer, block, sink);
    return CheckSum(block);
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           BlockInfo info,
                           const RematSink& sink) const override {
    const int first_row = info.first_row;
    XC_RETURN_IF_ERROR(CheckRange(range));
    XC_RETURN_IF_ERROR(CheckPayloadSize(plan(), payload.size()));
    Block block(plan().shape(), first_row, true);
    for (int i = 0; i < num_layers(); ++i) {
      const PayloadPlan::Layer& layer = plan().layer(i);
      Predict(i, payload.data() + layer.scales_at.value_or(0), first_row,
              kBlockTokens, block);
      XC_RETURN_IF_ERROR(coder(i).Decode(payload.data() + layer.parts[0].at,
                                         block.latent.data()));
      block.emits = range.has(i);
      Advance(i, first_row, kBlockTokens, block);
      if (block.emits) Emit(i, block, sink);
    }
    return CheckSum(block);
  }

 private:
  // A block on its way through the layers.
  struct Block {
    Block(const CodecShape& shape, int first, bool wants_kv)
        : first_row(first),
          emits(wants_kv),
          x(kBlockTokens * static_cast<size_t>(shape.d_model)),
          latent(x.size()),
          keys(kBlockTokens * static_cast<size_t>(shape.kv_dim)),
          values(keys.size()) {}

    const int first_row;
    bool emits;                       // K and V of the layer at hand
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

  size_t d() const { return static_cast<size_t>(plan().shape().d_model); }
  // Where a row starts in a matrix [64, d].
  size_t RowAt(int row) const { return static_cast<size_t>(row) * d(); }
  const CrossLayerMatrices& At(int layer) const {
    return matrices_[static_cast<size_t>(layer)];
  }
  const BlockCoder& coder(int layer) const {
    return coders_[plan().part(layer, 0).matrix];
  }

  // X^ of crafted scales may have grown beyond FP32; no later layer makes it
  // finite again.
  absl::Status CheckSum(const Block& block) const {
    const size_t begin = RowAt(block.first_row);
    if (all_finite_(block.x.data() + begin,
                    static_cast<int64_t>(block.x.size() - begin))) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError("payload: the layers' sum is not finite");
  }

  void ChooseScales(int i, const LayerRows& in,
                    const std::vector<float>& previous_rms, int first, int last,
                    const Block& block, uint8_t* codes) const {
    for (int r = first; r < last; ++r) {
      const auto row = static_cast<size_t>(r);
      float a;
      if (plan().layer(i).prediction == Prediction::kResidual) {
        a = previous_rms[row] / in.rms[row];
      } else {
        const float* known = block.x.data() + RowAt(r);
        a = Dot(in.unit_x + RowAt(r), known, d()) / Dot(known, known, d());
      }
      codes[row] = ScaleCode(a);
    }
  }

  // X^ to P. `codes` are read where the layer has scales.
  void Predict(int i, const uint8_t* codes, int first, int last,
               Block& block) const {
    if (plan().layer(i).prediction == Prediction::kNone) {
      std::fill(block.x.data() + RowAt(first), block.x.data() + RowAt(last),
                0.0f);
      return;
    }
    if (!plan().layer(i).scales_at.has_value()) return;
    for (int row = first; row < last; ++row) {
      const float a = ScaleOf(codes[row]);
      for (size_t e = RowAt(row); e < RowAt(row + 1); ++e) block.x[e] *= a;
    }
  }

  // P to X^ of layer i, by the latent that came back, and X^ to K and V where
  // they are wanted.
  void Advance(int i, int first, int last, Block& block) const {
    const CrossLayerMatrices& layer = At(i);
    if (layer.from_latent) {
      ProjectRows(kernels_, block.latent.data(), *layer.from_latent, first,
                  last, block.x.data(), Epilogue::kAdd);
    } else {
      for (size_t e = RowAt(first); e < RowAt(last); ++e) {
        block.x[e] += block.latent[e];
      }
    }
    if (!block.emits) return;
    ProjectRows(kernels_, block.x.data(), layer.projections.k, first, last,
                block.keys.data());
    ProjectRows(kernels_, block.x.data(), layer.projections.v, first, last,
                block.values.data());
  }

  void Emit(int i, Block& block, const RematSink& sink) const {
    RematRows out;
    out.k_pre = block.keys.data();
    out.v_pre = block.values.data();
    sink(i, out);
  }

  const std::vector<CrossLayerMatrices> matrices_;
  const std::vector<BlockCoder> coders_;  // of plan().matrices()
  const Kernels& kernels_;
  const AllFiniteFn all_finite_;
};

}  // namespace

BaseOptions ReadBaseOptions(OptionReader& options, const QuantOptions& quant,
                            int layers) {
  const std::string count = options.Choice("base_layers", {"1", "2", "3", "4"},
                                           std::to_string(layers));
  const std::string bits =
      options.Choice("base_bits", {"2", "3", "4", "8"},
                     std::to_string(std::max(quant.bits, 4)));
  BaseOptions base{layers, quant.bits};
  if (count.size() == 1 && count[0] >= '1' && count[0] <= '4') {
    base.layers = count[0] - '0';
  }
  if (bits.size() == 1 && bits[0] >= '1' && bits[0] <= '8') {
    base.bits = bits[0] - '0';
  }
  return base;
}

Prediction ReadPrediction(OptionReader& options, bool refined) {
  const std::string x = options.Choice("x", {"unit", "residual", "fit"},
                                       refined ? "fit" : "unit");
  if (x == "unit") return Prediction::kUnit;
  return x == "fit" ? Prediction::kFit : Prediction::kResidual;
}

std::unique_ptr<const Codec> NewCrossLayerCodec(
    CodecSpec spec, PayloadPlan plan, std::vector<CrossLayerMatrices> matrices,
    Isa isa) {
  return std::make_unique<const CrossLayer>(std::move(spec), std::move(plan),
                                            std::move(matrices), isa);
}

}  // namespace xcache
