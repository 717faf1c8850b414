// Codec xquant-tc: a transform codec for the rows that W_k and W_v give, whose
// pages differ in size.
//
// Layer 0's K and V follow from the token ids and take no bytes. The other
// layers form groups of neighbours. A group's latents, all layers side by side,
// are predicted from what the decoder has (transform_data.h); what is left is
// turned into the principal axes of a metric, the Fisher information of the
// model's output, so that a step of rounding costs alike on each; rounded, with
// a step that each token chooses; and entropy-coded with static tables
// (symbol_coder.h). The loop is closed: a group is predicted from what came
// back of the group before, not from what went in.
//
// Parsing depends on integers alone. The sums of the synthesis have a fixed
// order, FMA over k, on every instruction set (float_matmul.h).
//
// A payload: its bytes, a coarsening, then the symbols; PAGE_FORMAT.md.
//
// Long, because the way there and the way back share each of their steps.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/dependent_layers.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/transform/level_choice.h"
#include "engine/xcache/transform/row_corrector.h"
#include "engine/xcache/transform/symbol_coder.h"
#include "engine/xcache/transform/transform_data.h"

namespace xcache {
namespace {

constexpr size_t kRows = kBlockTokens;
static_assert(kBlockTokens == kRansLanes);

// Header of a payload.
constexpr size_t kCoarseningAt = 4;
constexpr size_t kSymbolsAt = 8;

// Steps are doubled so often at most: enough for any finite row.
constexpr int kMaxCoarsening = 96;
// A coefficient is rounded down a little more often than to the nearest:
// smaller magnitudes are cheaper.
constexpr float kRounding = 0.48f;
constexpr float kMaxMagnitude = 32767.0f;

// Channels that are expected to be so large, in steps of the middle class, are
// multiplied whether they are 0 or not: about half of their coefficients are,
// and a product that need not look takes half the time.
constexpr uint32_t kDenseExpectation = kExpectationUnit / 2;

// 2^(c / 2 - 1)
constexpr std::array<float, kNumSteps> kStepFactors = {0.5f, 0.70710678f, 1.0f,
                                                       1.41421356f, 2.0f};

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

// One group, packed for the level's channels.
struct Group {
  size_t first_layer = 0;
  size_t width = 0;     // of its latents
  size_t features = 0;  // that it is predicted from
  size_t rank = 0;
  size_t channels = 0;
  size_t dense = 0;     // the first channels, of which more are coded than not
  PackedFloat predict;  // [features, rank]
  PackedFloat encode;   // [width + rank, channels]
  PackedFloat decode_dense;           // [rank + dense, width]
  PackedFloat decode_sparse;          // [channels - dense, width]
  std::vector<float> predict_scales;  // [rank]
  std::vector<float> encode_scales;   // [channels]
  std::vector<float> decode_scales;   // [rank + channels]
  TransformLevel::Group level;
  // The level of magnitude of each expectation, [channels][kNumSteps].
  std::vector<uint8_t> levels;
};

absl::StatusOr<Group> PackGroup(const TransformData& data, size_t g,
                                const TransformLevel::Group& level) {
  const TransformGroup& from = data.groups[g];
  const Kernels& kernels = GetKernels(Isa::kRef);
  Group out;
  out.first_layer = from.first_layer;
  out.width =
      size_t{from.num_layers} * 2 * static_cast<size_t>(data.shape.kv_dim);
  out.features = NumFeatures(data, g);
  out.rank = from.rank;
  out.channels = level.channels;
  out.level = level;
  for (uint32_t expectation : level.expectations) {
    out.levels.push_back(static_cast<uint8_t>(MagnitudeOf(expectation)));
  }
  XC_ASSIGN_OR_RETURN(out.predict, PackRows(from.predict, out.rank));
  XC_ASSIGN_OR_RETURN(out.encode, PackRows(from.encode, out.channels));
  // Rows [first, first + count) of D, as a matrix of so many inputs.
  const auto decode = [&](size_t first, size_t count) {
    return PackedFloat::FromWeightRows(
        static_cast<int>(out.width), static_cast<int>(count), FloatType::kF16,
        [&, first, count](int row, float* to) {
          for (size_t i = 0; i < count; ++i) {
            kernels.from_f16(&from.decode.values[(first + i) * out.width +
                                                 static_cast<size_t>(row)],
                             1, to + i);
          }
        });
  };
  while (out.dense < out.channels &&
         level.expectations[out.dense * kNumSteps + kNumSteps / 2] >=
             kDenseExpectation) {
    ++out.dense;
  }
  XC_ASSIGN_OR_RETURN(out.decode_dense, decode(0, out.rank + out.dense));
  if (out.dense < out.channels) {
    XC_ASSIGN_OR_RETURN(out.decode_sparse,
                        decode(out.rank + out.dense, out.channels - out.dense));
  }
  out.predict_scales = from.predict.scales;
  out.encode_scales = {
      from.encode.scales.begin(),
      from.encode.scales.begin() + static_cast<ptrdiff_t>(out.channels)};
  out.decode_scales = {from.decode.scales.begin(),
                       from.decode.scales.begin() +
                           static_cast<ptrdiff_t>(out.rank + out.channels)};
  return out;
}

class TransformCodec final : public DependentLayers {
 public:
  TransformCodec(CodecSpec spec, PayloadPlan plan, const TransformData& data,
                 const TransformLevel& level, std::vector<Group> groups,
                 SymbolTables tables, RowCorrector corrector,
                 KvProjections first_layer, const CodecSources& sources,
                 Isa isa)
      : DependentLayers(std::move(spec), std::move(plan)),
        step_(level.step),
        class_layers_(data.class_layers),
        class_weights_(data.class_weights),
        class_bias_(data.class_bias),
        groups_(std::move(groups)),
        tables_(std::move(tables)),
        corrector_(std::move(corrector)),
        first_layer_(std::move(first_layer)),
        embedding_(sources.embedding),
        rms_norm_eps_(sources.rms_norm_eps),
        kernels_(GetKernels(isa)),
        codec_kernels_(GetCodecKernels(isa)) {
    for (const Group& group : groups_) {
      models_.emplace_back(group.level.expectations);
    }
    expected_bytes_ = std::min(kSymbolsAt + ExpectSymbolBytes(level, tables_),
                               this->plan().bytes());
  }

