#include "engine/cpu/seal.h"

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

// The rows of a full live block, as a codec asks for them.
class ExactRows {
 public:
  ExactRows(const EngineCodec& codec, LiveBlockRows& rows,
            const CpuKvBlock& block)
      : rows_(rows),
        block_(block),
        elements_(kBlockTokens * static_cast<size_t>(block.shape().kv_dim())) {
    if ((codec.codec().live_rows() & kLiveKvFinal) != 0) {
      final_.resize(2 * elements_);
    }
  }

  LayerRows operator()(int layer) const {
    LayerRows in;
    in.unit_x = rows_.unit_x(layer);
    in.rms = rows_.rms(layer);
    in.k_pre = rows_.k_pre(layer);
    in.v_pre = rows_.v_pre(layer);
    if (!final_.empty()) {
      GatherRows(block_, layer, final_.data(), final_.data() + elements_);
      in.k_final = final_.data();
      in.v_final = final_.data() + elements_;
    }
    return in;
  }

 private:
  LiveBlockRows& rows_;
  const CpuKvBlock& block_;
  const size_t elements_;
  mutable std::vector<uint16_t> final_;  // of the layer at hand
};

// Writes a layer's rematerialized rows into the tiles, all but the sinks'.
class TileWriter {
 public:
  TileWriter(const CpuForward& forward, const EngineCodec& codec,
             int64_t block_index, CpuKvBlock& block)
      : forward_(forward),
        block_index_(block_index),
        block_(block),
        first_row_(FirstRow(block_index)),
        num_rows_(kBlockTokens - first_row_),
        first_(static_cast<size_t>(first_row_) *
               static_cast<size_t>(block.shape().kv_dim())),
        final_stage_(codec.codec().remat_stage() == RematStage::kFinal) {}

  void operator()(int layer, const RematRows& rows) const {
    const KvShape& shape = block_.shape();
    const int kv_dim = shape.kv_dim();
    if (!final_stage_) {
      forward_.StoreRows(layer, block_index_, first_row_, num_rows_,
                         rows.k_pre + first_, rows.v_pre + first_, kv_dim,
                         block_);
      return;
    }
    for (int head = 0; head < shape.n_kv_heads; ++head) {
      const size_t at = first_ + static_cast<size_t>(head * shape.head_dim);
      StoreKvF16(rows.k_final + at, rows.v_final + at, kv_dim, num_rows_,
                 shape.head_dim, first_row_, block_.k_tile(layer, head),
                 block_.v_tile(layer, head));
    }
  }

 private:
  const CpuForward& forward_;
  const int64_t block_index_;
  CpuKvBlock& block_;
  const int first_row_;
  const int num_rows_;
  const size_t first_;
  const bool final_stage_;
};

absl::Status SealStatus(int64_t block_index, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::InternalError(
      absl::StrCat("sealing block ", block_index, ": ", status.message()));
}

}  // namespace

absl::Status SealBlock(const CpuForward& forward, const EngineCodec& codec,
                       const CpuSequence::Seal& seal, LayerRange range,
                       std::span<const TokenId> tokens, LiveBlockRows& rows,
                       std::span<uint8_t> payload) {
  const ExactRows exact(codec, rows, seal.exact);
  absl::Status status = codec.codec().SealLayers(
      range, [&](int layer) { return exact(layer); },
      {FirstRow(seal.index), tokens}, payload);
  if (status.ok()) {
    status = RematBlock(forward, codec, seal.index, tokens, range, payload,
                        seal.sealed);
  }
  return SealStatus(seal.index, status);
}

absl::Status SealWholeBlock(const CpuForward& forward, const EngineCodec& codec,
                            const CpuSequence::Seal& seal,
                            std::span<const TokenId> tokens,
                            LiveBlockRows& rows, std::span<uint8_t> payload,
                            const ParallelForFn& parallel) {
  const ExactRows exact(codec, rows, seal.exact);
  const TileWriter write(forward, codec, seal.index, seal.sealed);
  return SealStatus(seal.index, codec.codec().SealRemat(
                                    [&](int layer) { return exact(layer); },
                                    {FirstRow(seal.index), tokens}, payload,
                                    [&](int layer, const RematRows& out) {
                                      write(layer, out);
                                    },
                                    parallel));
}

absl::Status RematBlock(const CpuForward& forward, const EngineCodec& codec,
                        int64_t block_index, std::span<const TokenId> tokens,
                        LayerRange range, std::span<const uint8_t> payload,
                        CpuKvBlock& block) {
  const TileWriter write(forward, codec, block_index, block);
  const absl::Status status = codec.codec().RematLayers(
      range, payload, {FirstRow(block_index), tokens},
      [&](int layer, const RematRows& rows) { write(layer, rows); });
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat("page of block ", block_index, ": ", status.message()));
  }
  return absl::OkStatus();
}

}  // namespace xcache
