#include "engine/model/hparams.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace xcache {
namespace {

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .rope_pairs = RopePairs::kInterleaved,
     .qkv_bias_allowed = true,
     .qkv_bias_required = false},
    {.name = "qwen2",
     .rope_pairs = RopePairs::kHalves,
     .qkv_bias_allowed = true,
     .qkv_bias_required = true},
    {.name = "qwen3",
     .rope_pairs = RopePairs::kHalves,
     .qkv_bias_allowed = false,
     .qkv_bias_required = false,
     .qk_norm = true},
    {.name = "gemma3",
     .rope_pairs = RopePairs::kHalves,
     .qkv_bias_allowed = false,
     .qkv_bias_required = false,
     .qk_norm = true,
     .post_norms = true,
     .gelu = true,
     .scales_embedding = true,
     .slides = true},
};

// Bounds that no real model comes near; they keep products of a few of these
// far from overflow.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxContext = 1 << 28;

// What files of Gemma 3 do not say: one in six layers sees all keys, and of the
// largest model, 27B, the scale of attention is another (Gemma 3's report,
// 2025, section 2; its published configuration).
constexpr int kGemmaPattern = 6;
constexpr int kGemma27bLayers = 62;

// Keys that this file reads, or that say nothing about the computation.
constexpr std::string_view kReadKeys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    // The tensors say it.
    "vocab_size",
    // Metadata of how the model was made.
    "tensor_data_layout",
    "rope.scaling.finetuned",
    // What Llama 3.1's factors in rope_freqs.weight were computed from.
    "rope.scaling.original_context_length",
};

// The same, where attention slides.
constexpr std::string_view kSlidingKeys[] = {
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base_swa",
};

// Keys that change the computation unless they say this. Integers, floats and
// bools are compared as numbers.
struct NeutralKey {
  std::string_view key;
  double neutral;
};
constexpr NeutralKey kNeutralKeys[] = {
    {"expert_count", 0},
    {"expert_used_count", 0},
    {"expert_shared_count", 0},
    {"attention.sliding_window", 0},
    {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0},
    {"attention.max_alibi_bias", 0},
    {"attention.clamp_kqv", 0},
    {"attention.causal", 1},
    {"use_parallel_residual", 0},
    {"logit_scale", 1},
    {"embedding_scale", 1},
    {"residual_scale", 1},
    {"rope.scaling.attn_factor", 1},
};

std::optional<double> AsNumber(const GgufValue& value) {
  if (const auto* b = std::get_if<bool>(&value)) return *b ? 1.0 : 0.0;
  if (const auto* i = std::get_if<int64_t>(&value)) {
    return static_cast<double>(*i);
  }
  if (const auto* u = std::get_if<uint64_t>(&value)) {
    return static_cast<double>(*u);
  }
  if (const auto* d = std::get_if<double>(&value)) return *d;
  return std::nullopt;
}

class HyperParamReader {
 public:
  HyperParamReader(const GgufFile& gguf, const Architecture& architecture)
      : gguf_(gguf),
        slides_(architecture.slides),
        prefix_(absl::StrCat(std::string(architecture.name), ".")) {}

  // Every key under the architecture's prefix must be known.
  absl::Status CheckKeys() const {
    for (const auto& [key, value] : gguf_.metadata()) {
      if (!key.starts_with(prefix_)) continue;
      const std::string_view name =
          std::string_view(key).substr(prefix_.size());
      if (std::ranges::find(kReadKeys, name) != std::end(kReadKeys)) continue;
      if (slides_ &&
          std::ranges::find(kSlidingKeys, name) != std::end(kSlidingKeys)) {
        continue;
      }
      const auto* neutral =
          std::ranges::find(kNeutralKeys, name, &NeutralKey::key);
      if (neutral == std::end(kNeutralKeys)) {
        return absl::UnimplementedError(absl::StrCat(
            gguf_.path(), ": hyper-parameter ", absl::CHexEscape(key),
            " is not known: the model may compute something else"));
      }
      const std::optional<double> number = AsNumber(value);
      if (!number || *number != neutral->neutral) {
        return absl::UnimplementedError(absl::StrCat(
            gguf_.path(), ": hyper-parameter ", key, ": expected ",
            neutral->neutral, " (the only one supported), found ",
            number ? absl::StrCat(*number) : "a value of another type"));
      }
    }
    return absl::OkStatus();
  }