  unsigned live_rows() const override { return kLiveKvPre; }
  // 2: more sinks, and rows that share an error, are corrected.
  int encoder_version() const override { return 2; }
  bool wants_tokens() const override { return true; }
  size_t expected_payload_bytes() const override { return expected_bytes_; }
  size_t used_bytes(std::span<const uint8_t> payload) const override {
    return LoadLe32(payload.data());
  }

  absl::Status SealRemat(const std::function<LayerRows(int layer)>& rows,
                         BlockInfo info, std::span<uint8_t> payload,
                         const RematSink& sink,
                         const ParallelForFn& parallel) const override {
    XC_RETURN_IF_ERROR(CheckPayloadSize(plan(), payload.size()));
    XC_ASSIGN_OR_RETURN(Block block, Begin(info));
    std::vector<std::vector<float>> latents;  // of each group, [64, width]
    XC_RETURN_IF_ERROR(Gather(rows, info.first_row, &latents));
    BlockSymbols symbols;
    ChooseClasses(info.first_row, latents, block, &symbols);
    symbols.groups.resize(groups_.size());
    const size_t sinks = NumSinks(info);
    // Almost always once: coarser where a page would be too large, or a
    // coefficient too large for its integer.
    for (int coarsening = 0; coarsening <= kMaxCoarsening; ++coarsening) {
      block.SetSteps(step_, coarsening, symbols.classes);
      symbols.corrections.clear();
      bool fits = true;
      for (size_t g = 0; g < groups_.size() && fits; ++g) {
        Predict(g, parallel, block);
        fits = Quantize(g, latents[g], parallel, block, &symbols.groups[g]);
        if (!fits) break;
        Synthesize(g, symbols, parallel, block);
        fits = Correct(g, latents[g], sinks, block, &symbols.corrections);
      }
      if (!fits) continue;
      std::vector<uint8_t> bytes(kSymbolsAt);
      EncodeSymbols(tables_, models_, info.first_row, symbols, &bytes);
      if (bytes.size() > payload.size()) continue;
      StoreLe32(bytes.data(), static_cast<uint32_t>(bytes.size()));
      StoreLe32(bytes.data() + kCoarseningAt,
                static_cast<uint32_t>(coarsening));
      std::copy(bytes.begin(), bytes.end(), payload.begin());
      if (sink) Emit(block, sink);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        "rows are too large to be encoded at any step");
  }

