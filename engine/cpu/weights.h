// A model's weights as the CPU kernels read them: GGUF blocks repacked once at
// load, still quantized, each type in its own bits and values; F32, F16 and
// BF16 stay floating-point.
#ifndef XCACHE_ENGINE_CPU_WEIGHTS_H_
#define XCACHE_ENGINE_CPU_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"
#include "engine/model/model.h"
#include "engine/types.h"

namespace xcache {

// Input rows of a product, in the form or forms that its matrices need.
struct Activations {
  const float* x = nullptr;  // [num_rows, cols]
  int64_t x_stride = 0;      // elements
  QuantRows q;               // the same rows, quantized
};

using ReleaseFn = std::function<void(std::span<const uint8_t> bytes)>;

// Where the packed bytes of a matrix may be found, by its parts.
class PackedParts {
 public:
  virtual ~PackedParts() = default;
  // Whether they are there, all and whole; they are then in `to`.
  virtual bool Read(size_t part, std::span<uint8_t> to) = 0;
  // They were not, and have been packed.
  virtual void Add(size_t part, std::span<const uint8_t> bytes) = 0;
};

// One weight matrix [rows, cols], quantized or floating-point.
class CpuMatrix {
 public:
  CpuMatrix() = default;
  // INVALID_ARGUMENT names the tensor and what is wrong with it. `arena` must
  // outlive the matrix. `release`, where not null, is told the parts of the
  // tensor's bytes that are not read any more, all of them, in order. Nor are
  // those read at all of which `parts`, where not null, has what they become.
  static absl::StatusOr<CpuMatrix> Pack(const TensorView& tensor,
                                        WeightArena* arena,
                                        const ReleaseFn& release = nullptr,
                                        PackedParts* parts = nullptr);
  // What Pack would make of such a tensor, without its bytes.
  static absl::StatusOr<CpuMatrix> ShapeOf(const TensorView& tensor) {
    return Over(tensor, nullptr);
  }

  bool quantized() const {
    return std::holds_alternative<PackedMatrix>(packed_);
  }
  int rows() const;
  int cols() const;
  size_t bytes() const;
  const uint8_t* data() const;
  size_t num_parts() const {
    return static_cast<size_t>((rows() + part_rows() - 1) / part_rows());
  }
  // Work may be split at multiples of this many output features.
  int granule() const { return quantized() ? kPanelCols : kFloatPanelCols; }
  // REQUIRES: quantized().
  const QuantMatrix& quant() const {
    return std::get<PackedMatrix>(packed_).view();
  }

  // The weights of a row, [cols]: what DequantizeRow gives of the tensor.
  void Row(int row, float* out) const;

  // out[num_rows, rows] (+)= a W^T, of output features [first, last) only.
  // REQUIRES: both are multiples of granule(), or rows().
  void Multiply(const Kernels& kernels, const Activations& a, int num_rows,
                int first, int last, Epilogue epilogue, float* out,
                int64_t out_stride) const;

 private:
  static absl::StatusOr<CpuMatrix> Over(const TensorView& tensor,
                                        const uint8_t* data);
  // The rows of `tensor` to their place in the matrix's bytes, at `data`.
  absl::Status PackRows(const TensorView& tensor, int first, int last,
                        uint8_t* data) const;
  // What is packed at a time.
  int part_rows() const;

  std::variant<PackedMatrix, PackedFloat> packed_;
};

struct CpuLayer {
  std::vector<float> attn_norm, ffn_norm;  // [d_model]
  CpuMatrix wq, wk, wv, wo;
  CpuMatrix w_gate, w_up, w_down;
  // Empty where the model has none.
  std::vector<float> bq, bk, bv;
  std::vector<float> q_norm, k_norm;                 // [head_dim]
  std::vector<float> post_attn_norm, post_ffn_norm;  // [d_model]
};

struct CpuWeights {
  std::unique_ptr<WeightArena> arena;  // memory of all the matrices
  std::vector<CpuLayer> layers;
  std::vector<float> output_norm;
  CpuMatrix output;
  // Where the output has other weights; else its rows are the embedding too, so
  // that these are held once.
  std::optional<TensorView> embedding;

  // [d_model]
  void Embedding(TokenId token, float* out) const;
  int64_t bytes() const;
};

struct PackOptions {
  // What was packed is given back by the model, some MB at a time as soon as
  // they were, but for those that codecs are made from.
  bool release_packed = false;
  // Folder where packed weights are kept and looked for (weights_cache.h);
  // empty: packed anew.
  std::string cache_dir;
};
absl::StatusOr<CpuWeights> PackWeights(const Model& model,
                                       const PackOptions& options,
                                       ThreadPool& pool,
                                       const ProgressFn& progress);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CPU_WEIGHTS_H_
