// Owners of packed weights: lay a matrix out once, as the kernels read it. They
// know no model file: a callback yields the weights.
#ifndef XCACHE_ENGINE_KERNELS_PACKED_H_
#define XCACHE_ENGINE_KERNELS_PACKED_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/kernels/float_matmul.h"
#include "engine/kernels/int_matmul.h"
#include "engine/kernels/quant_matmul.h"

namespace xcache {

// 64-byte aligned memory, not initialised; in huge pages where it fills them.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(size_t num_bytes);

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  size_t size_ = 0;
};

// Memory for the matrices of a model, 64-byte aligned, in huge pages: most
// matrices are smaller than one, and memory in small pages is read at half the
// rate. Freed as a whole. Thread-safe.
class WeightArena {
 public:
  uint8_t* Allocate(size_t num_bytes);
  // Bytes taken from the system.
  size_t bytes() const;

 private:
  struct Slab {
    AlignedBytes memory;
    size_t used = 0;
  };
  mutable Mutex mu_;
  std::vector<Slab> slabs_ XC_GUARDED_BY(mu_);
};

// 32 weights: w[i] = d * v[i] + m, v[i] what codes[i] stands for; with factors
// w[i] = d * scales[h] * v[i] + m * mins[h], where d and m are those of eight
// blocks and h is 0 or, where factors are of 16 weights, i / 16.
struct WeightBlock {
  uint8_t codes[kQuantBlock] = {};
  float d = 0.0f;
  float m = 0.0f;
  int scales[2] = {};
  int mins[2] = {};
};

class PackedMatrix {
 public:
  // Fills the block of weights [32 * block, 32 * block + 32) of `row`.
  using BlockFn = std::function<void(int row, int block, WeightBlock* out)>;

  PackedMatrix() = default;
  // Calls `blocks` once for each, rows in order. INVALID_ARGUMENT: a shape that
  // is not positive or cols no multiple of 32 (256 with factors), a code
  // beyond its bits, a scale that its format cannot hold exactly or that is not
  // finite, other d or m within eight blocks that share them. The weights are
  // kept in `arena`, which must outlive the matrix, or on their own.
  static absl::StatusOr<PackedMatrix> Pack(int rows, int cols,
                                           const QuantFormat& format,
                                           const BlockFn& blocks,
                                           WeightArena* arena = nullptr);
  // One of bytes() bytes at `data`, 64-byte aligned, that PackRows writes or
  // has written; they must outlive it. Errors of shape and format as of Pack.
  static absl::StatusOr<PackedMatrix> Over(int rows, int cols,
                                           const QuantFormat& format,
                                           const uint8_t* data);
  // Rows [first, last) at their place in the matrix's bytes, which begin at
  // `data`; the other errors of Pack. REQUIRES: both are multiples of
  // kPanelCols, or rows().
  absl::Status PackRows(int first, int last, const BlockFn& blocks,
                        uint8_t* data) const;
  // Where in them row `row` begins. REQUIRES: as of PackRows.
  size_t OffsetOf(int row) const {
    return row == rows()
               ? bytes()
               : static_cast<size_t>(row / kPanelCols * view_.panel_bytes);
  }

  const QuantMatrix& view() const { return view_; }
  int rows() const { return view_.rows; }
  int cols() const { return view_.cols; }
  int num_panels() const { return NumPanels(view_); }
  size_t bytes() const {
    return static_cast<size_t>(num_panels() * view_.panel_bytes);
  }

 private:
  QuantMatrix view_;
  AlignedBytes storage_;  // empty where an arena holds the weights
};

// The weights of a row, [cols], as they were before they were packed: what is
// not exact is rounded once.
void UnpackRow(const QuantMatrix& w, int row, float* out);

// Packed B of out = A B.
class PackedFloat {
 public:
  PackedFloat() = default;
  // `fill(row, out)` yields a weight row [cols]; out = A W^T: k = cols, n =
  // rows. FP16 and BF16 storage rounds half to even. INVALID_ARGUMENT: a shape
  // that is not positive.
  static absl::StatusOr<PackedFloat> FromWeightRows(
      int rows, int cols, FloatType type,
      const std::function<void(int row, float* out)>& fill,
      WeightArena* arena = nullptr);
  // As of PackedMatrix, for multiples of kFloatPanelCols.
  using FillFn = std::function<void(int row, float* out)>;
  static absl::StatusOr<PackedFloat> Over(int rows, int cols, FloatType type,
                                          const uint8_t* data);
  void PackRows(int first, int last, const FillFn& fill, uint8_t* data) const;
  size_t OffsetOf(int row) const {
    return row == n() ? bytes()
                      : static_cast<size_t>(int64_t{row} * k() *
                                            FloatTypeBytes(view_.type));
  }
  // Element (k, n) of B is b[k * k_stride + n * n_stride]; FP32.
  static absl::StatusOr<PackedFloat> FromMatrix(const float* b, int k, int n,
                                                int64_t k_stride,
                                                int64_t n_stride);

  const FloatMatrix& view() const { return view_; }
  int k() const { return view_.k; }
  int n() const { return view_.n; }
  int num_panels() const { return NumPanels(view_); }
  size_t bytes() const {
    return static_cast<size_t>((n() + kPanelCols - 1) / kPanelCols *
                               int64_t{kPanelCols} * k() *
                               FloatTypeBytes(view_.type));
  }

 private:
  FloatMatrix view_;
  AlignedBytes storage_;  // empty where an arena holds the weights
};

// Row `row` of the weights, [k], that FromWeightRows was given.
void UnpackRow(const FloatMatrix& b, int row, float* out);

// Packed B of int_matmul.h.
class PackedInt {
 public:
  PackedInt() = default;
  // `fill(row, out)` yields a row of B, [n]. INVALID_ARGUMENT: a shape that is
  // not positive.
  static absl::StatusOr<PackedInt> FromRows(
      int k, int n, IntType type,
      const std::function<void(int row, int16_t* out)>& fill);
  // `fill(column, out)` yields a column of B, [k].
  static absl::StatusOr<PackedInt> FromColumns(
      int k, int n, IntType type,
      const std::function<void(int column, int16_t* out)>& fill);

  const IntMatrix& view() const { return view_; }
  int n() const { return view_.n; }
  int num_panels() const { return NumPanels(view_); }
  // Bytes of a row of A.
  int64_t row_bytes() const { return 4 * int64_t{NumSteps(view_)}; }

 private:
  static absl::StatusOr<PackedInt> Make(int k, int n, IntType type);
  void Place(int row, int column, int16_t value);

  IntMatrix view_;
  AlignedBytes storage_;
  std::vector<int32_t> col_sums_;
};

}  // namespace xcache

#endif  // XCACHE_ENGINE_KERNELS_PACKED_H_