  // Present, and in [1, max].
  absl::Status Int(std::string_view name, int64_t max, int* out) const {
    const std::string key = absl::StrCat(prefix_, std::string(name));
    if (!gguf_.Has(key)) {
      return absl::InvalidArgumentError(absl::StrCat(
          gguf_.path(), ": hyper-parameter ", key, ": expected, found none"));
    }
    if (const auto it = gguf_.metadata().find(key); it->second.index() > 4) {
      // Arrays come after the five scalar types of GgufValue.
      return absl::UnimplementedError(
          absl::StrCat(gguf_.path(), ": hyper-parameter ", key,
                       ": expected one number, found an array (layers that "
                       "differ are not supported)"));
    }
    XC_ASSIGN_OR_RETURN(const int64_t value, gguf_.GetInt(key));
    if (value < 1 || value > max) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf_.path(), ": hyper-parameter ", key,
                       ": expected 1 to ", max, ", found ", value));
    }
    *out = static_cast<int>(value);
    return absl::OkStatus();
  }
  absl::Status IntOr(std::string_view name, int64_t max, int otherwise,
                     int* out) const {
    *out = otherwise;
    return Has(name) ? Int(name, max, out) : absl::OkStatus();
  }

  // Present, finite and above 0.
  absl::Status Float(std::string_view name, float* out) const {
    const std::string key = absl::StrCat(prefix_, std::string(name));
    const absl::StatusOr<double> value = gguf_.GetFloat(key);
    if (absl::IsNotFound(value.status())) {
      return absl::InvalidArgumentError(absl::StrCat(
          gguf_.path(), ": hyper-parameter ", key, ": expected, found none"));
    }
    XC_RETURN_IF_ERROR(value.status());
    *out = static_cast<float>(*value);
    if (!std::isfinite(*out) || !(*out > 0.0f)) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf_.path(), ": hyper-parameter ", key,
                       ": expected a finite number above 0, found ", *value));
    }
    return absl::OkStatus();
  }
  absl::Status FloatOr(std::string_view name, float otherwise,
                       float* out) const {
    *out = otherwise;
    return Has(name) ? Float(name, out) : absl::OkStatus();
  }

  bool Has(std::string_view name) const {
    return gguf_.Has(absl::StrCat(prefix_, std::string(name)));
  }

  // llama.cpp's numbers (llama_pooling_type). What says none is a mean.
  absl::Status ReadPooling(Pooling* out) const {
    constexpr int64_t kNone = 0, kMean = 1, kLast = 3;
    if (!Has("pooling_type")) return absl::OkStatus();
    const std::string key = prefix_ + "pooling_type";
    XC_ASSIGN_OR_RETURN(const int64_t type, gguf_.GetInt(key));
    if (type != kNone && type != kMean && type != kLast) {
      return absl::UnimplementedError(absl::StrCat(
          gguf_.path(), ": hyper-parameter ", key, ": expected ", kNone, ", ",
          kMean, " (mean) or ", kLast, " (last), found ", type));
    }
    *out = type == kLast ? Pooling::kLast : Pooling::kMean;
    return absl::OkStatus();
  }

  absl::Status ReadRope(HyperParams* h) const {
    XC_RETURN_IF_ERROR(
        IntOr("rope.dimension_count", kMaxWidth, h->head_dim, &h->rope_dim));
    if (h->rope_dim > h->head_dim || h->rope_dim % 2 != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          gguf_.path(), ": hyper-parameter ", prefix_,
          "rope.dimension_count: expected an even number of at most ",
          h->head_dim, " (the head's dimension), found ", h->rope_dim));
    }
    XC_RETURN_IF_ERROR(FloatOr("rope.freq_base", 10000.0f, &h->rope_freq_base));

    // Old files give the factor alone.
    float factor = 1.0f;
    XC_RETURN_IF_ERROR(FloatOr("rope.scale_linear", 1.0f, &factor));
    XC_RETURN_IF_ERROR(FloatOr("rope.scaling.factor", factor, &factor));
    std::string type = factor == 1.0f ? "none" : "linear";
    const std::string key = absl::StrCat(prefix_, "rope.scaling.type");
    if (gguf_.Has(key)) {
      XC_ASSIGN_OR_RETURN(type, gguf_.GetString(key));
    }
    if (type == "linear") {
      h->rope_scaling = RopeScaling::kLinear;
      h->rope_linear_factor = factor;
    } else if (type != "none") {
      return absl::UnimplementedError(absl::StrCat(
          gguf_.path(), ": hyper-parameter ", key,
          ": expected none or linear, found ", absl::CHexEscape(type)));
    }
    return absl::OkStatus();
  }

 private:
  const GgufFile& gguf_;
  const bool slides_;
  const std::string prefix_;
};

}  // namespace

