// Binds a GGUF's tensors to their places in the model, by name and shape.
#include "engine/model/model.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/status_macros.h"
#include "engine/model/hparams.h"

namespace xcache {
namespace {

// Hands out tensors by name and remembers which, so that one that nobody asked
// for shows.
class Binder {
 public:
  explicit Binder(const GgufFile& gguf) : gguf_(gguf) {}

  absl::Status Matrix(const std::string& name, int64_t rows, int64_t cols,
                      TensorView* out) {
    return Bind(name, rows, {cols, rows}, out);
  }
  absl::Status Vector(const std::string& name, int64_t size, TensorView* out) {
    return Bind(name, 1, {size}, out);
  }
  // Nothing where the file has none.
  absl::Status OptionalVector(const std::string& name, int64_t size,
                              std::optional<TensorView>* out) {
    if (gguf_.FindTensor(name) == nullptr) return absl::OkStatus();
    return Vector(name, size, &out->emplace());
  }

  absl::Status CheckAllBound() const {
    for (const GgufTensor& tensor : gguf_.tensors()) {
      if (!bound_.contains(tensor.name)) {
        return absl::UnimplementedError(absl::StrCat(
            gguf_.path(), ": tensor ", absl::CHexEscape(tensor.name),
            " is not known: the model may compute something else"));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Bind(const std::string& name, int64_t rows,
                    const std::vector<int64_t>& dims, TensorView* out) {
    const GgufTensor* tensor = gguf_.FindTensor(name);
    if (tensor == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf_.path(), ": tensor ", name, ": expected [",
                       absl::StrJoin(dims, ", "), "], found none"));
    }
    if (tensor->dims != dims) {
      return absl::InvalidArgumentError(
          absl::StrCat(gguf_.path(), ": tensor ", name, ": expected [",
                       absl::StrJoin(dims, ", "), "], found [",
                       absl::StrJoin(tensor->dims, ", "), "]"));
    }
    *out = {tensor->name, tensor->type, rows, dims[0], tensor->bytes};
    bound_.insert(tensor->name);
    return absl::OkStatus();
  }

  const GgufFile& gguf_;
  std::set<std::string_view> bound_;
};

absl::Status BindLayer(const HyperParams& h, const Architecture& architecture,
                       int index, Binder* binder, LayerTensors* layer) {
  const auto name = [index](const char* part) {
    return absl::StrCat("blk.", index, ".", part);
  };
  const int64_t d = h.d_model, ff = h.d_ff, k = h.kv_dim();
  const int64_t q = int64_t{h.n_heads} * h.head_dim;
  XC_RETURN_IF_ERROR(
      binder->Vector(name("attn_norm.weight"), d, &layer->attn_norm));
  XC_RETURN_IF_ERROR(binder->Matrix(name("attn_q.weight"), q, d, &layer->wq));
  XC_RETURN_IF_ERROR(binder->Matrix(name("attn_k.weight"), k, d, &layer->wk));
  XC_RETURN_IF_ERROR(binder->Matrix(name("attn_v.weight"), k, d, &layer->wv));
  XC_RETURN_IF_ERROR(
      binder->Matrix(name("attn_output.weight"), d, q, &layer->wo));
  if (architecture.qkv_bias_allowed) {
    XC_RETURN_IF_ERROR(
        binder->OptionalVector(name("attn_q.bias"), q, &layer->bq));
    XC_RETURN_IF_ERROR(
        binder->OptionalVector(name("attn_k.bias"), k, &layer->bk));
    XC_RETURN_IF_ERROR(
        binder->OptionalVector(name("attn_v.bias"), k, &layer->bv));
  }
  if (architecture.qkv_bias_required &&
      !(layer->bq && layer->bk && layer->bv)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", index, ": expected biases of q, k and v (",
                     "architecture ", h.architecture, "), found not all"));
  }
  if (architecture.qk_norm) {
    XC_RETURN_IF_ERROR(binder->Vector(name("attn_q_norm.weight"), h.head_dim,
                                      &layer->q_norm.emplace()));
    XC_RETURN_IF_ERROR(binder->Vector(name("attn_k_norm.weight"), h.head_dim,
                                      &layer->k_norm.emplace()));
  }
  if (architecture.post_norms) {
    XC_RETURN_IF_ERROR(binder->Vector(name("post_attention_norm.weight"), d,
                                      &layer->post_attn_norm.emplace()));
    XC_RETURN_IF_ERROR(binder->Vector(name("post_ffw_norm.weight"), d,
                                      &layer->post_ffn_norm.emplace()));
  }
  XC_RETURN_IF_ERROR(
      binder->Vector(name("ffn_norm.weight"), d, &layer->ffn_norm));
  XC_RETURN_IF_ERROR(
      binder->Matrix(name("ffn_gate.weight"), ff, d, &layer->w_gate));
  XC_RETURN_IF_ERROR(
      binder->Matrix(name("ffn_up.weight"), ff, d, &layer->w_up));
  return binder->Matrix(name("ffn_down.weight"), d, ff, &layer->w_down);
}

// The number of rows of the token embedding, which the tokenizer must have as
// tokens.
absl::StatusOr<int> ReadVocabSize(const GgufFile& gguf) {
  XC_ASSIGN_OR_RETURN(const std::span<const std::string> tokens,
                      gguf.GetStrings("tokenizer.ggml.tokens"));
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  constexpr int64_t kMaxVocab = 1 << 24;
  if (num_tokens < 1 || num_tokens > kMaxVocab) {
    return absl::InvalidArgumentError(
        absl::StrCat(gguf.path(), ": tokenizer.ggml.tokens: expected 1 to ",
                     kMaxVocab, " tokens, found ", num_tokens));
  }
  return static_cast<int>(num_tokens);
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Model>> Model::Load(
    const std::string& path) {
  XC_ASSIGN_OR_RETURN(std::unique_ptr<const GgufFile> gguf,
                      GgufFile::Open(path));
  absl::StatusOr<std::shared_ptr<const Model>> model =
      FromGguf(std::move(gguf));
  // The file is there; what is not is one of its keys.
  if (absl::IsNotFound(model.status())) {
    return absl::InvalidArgumentError(model.status().message());
  }
  return model;
}

absl::StatusOr<std::shared_ptr<const Model>> Model::FromGguf(
    std::unique_ptr<const GgufFile> gguf) {
  const std::shared_ptr<Model> model(new Model());
  model->gguf_ = std::move(gguf);
  const GgufFile& file = *model->gguf_;
  XC_ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(file));
  XC_ASSIGN_OR_RETURN(model->hparams_, ReadHyperParams(file, *architecture));
  HyperParams& h = model->hparams_;
  XC_ASSIGN_OR_RETURN(h.vocab_size, ReadVocabSize(file));

  Binder binder(file);
  XC_RETURN_IF_ERROR(binder.Matrix("token_embd.weight", h.vocab_size, h.d_model,
                                   &model->token_embd_));
  XC_RETURN_IF_ERROR(
      binder.Vector("output_norm.weight", h.d_model, &model->output_norm_));
  if (file.FindTensor("output.weight") != nullptr) {
    XC_RETURN_IF_ERROR(binder.Matrix("output.weight", h.vocab_size, h.d_model,
                                     &model->output_));
  } else {
    model->output_ = model->token_embd_;
  }
  XC_RETURN_IF_ERROR(binder.OptionalVector("rope_freqs.weight", h.rope_dim / 2,
                                           &model->rope_freqs_));
  for (int i = 0; i < h.num_layers; ++i) {
    XC_RETURN_IF_ERROR(BindLayer(h, *architecture, i, &binder,
                                 &model->layers_.emplace_back()));
  }
  XC_RETURN_IF_ERROR(binder.CheckAllBound());

  for (const GgufTensor& tensor : file.tensors()) {
    if (tensor.name == "rope_freqs.weight") continue;  // not a parameter
    int64_t num_elements = 1;
    for (int64_t dim : tensor.dims) num_elements *= dim;
    model->num_parameters_ += num_elements;
  }
  model->fingerprint_ = file.fingerprint();
  return std::shared_ptr<const Model>(model);
}

}  // namespace xcache
