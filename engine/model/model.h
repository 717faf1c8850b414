// A model as its GGUF file gives it: hyper-parameters, tensors (views of the
// file's bytes in memory, never copied here), tokenizer data. Says nothing
// about how an engine keeps or multiplies them.
#ifndef XCACHE_ENGINE_MODEL_MODEL_H_
#define XCACHE_ENGINE_MODEL_MODEL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/model/gguf.h"
#include "engine/pooling.h"

namespace xcache {

// Which two elements of a head RoPE turns together.
enum class RopePairs {
  kInterleaved,  // (2i, 2i+1): architecture llama in GGUF files
  kHalves,       // (i, i + rope_dim/2): qwen2, qwen3, gemma3
};

// Llama 3.1's frequency scaling arrives as factors, one for each pair, in the
// tensor rope_freqs.weight: each pair's angle is divided by its factor.
enum class RopeScaling { kNone, kLinear };

struct HyperParams {
  std::string architecture;
  std::string name;
  int num_layers = 0;
  int d_model = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int d_ff = 0;
  int vocab_size = 0;
  int context_length = 0;
  float rms_norm_eps = 0.0f;
  Pooling pooling = Pooling::kMean;
  float rope_freq_base = 10000.0f;
  int rope_dim = 0;  // of head_dim, rotated; the rest passes through
  RopePairs rope_pairs = RopePairs::kInterleaved;
  RopeScaling rope_scaling = RopeScaling::kNone;
  float rope_linear_factor = 1.0f;
  float attention_scale = 1.0f;  // of q k^T
  float embedding_scale = 1.0f;  // of what is embedded
  bool gelu = false;             // the gate's activation; else SiLU
  // Keys that a token sees, its own included, where attention slides; 0: it
  // does in no layer. There RoPE has a base of its own and no scaling.
  int window = 0;
  int window_pattern = 1;  // one layer of so many, the last, sees all keys
  float window_rope_freq_base = 10000.0f;

  bool slides(int layer) const {
    return window > 0 && (layer + 1) % window_pattern != 0;
  }
  int kv_dim() const { return n_kv_heads * head_dim; }  // "k" of the codecs
};

// A matrix or vector of the file. Row-major: `rows` output features, each of
// `cols` input features (GGUF names them ne[1], ne[0]); a vector has rows 1.
struct TensorView {
  std::string_view name;
  GgufType type = GgufType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const uint8_t> bytes;
};

// Row `row` of `tensor` as FP32, `out` [cols]. REQUIRES: 0 <= row < rows.
void DequantizeRow(const TensorView& tensor, int64_t row, float* out);

struct LayerTensors {
  TensorView attn_norm;                  // [d_model]
  TensorView wq, wk, wv;                 // [n_heads*head_dim | k, d_model]
  TensorView wo;                         // [d_model, n_heads*head_dim]
  std::optional<TensorView> bq, bk, bv;  // biases, where the model has them
  // RMS norms of each head, [head_dim], where the model has them.
  std::optional<TensorView> q_norm, k_norm;
  // RMS norms of what attention and feed-forward network add, [d_model], where
  // the model has them.
  std::optional<TensorView> post_attn_norm, post_ffn_norm;
  TensorView ffn_norm;      // [d_model]
  TensorView w_gate, w_up;  // [d_ff, d_model]
  TensorView w_down;        // [d_model, d_ff]
};

class Model {
 public:
  // Reads and checks the file. The fingerprint is of the very bytes that the
  // tensors are views of, whatever becomes of the file. Errors say what was
  // expected and found: NOT_FOUND (no such file), INVALID_ARGUMENT (not a GGUF,
  // truncated, a missing or wrongly shaped tensor), UNIMPLEMENTED (an
  // architecture, tensor type or hyper-parameter that would silently be a wrong
  // model), FAILED_PRECONDITION (the file changed while it was read).
  static absl::StatusOr<std::shared_ptr<const Model>> Load(
      const std::string& path);
  // The same, of a file already parsed.
  static absl::StatusOr<std::shared_ptr<const Model>> FromGguf(
      std::unique_ptr<const GgufFile> gguf);

  const HyperParams& hparams() const { return hparams_; }
  const GgufFile& gguf() const { return *gguf_; }
  const LayerTensors& layer(int i) const {
    return layers_[static_cast<size_t>(i)];
  }
  const TensorView& token_embd() const { return token_embd_; }  // [vocab, d]
  const TensorView& output_norm() const { return output_norm_; }
  // [vocab, d]; the token embedding where tied.
  const TensorView& output() const { return output_; }
  // Llama 3.1's factors, [rope_dim / 2].
  const std::optional<TensorView>& rope_freqs() const { return rope_freqs_; }
  // SHA-256 of the whole file: weights, hyper-parameters and tokenizer.
  const Digest& fingerprint() const { return fingerprint_; }
  int64_t num_parameters() const { return num_parameters_; }
  // Gives back the memory of a tensor that an engine has packed for itself;
  // nobody may read it again. What codecs are made from (wk, wv, norms) stays.
  void Release(const TensorView& tensor) const { gguf_->Release(tensor.bytes); }

 private:
  Model() = default;

  std::unique_ptr<const GgufFile> gguf_;
  HyperParams hparams_;
  std::vector<LayerTensors> layers_;
  TensorView token_embd_, output_norm_, output_;
  std::optional<TensorView> rope_freqs_;
  Digest fingerprint_{};
  int64_t num_parameters_ = 0;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_MODEL_MODEL_H_