absl::StatusOr<const Architecture*> FindArchitecture(const GgufFile& gguf) {
  XC_ASSIGN_OR_RETURN(const std::string name,
                      gguf.GetString("general.architecture"));
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return &architecture;
    absl::StrAppend(&known, known.empty() ? "" : ", ",
                    std::string(architecture.name));
  }
  return absl::UnimplementedError(
      absl::StrCat(gguf.path(), ": architecture: expected one of ", known,
                   ", found ", absl::CHexEscape(name)));
}

absl::StatusOr<HyperParams> ReadHyperParams(const GgufFile& gguf,
                                            const Architecture& architecture) {
  const HyperParamReader reader(gguf, architecture);
  XC_RETURN_IF_ERROR(reader.CheckKeys());
  HyperParams h;
  h.architecture = std::string(architecture.name);
  h.rope_pairs = architecture.rope_pairs;
  if (gguf.Has("general.name")) {
    XC_ASSIGN_OR_RETURN(h.name, gguf.GetString("general.name"));
  }
  XC_RETURN_IF_ERROR(reader.Int("block_count", kMaxLayers, &h.num_layers));
  XC_RETURN_IF_ERROR(
      reader.Int("context_length", kMaxContext, &h.context_length));
  XC_RETURN_IF_ERROR(reader.Int("embedding_length", kMaxWidth, &h.d_model));
  XC_RETURN_IF_ERROR(reader.Int("feed_forward_length", kMaxWidth, &h.d_ff));
  XC_RETURN_IF_ERROR(reader.Int("attention.head_count", kMaxHeads, &h.n_heads));
  XC_RETURN_IF_ERROR(reader.IntOr("attention.head_count_kv", kMaxHeads,
                                  h.n_heads, &h.n_kv_heads));
  if (h.n_heads % h.n_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        gguf.path(), ": attention.head_count_kv: expected a divisor of ",
        h.n_heads, " (head_count), found ", h.n_kv_heads));
  }
  if (!reader.Has("attention.key_length") && h.d_model % h.n_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        gguf.path(), ": attention.head_count: expected a divisor of ",
        h.d_model, " (embedding_length), found ", h.n_heads));
  }
  XC_RETURN_IF_ERROR(reader.IntOr("attention.key_length", kMaxWidth,
                                  h.d_model / h.n_heads, &h.head_dim));
  int value_length = 0;
  XC_RETURN_IF_ERROR(reader.IntOr("attention.value_length", kMaxWidth,
                                  h.head_dim, &value_length));
  if (value_length != h.head_dim) {
    return absl::UnimplementedError(
        absl::StrCat(gguf.path(), ": attention.value_length: expected ",
                     h.head_dim, " (that of the keys), found ", value_length));
  }
  XC_RETURN_IF_ERROR(
      reader.Float("attention.layer_norm_rms_epsilon", &h.rms_norm_eps));
  XC_RETURN_IF_ERROR(reader.ReadPooling(&h.pooling));
  XC_RETURN_IF_ERROR(reader.ReadRope(&h));
  h.attention_scale = 1.0f / std::sqrt(static_cast<float>(h.head_dim));
  h.gelu = architecture.gelu;
  if (architecture.scales_embedding) {
    h.embedding_scale = std::sqrt(static_cast<float>(h.d_model));
  }
  if (architecture.slides) {
    XC_RETURN_IF_ERROR(
        reader.Int("attention.sliding_window", kMaxContext, &h.window));
    XC_RETURN_IF_ERROR(reader.IntOr("attention.sliding_window_pattern",
                                    kMaxLayers, kGemmaPattern,
                                    &h.window_pattern));
    XC_RETURN_IF_ERROR(reader.FloatOr("rope.freq_base_swa", 10000.0f,
                                      &h.window_rope_freq_base));
    if (h.num_layers == kGemma27bLayers) {
      h.attention_scale =
          1.0f / std::sqrt(static_cast<float>(h.d_model / h.n_heads));
    }
  }
  return h;
}

}  // namespace xcache
