// The first error of a device, which sticks (DeviceOps::error).
#ifndef XCACHE_ENGINE_CUDA_ERRORS_H_
#define XCACHE_ENGINE_CUDA_ERRORS_H_

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdio>

namespace xcache::cuda {

class Errors {
 public:
  bool failed() const { return failed_; }
  // Null: none.
  const char* message() const { return failed_ ? message_ : nullptr; }

  void Fail(const char* what, const char* why) {
    if (failed_) return;
    std::snprintf(message_, sizeof(message_), "%s: %s", what, why);
    failed_ = true;
  }
  bool Check(cudaError_t result, const char* what) {
    if (result != cudaSuccess) Fail(what, cudaGetErrorString(result));
    return result == cudaSuccess;
  }
  bool Check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS) {
      Fail(what, cublasLtGetStatusString(status));
    }
    return status == CUBLAS_STATUS_SUCCESS;
  }

 private:
  bool failed_ = false;
  char message_[256] = {};
};

}  // namespace xcache::cuda

#endif  // XCACHE_ENGINE_CUDA_ERRORS_H_
