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
// Parsing depends on integers alone, and so do the sums of the synthesis
// (group_coder.h).
//
// A payload: its bytes, a coarsening, then the symbols; PAGE_FORMAT.md.
//
// Long, because the way there and the way back share each of their steps.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/codec_kernels.h"
#include "engine/kernels/kernels.h"
#include "engine/xcache/codec_impl.h"
#include "engine/xcache/dependent_layers.h"
#include "engine/xcache/little_endian.h"
#include "engine/xcache/projection.h"
#include "engine/xcache/transform/group_coder.h"
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
  size_t width() const { return coder.width(); }

  size_t first_layer = 0;
  GroupCoder coder;
};

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
    for (const TransformLevel::Group& group : level.groups) {
      models_.emplace_back(group.expectations);
    }
    expected_bytes_ = std::min(kSymbolsAt + ExpectSymbolBytes(level, tables_),
                               this->plan().bytes());
  }

  unsigned live_rows() const override { return kLiveKvPre; }
  // 2: more sinks, and rows that share an error, are corrected. 3: synthesis in
  // integers.
  int encoder_version() const override { return 3; }
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
    const Lease lease(*this);
    Block& block = lease.block();
    XC_RETURN_IF_ERROR(Begin(info, block));
    block.work.parallel = parallel;
    BlockSymbols& symbols = block.symbols;
    XC_RETURN_IF_ERROR(Gather(rows, info.first_row, &block.latents));
    ChooseClasses(info.first_row, block);
    symbols.groups.resize(groups_.size());
    const size_t sinks = NumSinks(info);
    // Almost always once: coarser where a page would be too large, or a
    // coefficient too large for its integer.
    for (int coarsening = 0; coarsening <= kMaxCoarsening; ++coarsening) {
      block.SetSteps(step_, coarsening, symbols.classes);
      symbols.corrections.clear();
      bool fits = true;
      for (size_t g = 0; g < groups_.size() && fits; ++g) {
        Predict(g, block);
        fits = Code(g, block) && Correct(g, sinks, block);
      }
      if (!fits) continue;
      std::vector<uint8_t> bytes(kSymbolsAt);
      EncodeSymbols(tables_, models_, info.first_row, symbols, &bytes);
      if (bytes.size() > payload.size()) continue;
      StoreLe32(bytes.data(), static_cast<uint32_t>(bytes.size()));
      StoreLe32(bytes.data() + kCoarseningAt,
                static_cast<uint32_t>(coarsening));
      std::copy(bytes.begin(), bytes.end(), payload.begin());
      if (sink) Emit(block, {0, num_layers()}, sink);
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
    const Lease lease(*this);
    Block& block = lease.block();
    BlockSymbols& symbols = block.symbols;
    XC_RETURN_IF_ERROR(DecodeSymbols(
        tables_, models_,
        {static_cast<uint32_t>(num_layers()), static_cast<uint32_t>(2 * k())},
        info.first_row, codec_kernels_, payload.subspan(kSymbolsAt), &symbols));
    XC_RETURN_IF_ERROR(Begin(info, block));
    block.SetSteps(step_, static_cast<int>(coarsening), symbols.classes);
    for (size_t g = 0; g < groups_.size(); ++g) {
      Predict(g, block);
      Synthesize(g, block);
      for (const LayerCorrection& correction : symbols.corrections) {
        if (Holds(g, correction.layer)) Apply(g, correction, block);
      }
      if (!AllFinite(block.back[g])) {
        return absl::InvalidArgumentError("payload: a row is not finite");
      }
    }
    Emit(block, range, sink);
    return absl::OkStatus();
  }

 private:
  // A block on its way through the groups.
  struct Block {
    std::vector<float> unit;  // [64, d] of the embeddings
    BlockSymbols symbols;
    std::array<float, kRows> steps{};
    std::vector<std::vector<float>> latents;  // of each group, [64, width]
    std::vector<std::vector<float>> back;     // what comes back of them
    // Of the group at hand: [64, features], [64, channels], [64, width].
    std::vector<float> features, coefficients, errors;
    GroupCoder::Work work;

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

  // A block's megabytes, which are new to the system each time otherwise.
  class Lease {
   public:
    explicit Lease(const TransformCodec& codec) : codec_(codec) {
      MutexLock lock(codec.mu_);
      if (codec.blocks_.empty()) {
        block_ = std::make_unique<Block>();
      } else {
        block_ = std::move(codec.blocks_.back());
        codec.blocks_.pop_back();
      }
    }
    ~Lease() {
      MutexLock lock(codec_.mu_);
      codec_.blocks_.push_back(std::move(block_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Block& block() const { return *block_; }

   private:
    const TransformCodec& codec_;
    std::unique_ptr<Block> block_;
  };

  size_t d() const { return static_cast<size_t>(plan().shape().d_model); }
  size_t k() const { return static_cast<size_t>(plan().shape().kv_dim); }
  bool AllFinite(const std::vector<float>& values) const {
    return codec_kernels_.all_finite(values.data(),
                                     static_cast<int64_t>(values.size()));
  }

  absl::Status Begin(BlockInfo info, Block& block) const {
    if (info.tokens.size() != kRows) {
      return absl::InternalError(
          absl::StrCat("codec ", spec().name, ": expected ", kRows,
                       " token ids, found ", info.tokens.size()));
    }
    block.work.parallel = nullptr;
    block.unit.resize(kRows * d());
    std::vector<float> row(d());
    for (size_t r = 0; r < kRows; ++r) {
      embedding_(info.tokens[r], row.data());
      kernels_.rms_norm(row.data(), nullptr, static_cast<int>(d()),
                        rms_norm_eps_, nullptr, &block.unit[r * d()]);
    }
    block.back.resize(groups_.size());
    return absl::OkStatus();
  }

  // All groups' latents; zeros before `first_row`.
  absl::Status Gather(const std::function<LayerRows(int layer)>& rows,
                      int first_row,
                      std::vector<std::vector<float>>* latents) const {
    // Layer 0 is asked for too: callers hand layers out in order.
    XC_RETURN_IF_ERROR(CheckRows(kLiveKvPre, plan().shape(), rows(0), first_row,
                                 0, codec_kernels_.all_finite));
    latents->resize(groups_.size());
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      std::vector<float>& out = (*latents)[g];
      out.resize(kRows * group.width());
      std::fill_n(out.begin(), static_cast<size_t>(first_row) * group.width(),
                  0.0f);
      for (size_t j = 0; j * 2 * k() < group.width(); ++j) {
        const int layer = static_cast<int>(group.first_layer + j);
        const LayerRows in = rows(layer);
        XC_RETURN_IF_ERROR(CheckRows(kLiveKvPre, plan().shape(), in, first_row,
                                     layer, codec_kernels_.all_finite));
        for (size_t r = static_cast<size_t>(first_row); r < kRows; ++r) {
          float* to = &out[r * group.width() + j * 2 * k()];
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
      if (layer >= group.first_layer && at < group.width()) {
        return &latents[g][row * group.width() + at];
      }
    }
    return nullptr;
  }

  void ChooseClasses(int first_row, Block& block) const {
    block.symbols.classes.fill(kUncodedClass);
    for (auto r = static_cast<size_t>(first_row); r < kRows; ++r) {
      const float* weights = class_weights_.data();
      float p = class_bias_ + Dot(&block.unit[r * d()], weights, d());
      weights += d();
      for (uint32_t layer : class_layers_) {
        const float* latent = LatentOf(block.latents, layer, r);
        if (latent != nullptr) p += Dot(latent, weights, 2 * k());
        weights += 2 * k();
      }
      constexpr float kMost = kNumSteps / 2;
      // A NaN, of rows beyond all measure, is as good as any.
      const float rounded =
          p > -kMost ? std::min(std::floor(p + 0.5f), kMost) : -kMost;
      block.symbols.classes[r] =
          static_cast<uint32_t>(static_cast<int>(rounded) + kNumSteps / 2);
    }
  }

  // Predicts group `g`: block.back[g] is what is known before its coefficients.
  void Predict(size_t g, Block& block) const {
    const GroupCoder& coder = groups_[g].coder;
    const size_t known = coder.features() - d() - 1;  // of the group before
    block.features.resize(kRows * coder.features());
    for (size_t r = 0; r < kRows; ++r) {
      float* row = &block.features[r * coder.features()];
      row = std::copy_n(&block.unit[r * d()], d(), row);
      if (known > 0) {
        const size_t width = groups_[g - 1].width();
        row = std::copy_n(&block.back[g - 1][(r + 1) * width - known], known,
                          row);
      }
      *row = 1.0f;
    }
    block.back[g].resize(kRows * coder.width());
    coder.Predict(block.features.data(), block.work, block.back[g].data());
  }

  // The coefficients of what Predict has left out; block.back[g] is then what
  // comes back. False: one is too large for an integer.
  bool Code(size_t g, Block& block) const {
    const GroupCoder& coder = groups_[g].coder;
    float* back = block.back[g].data();
    std::vector<int16_t>& symbols = block.symbols.groups[g];
    symbols.resize(coder.num_channels() * kRows);
    for (size_t part = 0; part < GroupCoder::kNumParts; ++part) {
      const size_t channels = coder.num_channels(part);
      if (channels == 0) continue;
      block.coefficients.resize(kRows * channels);
      coder.Encode(part, block.latents[g].data(), back, block.work,
                   block.coefficients.data());
      int16_t* of = &symbols[coder.first_channel(part) * kRows];
      if (!Quantize(block, of)) return false;
      coder.AddCoefficients(part, of, block.symbols.classes, block.steps,
                            block.work, back);
    }
    return true;
  }

  // `block.coefficients` [64, channels] to `symbols` [channels][64].
  static bool Quantize(const Block& block, int16_t* symbols) {
    constexpr size_t kAtOnce = 64;
    const size_t channels = block.coefficients.size() / kRows;
    std::atomic<bool> all_fit = true;
    const size_t tasks = (channels + kAtOnce - 1) / kAtOnce;
    block.work.ForEach(static_cast<int64_t>(tasks), [&](int64_t task) {
      const size_t begin = static_cast<size_t>(task) * kAtOnce;
      const size_t count = std::min(kAtOnce, channels - begin);
      bool fits = true;
      for (size_t r = 0; r < kRows; ++r) {
        const float step = block.steps[r];
        const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
        const float* row = &block.coefficients[r * channels + begin];
        std::array<int16_t, kAtOnce> values;
        for (size_t c = 0; c < count; ++c) {
          const float x = row[c] * inverse;
          const float size = std::abs(x) + kRounding;
          const bool small = size < kMaxMagnitude + 1.0f;
          fits &= small;
          // Whole numbers by truncation, as floor would give, in vectors.
          const int q = static_cast<int>(small ? size : 0.0f);
          values[c] = static_cast<int16_t>(x < 0.0f ? -q : q);
        }
        for (size_t c = 0; c < count; ++c) {
          symbols[(begin + c) * kRows + r] = values[c];
        }
      }
      if (!fits) all_fit = false;
    });
    return all_fit;
  }

  // Adds group `g`'s coefficients to what Predict has left.
  void Synthesize(size_t g, Block& block) const {
    const GroupCoder& coder = groups_[g].coder;
    for (size_t part = 0; part < GroupCoder::kNumParts; ++part) {
      if (coder.num_channels(part) == 0) continue;
      coder.AddCoefficients(
          part, &block.symbols.groups[g][coder.first_channel(part) * kRows],
          block.symbols.classes, block.steps, block.work, block.back[g].data());
    }
  }

  bool Holds(size_t g, uint32_t layer) const {
    const Group& group = groups_[g];
    return layer >= group.first_layer &&
           (layer - group.first_layer) * 2 * k() < group.width();
  }

  void Apply(size_t g, const LayerCorrection& correction, Block& block) const {
    const Group& group = groups_[g];
    corrector_.Apply(
        correction, block.steps,
        &block.back[g][(correction.layer - group.first_layer) * 2 * k()],
        static_cast<int64_t>(group.width()));
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
  bool Correct(size_t g, size_t sinks, Block& block) const {
    const Group& group = groups_[g];
    std::vector<LayerCorrection>* corrections = &block.symbols.corrections;
    block.errors.resize(block.latents[g].size());
    for (size_t i = 0; i < block.errors.size(); ++i) {
      block.errors[i] = block.latents[g][i] - block.back[g][i];
    }
    for (size_t j = 0; j * 2 * k() < group.width(); ++j) {
      const size_t before = corrections->size();
      if (!corrector_.Correct(static_cast<uint32_t>(group.first_layer + j),
                              &block.errors[j * 2 * k()],
                              static_cast<int64_t>(group.width()), block.steps,
                              sinks, corrections)) {
        return false;
      }
      if (corrections->size() > before) Apply(g, corrections->back(), block);
    }
    return true;
  }

  void Emit(const Block& block, LayerRange range, const RematSink& sink) const {
    std::vector<float> keys(kRows * k()), values(kRows * k());
    RematRows out;
    out.k_pre = keys.data();
    out.v_pre = values.data();
    if (range.has(0)) {
      ProjectRows(kernels_, block.unit.data(), first_layer_.k, 0, kBlockTokens,
                  keys.data());
      ProjectRows(kernels_, block.unit.data(), first_layer_.v, 0, kBlockTokens,
                  values.data());
      sink(0, out);
    }
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      for (size_t j = 0; j * 2 * k() < group.width(); ++j) {
        const int layer = static_cast<int>(group.first_layer + j);
        if (!range.has(layer)) continue;
        for (size_t r = 0; r < kRows; ++r) {
          const float* row = &block.back[g][r * group.width() + j * 2 * k()];
          std::copy_n(row, k(), &keys[r * k()]);
          std::copy_n(row + k(), k(), &values[r * k()]);
        }
        sink(layer, out);
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
  mutable Mutex mu_;
  mutable std::vector<std::unique_ptr<Block>> blocks_ XC_GUARDED_BY(mu_);
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
    XC_ASSIGN_OR_RETURN(
        GroupCoder coder,
        GroupCoder::Create(data, g, level.groups[g], GetCodecKernels(isa)));
    groups.push_back({data.groups[g].first_layer, std::move(coder)});
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
