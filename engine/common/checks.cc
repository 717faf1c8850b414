#include "engine/common/checks.h"

#include <algorithm>
#include <iterator>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/common/sequence.h"
#include "engine/xcache/page.h"

namespace xcache {

namespace {

// INVALID_ARGUMENT unless a step may append `tokens` to the sequence.
absl::Status CheckAppend(const ModelInfo& info, const Sequence& sequence,
                         std::span<const TokenId> tokens) {
  if (tokens.empty()) {
    return absl::InvalidArgumentError("an item without tokens");
  }
  XC_RETURN_IF_ERROR(CheckTokenIds(tokens, info.vocab_size));
  const size_t size = sequence.tokens().size();
  const size_t room = kBlockTokens - size % kBlockTokens;
  if (tokens.size() > room) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens cross the end of a block, ", room,
                     " tokens away"));
  }
  const size_t total = size + tokens.size();
  if (total > static_cast<size_t>(info.context_length)) {
    return absl::InvalidArgumentError(absl::StrCat(
        total, " tokens exceed the context length of ", info.context_length));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckIsPlainDecoder(const Model& model, std::string_view who) {
  const HyperParams& h = model.hparams();
  const LayerTensors& layer = model.layer(0);
  if (!layer.q_norm.has_value() && !layer.post_attn_norm.has_value() &&
      h.window == 0 && !h.gelu && h.embedding_scale == 1.0f) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(
      "architecture ", h.architecture, ": the CPU engine computes it, ",
      std::string(who), " does not yet"));
}

ModelInfo DescribeModel(const Model& model) {
  const HyperParams& h = model.hparams();
  ModelInfo info;
  info.name = h.name;
  info.architecture = h.architecture;
  info.model_fp = model.fingerprint();
  info.num_layers = h.num_layers;
  info.d_model = h.d_model;
  info.n_heads = h.n_heads;
  info.n_kv_heads = h.n_kv_heads;
  info.head_dim = h.head_dim;
  info.vocab_size = h.vocab_size;
  info.context_length = h.context_length;
  info.num_parameters = model.num_parameters();
  // K and V, two bytes an element.
  info.kv_fp16_bytes_per_token = h.num_layers * h.kv_dim() * 2 * 2;
  info.window = h.window;
  info.pooling = h.pooling;
  return info;
}

absl::Status CheckTokenIds(std::span<const TokenId> tokens, int vocab_size) {
  for (TokenId token : tokens) {
    if (token < 0 || token >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is not in [0, ", vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrefix(const ModelInfo& info, std::span<const TokenId> tokens,
                         size_t num_blocks) {
  XC_RETURN_IF_ERROR(CheckTokenIds(tokens, info.vocab_size));
  if (tokens.size() != num_blocks * kBlockTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_blocks, " blocks need ", num_blocks * kBlockTokens,
                     " tokens, not ", tokens.size()));
  }
  if (tokens.size() > static_cast<size_t>(info.context_length)) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens exceed the context length of ",
                     info.context_length));
  }
  return absl::OkStatus();
}

absl::Status CheckCodec(const Engine& engine, const CodecHandle& codec) {
  const auto* handle = dynamic_cast<const EngineCodec*>(&codec);
  if (handle == nullptr || handle->engine() != &engine) {
    return absl::InvalidArgumentError("a codec of another engine");
  }
  return absl::OkStatus();
}

absl::Status CheckStep(const Engine& engine, std::span<const StepItem> items) {
  std::unordered_set<const Sequence*> distinct;
  for (const StepItem& item : items) {
    if (item.sequence == nullptr) {
      return absl::InvalidArgumentError("an item without a sequence");
    }
    XC_RETURN_IF_ERROR(CheckCodec(engine, item.sequence->codec()));
    XC_RETURN_IF_ERROR(CheckAppend(engine.info(), *item.sequence, item.tokens));
    if (!distinct.insert(item.sequence).second) {
      return absl::InvalidArgumentError("one sequence in two items");
    }
  }
  return absl::OkStatus();
}

size_t BookBytes(const ModelInfo& info) {
  return 2 * static_cast<size_t>(info.context_length) * sizeof(TokenId) +
         2 * static_cast<size_t>(info.context_length / kBlockTokens) *
             sizeof(KvBlockRef);
}

absl::StatusOr<std::span<const uint8_t>> CheckPage(
    const Digest& cache_fp, int64_t block_index,
    std::span<const TokenId> tokens, std::string_view page) {
  XC_ASSIGN_OR_RETURN(const PageView view, ParsePage(page));
  if (view.cache_fp != cache_fp) {
    return absl::DataLossError(absl::StrCat(
        "page of block ", block_index, ": expected cache fingerprint ",
        ToHex(cache_fp), ", found ", ToHex(view.cache_fp)));
  }
  if (view.block_index != block_index) {
    return absl::DataLossError(absl::StrCat(
        "page: expected block ", block_index, ", found ", view.block_index));
  }
  if (!std::equal(tokens.begin(), tokens.end(), std::begin(view.tokens),
                  std::end(view.tokens))) {
    return absl::DataLossError(absl::StrCat(
        "page of block ", block_index, " holds other tokens than expected"));
  }
  return view.payload;
}

}  // namespace xcache
