// Products by cuBLASLt. Rows are computed in tiles of 64, as a batch of equal
// products that share their weights, by one algorithm chosen once for each
// shape, for a batch of one and without split-K. So that a row's result is
// meant not to depend on how many rows there are; the gpu tests check that it
// does not.
#ifndef XCACHE_ENGINE_CUDA_GEMM_H_
#define XCACHE_ENGINE_CUDA_GEMM_H_

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

#include "engine/cuda/errors.h"
#include "engine/device/ops.h"

namespace xcache::cuda {

class Gemms {
 public:
  // `errors` must outlive it. REQUIRES, as for all: the device is set.
  explicit Gemms(Errors& errors);
  ~Gemms();
  Gemms(const Gemms&) = delete;
  Gemms& operator=(const Gemms&) = delete;

  // Enqueues DeviceOps::Gemm.
  void Run(const GemmArgs& args, cudaStream_t stream);

 private:
  // What an algorithm is chosen for: n, k, output stride, type, and the
  // output's alignment, which is less where it is some of a product's columns.
  using Shape = std::tuple<int, int, int64_t, int, uint32_t>;
  // How to run a shape for a number of tiles. Kept: making one takes the host
  // longer than a small product takes the device.
  struct Plan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t w = nullptr, a = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
    int calls = 0;  // of equal numbers of tiles: 1, or all tiles one by one
  };

  // Layout of a column-major matrix, repeated `batch` times at `stride`.
  bool MakeLayout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, int rows,
                  int cols, int64_t ld, int batch, int64_t stride);
  bool MakeLayouts(const Shape& shape, int batch, Plan* plan);
  bool ChooseAlgorithm(const Shape& shape, cublasLtMatmulAlgo_t* out);
  // Null where it failed.
  const Plan* PlanFor(const Shape& shape, int tiles);
  static void Destroy(Plan& plan);

  Errors& errors_;
  cublasLtHandle_t lt_ = nullptr;
  std::map<Shape, cublasLtMatmulAlgo_t> algorithms_;
  std::map<std::pair<Shape, int>, Plan> plans_;
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_GEMM_H_
