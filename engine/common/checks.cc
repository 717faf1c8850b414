#include "engine/common/checks.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/xcache/page.h"

namespace xcache {

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
