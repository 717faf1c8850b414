// The forward pass of a decoder-only transformer on the CPU: rows of many
// sequences together, layer by layer. Each layer is a few parallel loops over
// columns of its matrices, or over heads and chunks of keys; no row's result
// depends on how that work is split or on which rows are computed with it.
//
// It reads and writes K/V tiles and live rows that it is given; sequences,
// sealing and errors are its caller's.
#ifndef XCACHE_ENGINE_CPU_FORWARD_H_
#define XCACHE_ENGINE_CPU_FORWARD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/common/rope_table.h"
#include "engine/cpu/attention.h"
#include "engine/cpu/kv.h"
#include "engine/cpu/weights.h"
#include "engine/engine.h"
#include "engine/kernels/kernels.h"
#include "engine/model/model.h"

namespace xcache {

// Tokens of one sequence, all in its live block.
struct ForwardItem {
  std::span<const TokenId> tokens;
  // The blocks before the window at hand, in order.
  std::span<const KvBlockRef> sealed;
  // That window's, whose rows are exact; the live one is the last.
  std::span<const std::shared_ptr<CpuKvBlock>> live;
  LiveBlockRows* live_rows = nullptr;  // null: none are kept
  int live_tokens = 0;                 // rows that the live block has already
  LogitsMode logits_mode = LogitsMode::kNone;
  std::span<const float> logits;  // out; valid until the next Run
  std::span<const float> hidden;  // the same

  int64_t live_index() const {
    return static_cast<int64_t>(sealed.size() + live.size()) - 1;
  }
  int64_t first_position() const {
    return live_index() * kBlockTokens + live_tokens;
  }
};

class CpuForward {
 public:
  // All arguments but `shape` must outlive it.
  CpuForward(const Model& model, const CpuWeights& weights,
             const Kernels& kernels, ThreadPool& pool, const KvShape& shape);

  // REQUIRES: every item has tokens, with valid ids, that fit its live block.
  void Run(std::span<ForwardItem> items);

  // Biases, K's norm, RoPE and FP16: writes `num_rows` rows of K and V as they
  // leave W_k, W_v, [num_rows, stride], into the tiles of `layer` at slots
  // first_slot, ... of block `block_index`. Changes k and v. The one way by
  // which rows get into tiles, live and rematerialized. Thread-safe for
  // positions that a Run or ExtendRope has covered.
  void StoreRows(int layer, int64_t block_index, int first_slot, int num_rows,
                 float* k, float* v, int64_t stride, CpuKvBlock& block) const;
  // Makes RoPE angles available for positions below `num_positions`.
  void ExtendRope(int64_t num_positions);

 private:
  void Reserve(int64_t rows);
  void Embed(std::span<const ForwardItem> items);
  void PlanAttention(std::span<const ForwardItem> items);
  void Layer(int layer, std::span<ForwardItem> items);
  void Logits(std::span<ForwardItem> items);
  void TakeHidden(std::span<ForwardItem> items);

  // x_ to normalised (and quantized) rows; keeps live rows for `layer`, or
  // none where it is negative.
  void NormRows(const std::vector<float>& gain, bool quantize, int layer,
                std::span<ForwardItem> items);
  void QuantizeAll(const float* x, int64_t stride, const QuantRows& out);
  // The heads of a query or a key, [num_heads, head_dim], normalised where the
  // model does that (`gain` is not empty), and turned by RoPE.
  void Turn(int layer, float* heads, int num_heads,
            const std::vector<float>& gain, int64_t position) const;
  // Biases, norms, RoPE, and K/V rows into the live tiles.
  void StoreKvRows(int layer, std::span<ForwardItem> items);
  void GateUp(const CpuLayer& w);
  // Adds the product of `a`, normalised where `gain` is not empty, to x_.
  // Writes norm_ then, which `a` must not be in.
  void AddProduct(const CpuMatrix& w, const Activations& a,
                  const std::vector<float>& gain);

  // fn(first_row, last_row) over all rows_, in parallel where that pays.
  template <typename Fn>
  void ForRows(const Fn& fn);
  // fn(matrix, first, last) over all output features of all matrices.
  template <typename Fn>
  void ForColumns(std::span<const CpuMatrix* const> matrices, const Fn& fn);

  const HyperParams& hparams_;
  const CpuWeights& weights_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const KvShape shape_;
  const int q_dim_;    // n_heads * head_dim
  const int qkv_dim_;  // q_dim + 2 * kv_dim
  RopeTable rope_;
  std::optional<RopeTable> sliding_rope_;  // of layers whose attention slides

  int64_t rows_ = 0;           // of the step at hand
  int64_t capacity_ = 0;       // rows that the buffers below have room for
  AlignedBuffer<float> x_;     // [rows, d_model] residual stream
  AlignedBuffer<float> norm_;  // [rows, d_model]
  AlignedBuffer<float> qkv_;   // [rows, q_dim + 2 kv_dim]
  AlignedBuffer<float> attn_;  // [rows, q_dim]
  AlignedBuffer<float> ff_;    // [rows, d_ff]
  AlignedBuffer<float> up_;    // [rows, d_ff], where gate and up are not fused
  AlignedBuffer<uint8_t> q_norm_, q_attn_, q_ff_;  // quantized rows
  AlignedBuffer<float> logits_;
  AlignedBuffer<float> hidden_;  // [rows asked for, d] FP32
  std::vector<int64_t> row_of_item_;

  CpuAttention attention_;
  std::vector<AttentionItem> attention_items_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_FORWARD_H_