  absl::Status RematLayers(LayerRange range, std::span<const uint8_t> payload,
                           BlockInfo info,
                           const RematSink& sink) const override {
    XC_RETURN_IF_ERROR(CheckRange(range));
    if (payload.size() < kSymbolsAt || payload.size() > plan().bytes() ||
        LoadLe32(payload.data()) != payload.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "payload: it does not say that it has ", payload.size(), " bytes"));
    }
    const uint32_t coarsening = LoadLe32(payload.data() + kCoarseningAt);
    if (coarsening > kMaxCoarsening) {
      return absl::InvalidArgumentError(
          absl::StrCat("payload: coarsening: expected at most ", kMaxCoarsening,
                       ", found ", coarsening));
    }
    BlockSymbols symbols;
    XC_RETURN_IF_ERROR(DecodeSymbols(
        tables_, models_,
        {static_cast<uint32_t>(num_layers()), static_cast<uint32_t>(2 * k())},
        info.first_row, codec_kernels_, payload.subspan(kSymbolsAt), &symbols));
    XC_ASSIGN_OR_RETURN(Block block, Begin(info));
    block.SetSteps(step_, static_cast<int>(coarsening), symbols.classes);
    for (size_t g = 0; g < groups_.size(); ++g) {
      Predict(g, nullptr, block);
      Synthesize(g, symbols, nullptr, block);
      for (const LayerCorrection& correction : symbols.corrections) {
        if (Holds(g, correction.layer)) Apply(g, correction, block);
      }
      if (!AllFinite(block.latents[g])) {
        return absl::InvalidArgumentError("payload: a row is not finite");
      }
    }
    Emit(block, sink);
    return absl::OkStatus();
  }

 private:
  // A block on its way through the groups.
  struct Block {
    std::vector<float> unit;  // [64, d] of the embeddings
    std::array<float, kRows> steps{};
    std::vector<float> features;   // [64, features] of the group at hand
    std::vector<float> predicted;  // [64, rank] z, without its scales
    std::vector<float> inputs;     // of the product at hand
    // What came back of each group, [64, width].
    std::vector<std::vector<float>> latents;

    // 0 for tokens that are not coded.
    void SetSteps(float step, int coarsening,
                  const std::array<uint32_t, kRansLanes>& classes) {
      const float coarse = std::ldexp(step, coarsening);
      for (size_t r = 0; r < kRows; ++r) {
        steps[r] =
            classes[r] < kNumSteps ? coarse * kStepFactors[classes[r]] : 0.0f;
      }
    }
  };

  size_t d() const { return static_cast<size_t>(plan().shape().d_model); }
  size_t k() const { return static_cast<size_t>(plan().shape().kv_dim); }
  bool AllFinite(const std::vector<float>& values) const {
    return codec_kernels_.all_finite(values.data(),
                                     static_cast<int64_t>(values.size()));
  }

  absl::StatusOr<Block> Begin(BlockInfo info) const {
    if (info.tokens.size() != kRows) {
      return absl::InternalError(
          absl::StrCat("codec ", spec().name, ": expected ", kRows,
                       " token ids, found ", info.tokens.size()));
    }
    Block block;
    block.unit.resize(kRows * d());
    std::vector<float> row(d());
    for (size_t r = 0; r < kRows; ++r) {
      embedding_(info.tokens[r], row.data());
      kernels_.rms_norm(row.data(), nullptr, static_cast<int>(d()),
                        rms_norm_eps_, nullptr, &block.unit[r * d()]);
    }
    block.latents.resize(groups_.size());
    return block;
  }

