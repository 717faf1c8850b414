#include "engine/cpu_seal.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/kernels/attention.h"

namespace xcache {
namespace {

int FirstRow(int64_t block_index) { return block_index == 0 ? kSinkTokens : 0; }

// K and V of a layer as rows of FP16, [64, kv_dim], out of the tiles.
void GatherRows(const CpuKvBlock& block, int layer, uint16_t* k, uint16_t* v) {
  const KvShape& shape = block.shape();
  const auto head_dim = static_cast<size_t>(shape.head_dim);
  const auto kv_dim = static_cast<size_t>(shape.kv_dim());
  for (int head = 0; head < shape.n_kv_heads; ++head) {
    const uint16_t* k_tile = block.k_tile(layer, head);
    const uint16_t* v_tile = block.v_tile(layer, head);
    const size_t column = static_cast<size_t>(head) * head_dim;
    for (size_t row = 0; row < kBlockTokens; ++row) {
      std::copy_n(v_tile + row * head_dim, head_dim, v + row * kv_dim + column);
      for (size_t i = 0; i < head_dim; ++i) {
        k[row * kv_dim + column + i] = k_tile[i * kBlockTokens + row];
      }
    }
  }
}

}  // namespace

std::vector<LayerRange> SplitLayers(const Codec& codec, int64_t wanted) {
  const int layers = codec.num_layers();
  const int64_t n =
      codec.layers_independent() ? std::clamp<int64_t>(wanted, 1, layers) : 1;
  std::vector<LayerRange> ranges;
  for (int64_t i = 0; i < n; ++i) {
    ranges.push_back({static_cast<int>(layers * i / n),
                      static_cast<int>(layers * (i + 1) / n)});
  }
  return ranges;
}

absl::Status SealBlock(const CpuForward& forward, const CpuCodecHandle& codec,
                       int64_t block_index, LayerRange range,
                       LiveBlockRows& rows, CpuKvBlock& block,
                       std::span<uint8_t> payload) {
  const size_t kv_elements =
      kBlockTokens * static_cast<size_t>(block.shape().kv_dim());
  const bool wants_final = (codec.codec().live_rows() & kLiveKvFinal) != 0;
  std::vector<uint16_t> final_rows(wants_final ? 2 * kv_elements : 0);
  const auto layer_rows = [&](int layer) {
    LayerRows in;
    in.unit_x = rows.unit_x(layer);
    in.rms = rows.rms(layer);
    in.k_pre = rows.k_pre(layer);
    in.v_pre = rows.v_pre(layer);
    if (wants_final) {
      GatherRows(block, layer, final_rows.data(),
                 final_rows.data() + kv_elements);
      in.k_final = final_rows.data();
      in.v_final = final_rows.data() + kv_elements;
    }
    return in;
  };
  absl::Status status = codec.codec().SealLayers(
      range, layer_rows, FirstRow(block_index), payload);
  if (status.ok()) {
    status = RematBlock(forward, codec, block_index, range, payload, block);
  }
  if (!status.ok()) {
    return absl::InternalError(
        absl::StrCat("sealing block ", block_index, ": ", status.message()));
  }
  return absl::OkStatus();
}

absl::Status RematBlock(const CpuForward& forward, const CpuCodecHandle& codec,
                        int64_t block_index, LayerRange range,
                        std::span<const uint8_t> payload, CpuKvBlock& block) {
  const int first_row = FirstRow(block_index);
  const int num_rows = kBlockTokens - first_row;
  const KvShape& shape = block.shape();
  const int kv_dim = shape.kv_dim();
  const auto first =
      static_cast<size_t>(first_row) * static_cast<size_t>(kv_dim);
  const size_t count =
      static_cast<size_t>(num_rows) * static_cast<size_t>(kv_dim);
  const bool final_stage = codec.codec().remat_stage() == RematStage::kFinal;
  std::vector<float> k(final_stage ? 0 : count), v(final_stage ? 0 : count);
  const absl::Status status = codec.codec().RematLayers(
      range, payload, first_row, [&](int layer, const RematRows& rows) {
        if (!final_stage) {
          std::copy_n(rows.k_pre + first, count, k.data());
          std::copy_n(rows.v_pre + first, count, v.data());
          forward.StoreRows(layer, block_index, first_row, num_rows, k.data(),
                            v.data(), kv_dim, block);
          return;
        }
        for (int head = 0; head < shape.n_kv_heads; ++head) {
          const size_t at = first + static_cast<size_t>(head * shape.head_dim);
          StoreKvF16(rows.k_final + at, rows.v_final + at, kv_dim, num_rows,
                     shape.head_dim, first_row, block.k_tile(layer, head),
                     block.v_tile(layer, head));
        }
      });
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat("page of block ", block_index, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace xcache
