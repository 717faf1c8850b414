// A model in FP32 for calibration: the forward pass over whole windows of text,
// and the gradients of the text's log-likelihood with respect to the rows that
// W_k and W_v give. Slow and plain beside engine/cpu; weights never change, so
// there are no gradients of theirs.
//
// The same bits on every instruction set and with any number of threads, on one
// C library.
#ifndef XCACHE_ENGINE_CALIBRATION_FLOAT_MODEL_H_
#define XCACHE_ENGINE_CALIBRATION_FLOAT_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/common/rope_table.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/model/model.h"
#include "engine/types.h"

namespace xcache {

class FloatModel {
 public:
  // What the forward pass says of a layer; [n, width] each, valid in the call.
  struct LayerRows {
    const float* unit_x = nullptr;  // [n, d] x / rms(x)
    const float* rms = nullptr;     // [n]
    const float* q = nullptr;       // [n, n_heads * head_dim], before RoPE
    const float* kv = nullptr;  // [n, 2 k] before biases and RoPE: K, then V
  };
  using LayerFn = std::function<void(int layer, const LayerRows& rows)>;
  // The gradient with respect to kv, [n, 2 k].
  using GradientFn = std::function<void(int layer, const float* gradient)>;
  // Which token the likelihood of position `row` is taken of, given the
  // model's probabilities [vocab_size].
  using TargetFn =
      std::function<TokenId(int row, std::span<const float> probabilities)>;

  // `pool` must outlive it; `model` need not.
  static absl::StatusOr<std::unique_ptr<FloatModel>> Create(const Model& model,
                                                            Isa isa,
                                                            ThreadPool* pool);

  // Forwards a window, from position 0. REQUIRES: a multiple of 64 ids.
  void Forward(std::span<const TokenId> tokens, const LayerFn& layer);
  // Forward, and for each layer, from the last to the first, the gradient of
  // the sum over positions of log p(target), by what other blocks of 64 tokens
  // read of a row: what is lost in its own block's pages does not concern it
  // (rule R1). `whole`: by all that is read, for tests.
  void Gradients(std::span<const TokenId> tokens, const TargetFn& target,
                 const LayerFn& layer, const GradientFn& gradient,
                 bool whole = false);
  // Adds to the rows of one layer during Forward, [n, 2 k]; for tests.
  void Disturb(int layer, std::vector<float> kv) {
    disturbed_ = layer;
    disturbance_ = std::move(kv);
  }
  // log p(target) of each position of a window.
  std::vector<double> LogLikelihoods(std::span<const TokenId> tokens,
                                     const TargetFn& target);

 private:
  // A matrix and its transpose.
  struct Product {
    PackedFloat forward;   // out = a W^T
    PackedFloat backward;  // da = dout W
  };
  struct Layer {
    Product qkv, out, gate_up, down;
    std::vector<float> bias;  // of q, k, v; empty where there is none
  };
  // Rows of a layer that the pass back needs too.
  struct Rows {
    std::vector<float> unit, rms;  // of x
    std::vector<float> qkv;        // before biases and RoPE
    std::vector<float> turned;     // q, k after biases and RoPE; v
    std::vector<float> p;          // [heads][n, n] attention
    std::vector<float> attended;   // [n, q_dim]
    std::vector<float> x1;         // after attention
    std::vector<float> unit1, rms1;
    std::vector<float> gate_up;    // [n, 2 d_ff]
    std::vector<float> activated;  // [n, d_ff]
  };

  FloatModel(const Model& model, Isa isa, ThreadPool* pool);
  absl::Status Pack(const Model& model);

  void Multiply(const float* a, const PackedFloat& b, int64_t n, float* out,
                bool add = false) const;
  void Unit(const float* x, int64_t n, std::vector<float>* unit,
            std::vector<float>* rms) const;
  // dx (+)= the gradient through x / rms(x).
  void UnitBack(const std::vector<float>& du, const std::vector<float>& unit,
                const std::vector<float>& rms, std::vector<float>* dx) const;
  void Turn(float* row, int heads, int64_t position, bool back) const;
  void Tell(int layer, int64_t n, const Rows& rows,
            const LayerFn& layer_fn) const;
  // x [n, d] to the next layer's.
  void RunLayer(int layer, int64_t n, std::vector<float>* x, Rows* rows);
  void Attend(int64_t n, Rows* rows) const;
  // dx: of the layer's output, then of its input.
  void RunLayerBack(int layer, int64_t n, const Rows& rows, bool whole,
                    std::vector<float>* dx, std::vector<float>* gradient);
  // d(attended) to d(turned); `outside` [n, 2 k]: K's and V's part from rows of
  // other blocks.
  void AttendBack(int64_t n, const Rows& rows, const std::vector<float>& dout,
                  std::vector<float>* dturned,
                  std::vector<float>* outside) const;
  std::vector<float> Embed(std::span<const TokenId> tokens) const;
  // Calls fn(first row, probabilities [rows, vocab]) for a few rows at a time.
  void ForProbabilities(const std::vector<float>& unit, int64_t n,
                        const std::function<void(int64_t first, int64_t rows,
                                                 float* p)>& fn) const;

  const HyperParams hparams_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  RopeTable rope_;
  const int64_t d_, q_dim_, kv_dim_, qkv_dim_, ff_, vocab_;
  std::vector<float> embedding_;  // [vocab, d]
  std::vector<Layer> layers_;
  Product output_;
  int disturbed_ = -1;
  std::vector<float> disturbance_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_FLOAT_MODEL_H_