  // All groups' latents; zeros before `first_row`.
  absl::Status Gather(const std::function<LayerRows(int layer)>& rows,
                      int first_row,
                      std::vector<std::vector<float>>* latents) const {
    // Layer 0 is asked for too: callers hand layers out in order.
    XC_RETURN_IF_ERROR(CheckRows(kLiveKvPre, plan().shape(), rows(0), first_row,
                                 0, codec_kernels_.all_finite));
    for (const Group& group : groups_) {
      std::vector<float>& out = latents->emplace_back(kRows * group.width);
      for (size_t j = 0; j * 2 * k() < group.width; ++j) {
        const int layer = static_cast<int>(group.first_layer + j);
        const LayerRows in = rows(layer);
        XC_RETURN_IF_ERROR(CheckRows(kLiveKvPre, plan().shape(), in, first_row,
                                     layer, codec_kernels_.all_finite));
        for (size_t r = static_cast<size_t>(first_row); r < kRows; ++r) {
          float* to = &out[r * group.width + j * 2 * k()];
          std::copy_n(in.k_pre + r * k(), k(), to);
          std::copy_n(in.v_pre + r * k(), k(), to + k());
        }
      }
    }
    return absl::OkStatus();
  }

  // A row's latents of a layer; layer 0 has none.
  const float* LatentOf(const std::vector<std::vector<float>>& latents,
                        size_t layer, size_t row) const {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      const size_t at = (layer - group.first_layer) * 2 * k();
      if (layer >= group.first_layer && at < group.width) {
        return &latents[g][row * group.width + at];
      }
    }
    return nullptr;
  }

  void ChooseClasses(int first_row,
                     const std::vector<std::vector<float>>& latents,
                     const Block& block, BlockSymbols* symbols) const {
    symbols->classes.fill(kUncodedClass);
    for (auto r = static_cast<size_t>(first_row); r < kRows; ++r) {
      const float* weights = class_weights_.data();
      float p = class_bias_ + Dot(&block.unit[r * d()], weights, d());
      weights += d();
      for (uint32_t layer : class_layers_) {
        const float* latent = LatentOf(latents, layer, r);
        if (latent != nullptr) p += Dot(latent, weights, 2 * k());
        weights += 2 * k();
      }
      constexpr float kMost = kNumSteps / 2;
      // A NaN, of rows beyond all measure, is as good as any.
      const float rounded =
          p > -kMost ? std::min(std::floor(p + 0.5f), kMost) : -kMost;
      symbols->classes[r] =
          static_cast<uint32_t>(static_cast<int>(rounded) + kNumSteps / 2);
    }
  }

  // out [64, b.n()] = block.inputs b.
  void Multiply(const float* a, const PackedFloat& b,
                const ParallelForFn& parallel, float* out) const {
    FloatMatmulArgs args;
    args.a = a;
    args.a_stride = b.k();
    args.num_rows = kBlockTokens;
    args.b = b.view();
    args.out = out;
    args.out_stride = b.n();
    if (!parallel) return kernels_.float_matmul(args, 0, b.num_panels());
    parallel(b.num_panels(), [&](int64_t panel) {
      kernels_.float_matmul(args, static_cast<int>(panel),
                            static_cast<int>(panel) + 1);
    });
  }

  // Features of group `g` and what it is predicted from them.
  void Predict(size_t g, const ParallelForFn& parallel, Block& block) const {
    const Group& group = groups_[g];
    const size_t known = group.features - d() - 1;  // of the group before
    block.features.resize(kRows * group.features);
    for (size_t r = 0; r < kRows; ++r) {
      float* row = &block.features[r * group.features];
      row = std::copy_n(&block.unit[r * d()], d(), row);
      if (known > 0) {
        const size_t width = groups_[g - 1].width;
        row = std::copy_n(&block.latents[g - 1][(r + 1) * width - known], known,
                          row);
      }
      *row = 1.0f;
    }
    block.predicted.resize(kRows * group.rank);
    Multiply(block.features.data(), group.predict, parallel,
             block.predicted.data());
  }

  // False: a coefficient is too large for an integer.
  bool Quantize(size_t g, const std::vector<float>& latents,
                const ParallelForFn& parallel, Block& block,
                std::vector<int16_t>* symbols) const {
    const Group& group = groups_[g];
    const size_t width = group.width + group.rank;
    block.inputs.resize(kRows * width);
    for (size_t r = 0; r < kRows; ++r) {
      float* row = &block.inputs[r * width];
      row = std::copy_n(&latents[r * group.width], group.width, row);
      for (size_t i = 0; i < group.rank; ++i) {
        *row++ = -block.predicted[r * group.rank + i] * group.predict_scales[i];
      }
    }
    std::vector<float> coefficients(kRows * group.channels);
    Multiply(block.inputs.data(), group.encode, parallel, coefficients.data());
    symbols->assign(group.channels * kRows, 0);
    std::vector<int16_t> values(group.channels);
    for (size_t r = 0; r < kRows; ++r) {
      if (!(block.steps[r] > 0.0f)) continue;
      const float inverse = 1.0f / block.steps[r];
      const float* row = &coefficients[r * group.channels];
      const float* scales = group.encode_scales.data();
      bool fits = true;
      for (size_t c = 0; c < group.channels; ++c) {
        const float x = row[c] * scales[c] * inverse;
        const float size = std::abs(x) + kRounding;
        const bool small = size < kMaxMagnitude + 1.0f;
        fits &= small;
        // Whole numbers by truncation, as floor would give, in vectors.
        const int q = static_cast<int>(small ? size : 0.0f);
        values[c] = static_cast<int16_t>(x < 0.0f ? -q : q);
      }
      if (!fits) return false;
      for (size_t c = 0; c < group.channels; ++c) {
        (*symbols)[c * kRows + r] = values[c];
      }
    }
    return true;
  }

  // What comes back of group `g`, of what Predict has left. Most coefficients
  // beyond the first channels are 0 and take no work. Sums run over the
  // prediction, then the channels, in order.
  void Synthesize(size_t g, const BlockSymbols& symbols,
                  const ParallelForFn& parallel, Block& block) const {
    const Group& group = groups_[g];
    const size_t width = group.rank + group.dense;
    block.inputs.resize(kRows * width);
    for (size_t r = 0; r < kRows; ++r) {
      float* row = &block.inputs[r * width];
      for (size_t i = 0; i < group.rank; ++i) {
        row[i] = block.predicted[r * group.rank + i] * group.predict_scales[i] *
                 group.decode_scales[i];
      }
    }
    const Values values = Restore(group, symbols.groups[g], symbols.classes,
                                  block.steps, &block.inputs);
    block.latents[g].resize(kRows * group.width);
    Multiply(block.inputs.data(), group.decode_dense, parallel,
             block.latents[g].data());
    if (group.dense == group.channels) return;
    SparseMatmulArgs args;
    args.values = values.values.data();
    args.inner = values.channels.data();
    args.row_starts = values.row_starts.data();
    args.num_rows = kBlockTokens;
    args.b = group.decode_sparse.view();
    args.out = block.latents[g].data();
    args.out_stride = static_cast<int64_t>(group.width);
    const int panels = group.decode_sparse.num_panels();
    if (!parallel) return kernels_.sparse_matmul(args, 0, panels);
    parallel(panels, [&](int64_t panel) {
      kernels_.sparse_matmul(args, static_cast<int>(panel),
                             static_cast<int>(panel) + 1);
    });
  }

  bool Holds(size_t g, uint32_t layer) const {
    const Group& group = groups_[g];
    return layer >= group.first_layer &&
           (layer - group.first_layer) * 2 * k() < group.width;
  }

  void Apply(size_t g, const LayerCorrection& correction, Block& block) const {
    const Group& group = groups_[g];
    corrector_.Apply(
        correction, block.steps,
        &block.latents[g][(correction.layer - group.first_layer) * 2 * k()],
        static_cast<int64_t>(group.width));
  }

  // The block's first rows that are sinks: each query reads the sequence's
  // first token, and a token that repeats it, with nothing else in between, has
  // the same rows.
  static size_t NumSinks(BlockInfo info) {
    if (info.first_row == 0) return 0;
    const auto other =
        std::find_if(info.tokens.begin(), info.tokens.end(),
                     [&](TokenId id) { return id != info.tokens.front(); });
    return static_cast<size_t>(other - info.tokens.begin());
  }

  // Corrects what came back of group `g` where it errs too much. False: it errs
  // beyond what integers hold.
  bool Correct(size_t g, const std::vector<float>& latents, size_t sinks,
               Block& block, std::vector<LayerCorrection>* corrections) const {
    const Group& group = groups_[g];
    std::vector<float>& errors = block.inputs;
    errors.resize(latents.size());
    for (size_t i = 0; i < latents.size(); ++i) {
      errors[i] = latents[i] - block.latents[g][i];
    }
    for (size_t j = 0; j * 2 * k() < group.width; ++j) {
      const size_t before = corrections->size();
      if (!corrector_.Correct(static_cast<uint32_t>(group.first_layer + j),
                              &errors[j * 2 * k()],
                              static_cast<int64_t>(group.width), block.steps,
                              sinks, corrections)) {
        return false;
      }
      if (corrections->size() > before) Apply(g, corrections->back(), block);
    }
    return true;
  }

  // Coefficients that are not 0, as they come back, row by row.
  struct Values {
    std::vector<float> values;
    std::vector<int32_t> channels;  // beyond the dense ones
    std::array<int32_t, kRows + 1> row_starts{};
  };

  // Of the channels that are not dense; those that are go into `inputs`
  // [64, rank + dense], after the prediction.
  Values Restore(const Group& group, const std::vector<int16_t>& symbols,
                 const std::array<uint32_t, kRansLanes>& classes,
                 const std::array<float, kRows>& steps,
                 std::vector<float>* inputs) const {
    // Of tokens that are not coded the step is 0, whatever the class.
    std::array<size_t, kRows> known_classes;
    for (size_t r = 0; r < kRows; ++r) {
      known_classes[r] = std::min<size_t>(classes[r], kNumSteps - 1);
    }
    // What channel c of row r holds, where that is not 0.
    const auto value = [&](size_t c, size_t r, int q) {
      const auto magnitude = static_cast<size_t>(std::abs(q));
      const size_t level = group.levels[c * kNumSteps + known_classes[r]];
      const float back =
          (static_cast<float>(magnitude) +
           group.level.shifts[std::min(magnitude, kNumShifts) - 1][level]) *
          steps[r] * group.decode_scales[group.rank + c];
      return q < 0 ? -back : back;
    };
    const size_t width = group.rank + group.dense;
    for (size_t c = 0; c < group.dense; ++c) {
      const int16_t* of = &symbols[c * kRows];
      float* to = &(*inputs)[group.rank + c];
      for (size_t r = 0; r < kRows; ++r) {
        to[r * width] = of[r] == 0 ? 0.0f : value(c, r, of[r]);
      }
    }
    Values out;
    for (size_t i = group.dense * kRows; i < symbols.size(); ++i) {
      out.row_starts[i % kRows + 1] += symbols[i] != 0;
    }
    for (size_t r = 0; r < kRows; ++r) {
      out.row_starts[r + 1] += out.row_starts[r];
    }
    out.values.resize(static_cast<size_t>(out.row_starts[kRows]));
    out.channels.resize(out.values.size());
    std::array<int32_t, kRows> next;
    std::copy_n(out.row_starts.begin(), kRows, next.begin());
    for (size_t c = group.dense; c < group.channels; ++c) {
      const int16_t* of = &symbols[c * kRows];
      for (size_t r = 0; r < kRows; ++r) {
        if (of[r] == 0) continue;
        const auto at = static_cast<size_t>(next[r]++);
        out.values[at] = value(c, r, of[r]);
        out.channels[at] = static_cast<int32_t>(c - group.dense);
      }
    }
    return out;
  }

  void Emit(const Block& block, const RematSink& sink) const {
    std::vector<float> keys(kRows * k()), values(kRows * k());
    RematRows out;
    out.k_pre = keys.data();
    out.v_pre = values.data();
    ProjectRows(kernels_, block.unit.data(), first_layer_.k, 0, kBlockTokens,
                keys.data());
    ProjectRows(kernels_, block.unit.data(), first_layer_.v, 0, kBlockTokens,
                values.data());
    sink(0, out);
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      for (size_t j = 0; j * 2 * k() < group.width; ++j) {
        for (size_t r = 0; r < kRows; ++r) {
          const float* row = &block.latents[g][r * group.width + j * 2 * k()];
          std::copy_n(row, k(), &keys[r * k()]);
          std::copy_n(row + k(), k(), &values[r * k()]);
        }
        sink(static_cast<int>(group.first_layer + j), out);
      }
    }
  }

  const float step_;
  const std::array<uint32_t, 2> class_layers_;
  const std::vector<float> class_weights_;
  const float class_bias_;
  const std::vector<Group> groups_;
  std::vector<ContextModel> models_;  // of groups_
  const SymbolTables tables_;
  const RowCorrector corrector_;
  const KvProjections first_layer_;
  const EmbeddingFn embedding_;
  const float rms_norm_eps_;
  const Kernels& kernels_;
  const CodecKernels& codec_kernels_;
  size_t expected_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const Codec>> MakeXquantTc(
    const CodecSpec& spec, const CodecSources& sources, Isa isa) {
  OptionReader options(spec);
  const std::string rate = options.ChoiceOrNumber(
      "rate", {kLevelNames.begin(), kLevelNames.end()}, 2, 1000, "balanced");
  XC_ASSIGN_OR_RETURN(CodecSpec canonical, options.Finish());
  const TransformData& data = *sources.profile->transform();
  if (!(data.shape == sources.shape)) {
    return absl::InternalError("profile of another shape than the model's");
  }
  std::vector<SymbolFrequencies> tables = data.tables;
  // Of tokens that are not coded: 0 alone, which takes no bits.
  tables.insert(tables.begin() + kZeroTable, {{kRansTotal}, 0});
  XC_ASSIGN_OR_RETURN(SymbolTables symbol_tables, SymbolTables::Create(tables));
  TransformLevel level;
  const auto name = std::find(kLevelNames.begin(), kLevelNames.end(), rate);
  if (name != kLevelNames.end()) {
    level = data.levels[static_cast<size_t>(name - kLevelNames.begin())];
  } else {
    int ratio = 0;
    (void)absl::SimpleAtoi(rate, &ratio);
    XC_ASSIGN_OR_RETURN(level, LevelOfRatio(data, symbol_tables, ratio));
  }
  std::vector<Group> groups;
  for (size_t g = 0; g < data.groups.size(); ++g) {
    XC_ASSIGN_OR_RETURN(groups.emplace_back(),
                        PackGroup(data, g, level.groups[g]));
  }
  XC_ASSIGN_OR_RETURN(RowCorrector corrector,
                      RowCorrector::Create(data, level, GetKernels(isa)));
  XC_ASSIGN_OR_RETURN(KvProjections first_layer, PackKvProjections(sources, 0));
  // No larger than kv-fp16's: where a page would be, its steps are coarsened.
  const auto values = static_cast<size_t>(sources.shape.num_layers) * 2 *
                      static_cast<size_t>(sources.shape.kv_dim);
  PayloadPlan plan = PayloadPlan::VariableSize(
      sources.shape, std::max<size_t>(4096, 2 * kRows * values));
  return std::make_unique<const TransformCodec>(
      std::move(canonical), std::move(plan), data, level, std::move(groups),
      std::move(symbol_tables), std::move(corrector), std::move(first_layer),
      sources, isa);
}

}  // namespace xcache
