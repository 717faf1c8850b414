// Matrix products of calibration, spread over a pool, with the engine's kernel:
// the same bits on every instruction set and with any number of threads.
#ifndef XCACHE_ENGINE_CALIBRATION_PRODUCTS_H_
#define XCACHE_ENGINE_CALIBRATION_PRODUCTS_H_

#include <cstdint>
#include <vector>

#include "Eigen/Dense"
#include "engine/base/thread_pool.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/packed.h"

namespace xcache {

class Products {
 public:
  Products(const Kernels& kernels, ThreadPool* pool)
      : kernels_(kernels), pool_(*pool) {}

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() const { return pool_; }

  // out [rows, b.n] = a [rows, b.k] b.
  void Multiply(const float* a, int64_t a_stride, int64_t rows,
                const PackedFloat& b, float* out, int64_t out_stride) const;
  // sum (+)= a^T b, of a [rows, n] and b [rows, m]. FP32 within a call, FP64
  // over calls.
  void AddProduct(const std::vector<float>& a, const std::vector<float>& b,
                  int64_t rows, Eigen::MatrixXd* sum) const;

 private:
  const Kernels& kernels_;
  ThreadPool& pool_;
};

// Of a matrix whose element (k, n) is b(k, n).
PackedFloat PackEigen(const Eigen::MatrixXd& b);

}  // namespace xcache

#endif  // XCACHE_ENGINE_CALIBRATION_PRODUCTS_H_
